"""Packed items of several axes, each with its own shape and window: configured once, run many times."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from frameworks import FRAMEWORKS, PATHS, Framework, Path

Array = Any
# token_layout_list, the common window, lists of windows, heads of query and key, tokens after the last item.
CASES: dict[str, tuple[list[tuple[int, ...]], dict[str, Any], dict[str, Any], tuple[int, int], int]] = {
    "one window": ([(5,), (9,), (5,)], {"kernel_size": 3, "dilation": 1, "is_causal": True}, {}, (2, 2), 0),
    "a window each": (
        [(4, 5), (6, 3), (4, 5), (3, 3)],
        {"is_causal": (False, True)},
        {
            "kernel_size_list": [(3, 2), (2, 3), (4, 5), 1],
            "stride_list": [(1, 2), (2, 1), 1, 1],
            "dilation_list": [(1, 2), (3, 1), (1, 1), (3, 3)],
        },
        (4, 2),
        3,
    ),
    "empty ones": ([(0, 4), (3, 4), (2, 0)], {"kernel_size": (3, 2)}, {}, (2, 1), 1),
    "volumes": ([(2, 3, 4), (3, 3, 3)], {"kernel_size": 2}, {"dilation_list": [(1, 1, 2), 1]}, (2, 2), 0),
    "nothing": ([(0,), (0,)], {"kernel_size": 3}, {}, (2, 2), 2),
}


def module(framework: Framework) -> Any:
    return framework.module("varlen")


def arrays_of(name: str) -> list[Array]:
    """query, key, value, and cotangents of out and lse."""
    layouts, _, _, (heads, kv_heads), behind = CASES[name]
    tokens, random = sum(map(math.prod, layouts)) + behind, np.random.default_rng(len(name))
    shapes = [(heads, 4), (kv_heads, 4), (kv_heads, 3), (heads, 3), (heads,)]
    return [random.standard_normal((1, tokens, *shape)) for shape in shapes]


def window_of(name: str, item: int) -> dict[str, Any]:
    """An item's own window."""
    _, window, lists, _, _ = CASES[name]
    return window | {what.removesuffix("_list"): each[item] for what, each in lists.items()}


def gradients(path: Path, call: Any, arrays: list[Array]) -> list[Array]:
    """out, lse, and the gradients of query, key and value."""
    framework = path.framework
    tensors = [framework.tensor(a, "float64") for a in arrays]
    with framework.watch() as ran:
        found = framework.vjp(call, tensors[:3], tensors[3:])
    assert ran <= {path.backend}
    return [framework.numpy(tensor) for part in found for tensor in part]


@pytest.mark.parametrize("configured", [True, False], ids=["configured", "at once"])
@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_items_are_independent(name: str, path: Path, configured: bool) -> None:
    """Results and gradients equal those of a call for each item; tokens after the last give 0 and -inf."""
    layouts, window, lists, _, _ = CASES[name]
    varlen, arrays, options = module(path.framework), arrays_of(name), {"return_lse": True, "backend": path.backend}
    if configured:
        metadata = varlen.configure_varlen(layouts, 4, None, None, True, **window, **lists)
        options |= {"metadata": metadata}
    else:
        options |= {"token_layout_list": layouts, **window, **lists}
    found = gradients(path, lambda *t: varlen.neighborhood_attention_varlen(*t, **options), arrays)
    wanted = [np.zeros_like(a) for a in found]
    wanted[1][:] = -np.inf
    start = 0
    for item, layout in enumerate(layouts):
        tokens, start = slice(start, start + math.prod(layout)), start + math.prod(layout)
        if 0 in layout:
            continue
        face, own_window = path.framework.face(f"na{len(layout)}d"), window_of(name, item)
        own = [a[:, tokens].reshape(1, *layout, *a.shape[2:]) for a in arrays]

        def call(*tensors: Any, face: Any = face, window: dict[str, Any] = own_window) -> Any:
            return face(*tensors, **window, return_lse=True, backend=path.backend)

        for whole, part in zip(wanted, gradients(path, call, own), strict=True):
            whole[:, tokens] = part.reshape(1, -1, *part.shape[1 + len(layout) :])
    for what, a, b in zip(("out", "lse", "query", "key", "value"), found, wanted, strict=True):
        assert np.array_equal(a == -np.inf, b == -np.inf), what
        np.testing.assert_allclose(np.nan_to_num(a, neginf=0), np.nan_to_num(b, neginf=0), atol=1e-12, err_msg=what)


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_dtypes_scale_and_upstreams_arguments(framework: Framework) -> None:
    """By upstream's names and positions; arguments that tune its kernels are ignored."""
    layouts, window, lists, _, _ = CASES["a window each"]
    varlen, arrays = module(framework), arrays_of("a window each")[:3]
    for dtype in ("float32", "float16", "bfloat16"):
        tensors = [framework.tensor(a, dtype) for a in arrays]
        metadata = varlen.configure_varlen(
            token_layout_list=layouts,
            head_dim=4,
            head_dim_v=3,
            device=None,
            dtype=tensors[0].dtype,
            requires_grad=False,
            kernel_size=None,
            **window,
            **lists,
            q_tile_shape=(8, 8),
            run_persistent_kernel=True,
        )
        out = varlen.neighborhood_attention_varlen(*tensors, metadata, scale=0.25)
        again, lse = varlen.neighborhood_attention_varlen(
            *tensors, None, layouts, **window, **lists, scale=0.25, return_lse=True, backend="blackwell-fna"
        )
        assert framework.dtype_of(out) == dtype and framework.dtype_of(lse) == "float32"
        assert np.array_equal(framework.numpy(out), framework.numpy(again))
        other = varlen.neighborhood_attention_varlen(*tensors, metadata)
        assert not np.array_equal(framework.numpy(out), framework.numpy(other))


