"""Items of different sizes in one batch, each computed independently."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from frameworks import MLX, MPS, PATHS, Path
from mlx_abilities import needs_mapped_padding
from varlen_items import BATCHES, Items

Array = Any


def inside(batch: Items, item: int) -> tuple[Any, ...]:
    return (slice(item, item + 1), *(slice(0, length) for length in batch.sizes[item]))


def run(path: Path, op: str, arrays: list[Array], arguments: dict[str, Any], dtype: str) -> list[Array]:
    """out, lse, and the gradients of query, key and value."""
    framework = path.framework
    tensors = [framework.tensor(a, dtype) for a in arrays]

    def call(*given: Any) -> Any:
        return framework.face(op)(*given, **arguments, return_lse=True, backend=path.backend)

    with framework.watch() as ran:
        found = framework.vjp(call, tensors[:3], tensors[3:])
    assert ran <= {path.backend}
    assert ran or not any(a.size for a in arrays) or op.endswith("varlen")
    return [framework.numpy(tensor) for part in found for tensor in part]


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("batch", BATCHES, ids=str)
def test_items_are_independent(batch: Items, path: Path) -> None:
    arrays, op = batch.arrays(), f"na{batch.rank}d"
    name = "seq_lens" if batch.rank == 1 else "spatial_sizes"
    found = run(path, f"{op}_varlen", arrays, batch.window | {name: batch.argument}, "float64")
    wanted = [np.zeros_like(a) for a in found]
    wanted[1][:] = -np.inf
    for item, size in enumerate(batch.sizes):
        if 0 in size:
            continue
        own = run(path, op, [a[inside(batch, item)] for a in arrays], batch.window, "float64")
        for whole, part in zip(wanted, own, strict=True):
            whole[inside(batch, item)] = part
    for what, a, b in zip(("out", "lse", "query", "key", "value"), found, wanted, strict=True):
        assert np.array_equal(a == -np.inf, b == -np.inf), what
        np.testing.assert_allclose(np.nan_to_num(a, neginf=0), np.nan_to_num(b, neginf=0), atol=1e-12, err_msg=what)


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_dtypes_and_no_lse(path: Path) -> None:
    batch, framework = BATCHES[0], path.framework
    for dtype in ("float32", "float16", "bfloat16", "float64"):
        tensors = [framework.tensor(a, dtype) for a in batch.arrays()[:3]]
        call = framework.face("na1d_varlen")
        out = call(*tensors, batch.argument, 5, backend=path.backend)
        again, lse = call(*tensors, batch.argument, 5, return_lse=True, backend=path.backend)
        assert framework.dtype_of(out) == dtype
        assert framework.dtype_of(lse) == ("float64" if dtype == "float64" else "float32")
        assert np.array_equal(framework.numpy(out), framework.numpy(again))


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_sizes_may_be_any_integers(path: Path) -> None:
    """Lists, tuples, numpy arrays of any integer type, and the framework's own tensors."""
    framework, batch = path.framework, BATCHES[3]
    tensors = [framework.tensor(a) for a in batch.arrays()[:3]]
    rows = batch.argument
    forms = [rows, batch.sizes, np.array(rows), np.array(rows, np.uint8), framework.tensor(np.array(rows), "int32")]
    found = [
        framework.numpy(framework.face("na2d_varlen")(*tensors, sizes, backend=path.backend, **batch.window))
        for sizes in forms
    ]
    for other in found[1:]:
        assert np.array_equal(other, found[0])


@pytest.mark.parametrize("dtype", ["float64", "float16"])
@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("batch", [BATCHES[0], BATCHES[3], BATCHES[5]], ids=str)
def test_a_list_of_items(batch: Items, path: Path, dtype: str) -> None:
    """Separate tensors instead of a padded batch: a list of results, each like that of a separate call."""
    framework, (*arrays, _, _) = path.framework, batch.arrays()
    face, padded = (framework.face(f"na{batch.rank}d{suffix}") for suffix in ("", "_varlen"))
    count, options = len(batch.sizes), batch.window | {"backend": path.backend}
    given = [[framework.tensor(a[inside(batch, i)][0], dtype) for i in range(count)] for a in arrays]
    with framework.watch() as ran:
        out, lse = padded(*given, None, **options, return_lse=True)
    assert ran == {path.backend}
    assert isinstance(out, list) and isinstance(lse, list) and len(out) == len(lse) == count
    for item, size in enumerate(batch.sizes):
        assert framework.dtype_of(out[item]) == dtype
        assert framework.dtype_of(lse[item]) == ("float64" if dtype == "float64" else "float32")
        assert tuple(out[item].shape) == (*size, batch.heads, batch.dims[1])
        assert tuple(lse[item].shape) == (*size, batch.heads)
        if 0 not in size:
            wanted = face(*(tensors[item][None] for tensors in given), **options, return_lse=True)
            for found, own in zip((out[item], lse[item]), wanted, strict=True):
                assert np.array_equal(framework.numpy(found), framework.numpy(own)[0])
    again = padded(*given, batch.argument, **options)
    assert all(np.array_equal(framework.numpy(a), framework.numpy(b)) for a, b in zip(again, out, strict=True))


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_gradients_of_a_list(path: Path) -> None:
    """The same values as those of the padded batch."""
    batch, framework = BATCHES[4], path.framework
    arrays, sizes = batch.arrays(), range(len(batch.sizes))
    tensors = [framework.tensor(a[inside(batch, item)][0]) for a in arrays for item in sizes]
    count = len(sizes)

    def call(*given: Any) -> Any:
        lists = [list(given[count * part : count * (part + 1)]) for part in range(3)]
        out, lse = framework.face("na2d_varlen")(*lists, None, **batch.window, return_lse=True, backend=path.backend)
        return (*out, *lse)

    _, gradients = framework.vjp(call, tensors[: 3 * count], tensors[3 * count :])
    arguments = batch.window | {"spatial_sizes": batch.argument}
    padded = run(path, "na2d_varlen", arrays, arguments, "float64")[2:]
    for number, gradient in enumerate(gradients):
        whole, item = padded[number // count], number % count
        np.testing.assert_allclose(framework.numpy(gradient), whole[inside(batch, item)][0], rtol=0, atol=1e-12)


def test_dense_differentiates_twice() -> None:
    import torch

    given = [torch.randn(2, 4, 1, 2, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    face = MPS.face("na1d_varlen")
    assert torch.autograd.gradgradcheck(lambda *t: face(*t, [4, 0], 2, backend="dense"), given, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda *t: face(*t, [3, 2], 2, backend="dense"), given, fast_mode=True)


def test_traced_sizes_in_mlx() -> None:
    """Arguments that mx.compile traces have no values, and the error says what to pass instead; ints and captured
    arrays have values.
    """
    import mlx.core as mx

    face, x = MLX.face("na1d_varlen"), MLX.tensor(np.random.default_rng(0).random((2, 9, 2, 4)), "float32")
    lengths = mx.array([9, 4])
    wanted = r"^na1d_varlen: seq_lens must be known .* give a list of ints$"
    for traced in (mx.compile(lambda x, n: face(x, x, x, n, 3)), mx.vmap(lambda x, n: face(x, x, x, n, 3), (None, 0))):
        with pytest.raises(ValueError, match=wanted):
            mx.eval(traced(x, mx.stack([lengths]) if traced.__name__ != "compile" else lengths))
    eager = face(x, x, x, lengths, 3)
    for sizes in ([9, 4], lengths, np.array([9, 4])):
        assert np.array_equal(np.array(mx.compile(lambda x, n=sizes: face(x, x, x, n, 3))(x)), np.array(eager))
    gradient = mx.grad(lambda x, n: face(x, x, x, n, 3).sum())(x, lengths)  # lengths have no gradient
    assert gradient.shape == x.shape
    lists = mx.compile(lambda x: MLX.face("attention")(x[:1], x[:1], x[:1], seqlens_Q=[4, 5], seqlens_KV=[9, 0]))(x)
    assert lists.shape == (1, 9, 2, 4)


@needs_mapped_padding
@pytest.mark.parametrize("backend", ["nanobind", "pure", "dense"])
def test_vmap_of_mlx(backend: str) -> None:
    """mx.vmap of the op and of its gradient, over all or some arrays."""
    import mlx.core as mx

    given = [MLX.tensor(np.random.default_rng(i).random((3, 2, 9, 2, 4)), "float64") for i in range(3)]
    call = lambda q, k, v: MLX.face("na1d_varlen")(q, k, v, [9, 4], 3, backend=backend)  # noqa: E731
    grad = mx.grad(lambda q, k, v: call(q, k, v).square().sum(), argnums=(0, 1, 2))
    for function, axes in ((call, (0, 0, 0)), (call, (None, 0, None)), (grad, (0, 0, 0))):
        own = [g if axis == 0 else g[0] for g, axis in zip(given, axes, strict=True)]
        found = mx.vmap(function, axes)(*own)
        rows = [[t if axis is None else t[i] for t, axis in zip(own, axes, strict=True)] for i in range(3)]
        wanted = [function(*row) for row in rows]
        pairs = (
            [(found, wanted)] if function is call else [(f, [each[i] for each in wanted]) for i, f in enumerate(found)]
        )
        for whole, parts in pairs:
            np.testing.assert_allclose(np.array(whole), np.array(mx.stack(parts)), rtol=0, atol=1e-12)