LAYOUT = "token_layout_list must be a list of tuples of 1, 2 or 3 ints, all of one length"
BROKEN: tuple[tuple[dict[str, Any], type[Exception], str], ...] = (
    ({"token_layout_list": None}, TypeError, f"{LAYOUT}; got None"),
    ({"token_layout_list": []}, ValueError, "token_layout_list must hold at least one layout"),
    ({"token_layout_list": [(2, 3), (4,)]}, ValueError, f"{LAYOUT}; item 1 is [4]"),
    ({"token_layout_list": [(1, 2, 3, 4)]}, ValueError, f"{LAYOUT}; item 0 is [1, 2, 3, 4]"),
    ({"token_layout_list": [(2, 3.5)]}, TypeError, f"{LAYOUT}; item 0 is [2, 3.5]"),
    ({"token_layout_list": [(3, 3), (-2, 3)]}, ValueError, "token_layout_list must not be negative; item 1 is (-2, 3)"),
    ({"kernel_size": None}, ValueError, "kernel_size or kernel_size_list must be given"),
    (
        {"token_layout_list": [(4, 3)], "kernel_size": 4},
        ValueError,
        "item 0: kernel_size * dilation must not exceed the axis length; axis 1 has 4 * 1 = 4 > 3",
    ),
    (
        {"kernel_size_list": [3, 5]},
        ValueError,
        "item 1: kernel_size * dilation must not exceed the axis length; axis 1 has 5 * 1 = 5 > 4",
    ),
    ({"kernel_size_list": [3]}, ValueError, "kernel_size_list must have one entry per item (2); got 1"),
    ({"kernel_size_list": 3}, TypeError, "kernel_size_list must be a list of 2, one for each item, or None; got 3"),
    ({"stride_list": [1, (2, 1, 1)]}, ValueError, "stride_list[1] must have one entry per axis (2); got (2, 1, 1)"),
    ({"dilation_list": [1, 2.0]}, TypeError, "dilation_list[1] must be an int or a sequence of 2 ints; got 2.0"),
    ({"stride_list": [1, 4]}, ValueError, "item 1: stride must not exceed kernel_size; axis 0 has 4 > 3"),
    ({"is_causal": 1}, TypeError, "is_causal must be a bool or a sequence of 2 bools; got 1"),
    ({"turbo": 1}, TypeError, "got an unexpected keyword argument 'turbo'"),
)


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
@pytest.mark.parametrize(("given", "error", "words"), BROKEN, ids=range(len(BROKEN)))
def test_errors_of_configuring(given: dict[str, Any], error: type[Exception], words: str, framework: Framework) -> None:
    """In full, with the same text in both packages, naming the item that breaks the rule."""
    arguments: dict[str, Any] = {"token_layout_list": [(3, 3), (5, 4)], "kernel_size": 3}
    with pytest.raises(error) as caught:
        module(framework).configure_varlen(**arguments | given)
    assert str(caught.value) == f"configure_varlen: {words}"


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_errors_of_running(path: Path) -> None:
    framework, varlen = path.framework, module(path.framework)
    tensor, layouts = framework.tensor(np.ones((1, 12, 2, 4)), "float32"), [(3, 3), (2, 2)]
    metadata = varlen.configure_varlen(layouts, kernel_size=2)
    face = "neighborhood_attention_varlen"

    def call(*tensors: Any, **arguments: Any) -> Any:
        found = varlen.neighborhood_attention_varlen(*tensors, **{"backend": path.backend} | arguments)
        framework.evaluate(found)

    ends = "token_layout_list must not exceed the packed length 12; it ends at 13, and item 1 at 13"
    with pytest.raises(ValueError, match=f"^{face}: {ends}$"):
        call(tensor, tensor, tensor, metadata=metadata)
    with pytest.raises(ValueError, match=f"^{face}: give metadata or token_layout_list, not both$"):
        call(tensor, tensor, tensor, metadata=metadata, token_layout_list=layouts)
    with pytest.raises(TypeError, match=f"^{face}: metadata must be a dict that configure_varlen made; got 3$"):
        call(tensor, tensor, tensor, metadata=3)
    with pytest.raises(ValueError, match=f"^{face}: metadata must be .* got one with rank$"):
        call(tensor, tensor, tensor, metadata={"rank": 1})
    two = framework.tensor(np.ones((2, 13, 2, 4)), "float32")
    with pytest.raises(ValueError, match=f"^{face}: query must have one batch item, the packed one; got 2$"):
        call(two, two, two, metadata=metadata)
    with pytest.raises(ValueError, match=f"^{face}: unknown backend 'warp'"):
        call(tensor, tensor, tensor, metadata=metadata, backend="warp")
