"""Packed attention: concatenated sequences, each computed independently."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from frameworks import FRAMEWORKS, PATHS, Framework, Path

Array = Any


@dataclass(frozen=True)
class Pack:
    """Lengths of the packed sequences, and trailing tokens that belong to none."""

    name: str
    queries: tuple[int, ...]
    keys: tuple[int, ...]
    arguments: dict[str, Any]
    heads: int = 2
    kv_heads: int = 2
    dims: tuple[int, int] = (4, 4)
    behind: tuple[int, int] = (0, 0)

    def __str__(self) -> str:
        return self.name

    def arrays(self) -> list[Array]:
        """query, key, value, and cotangents of out and lse."""
        random, (d, d_v) = np.random.default_rng(len(self.name)), self.dims
        s, t = sum(self.queries) + self.behind[0], sum(self.keys) + self.behind[1]
        shapes = [(1, s, self.heads, d), (1, t, self.kv_heads, d), (1, t, self.kv_heads, d_v)]
        shapes += [(1, s, self.heads, d_v), (1, s, self.heads)]
        return [random.standard_normal(shape) for shape in shapes]

    def offsets(self) -> tuple[list[int], list[int]]:
        return [0, *np.cumsum(self.queries).tolist()], [0, *np.cumsum(self.keys).tolist()]


PACKS = (
    Pack("one", (7,), (7,), {}),
    Pack("equal sizes", (3, 5, 3, 3), (3, 5, 3, 3), {"is_causal": True}),
    Pack("cross", (4, 2, 4), (3, 6, 5), {"scale": 0.3}, 4, 2, (5, 3)),
    Pack("causal cross", (4, 2), (3, 6), {"is_causal": True}, 2, 1),
    Pack("empty ones", (3, 0, 4, 0, 2), (3, 2, 0, 0, 4), {}),
    Pack("tails", (3, 2), (2, 4), {}, behind=(2, 3)),
    Pack("nothing at all", (0, 0), (0, 3), {}, behind=(2, 1)),
)


def gradients(path: Path, op: Any, arrays: list[Array], **arguments: Any) -> list[Array]:
    """out, lse, and the gradients of query, key and value."""
    framework = path.framework
    tensors = [framework.tensor(a, "float64") for a in arrays]

    def call(*given: Any) -> Any:
        return op(*given, **arguments, return_lse=True, backend=path.backend)

    with framework.watch() as ran:
        found = framework.vjp(call, tensors[:3], tensors[3:])
    assert ran <= {path.backend}
    return [framework.numpy(tensor) for part in found for tensor in part]


@pytest.mark.parametrize("how", ["lengths", "cumulative"])
@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("pack", PACKS, ids=str)
def test_sequences_are_independent(pack: Pack, path: Path, how: str) -> None:
    """Results and gradients are those of a call for each sequence; tails and queries without keys give out 0 and lse
    -inf.
    """
    framework, arrays = path.framework, pack.arrays()
    op = framework.face("attention")
    if how == "lengths":
        given = {
            "seqlens_Q": framework.tensor(np.array(pack.queries), "int32"),
            "seqlens_KV": framework.tensor(np.array(pack.keys), "int32"),
        }
    else:
        made = framework.face("generate_varlen_parameters")(
            *(framework.tensor(a, "float32") for a in arrays[:3]), list(pack.queries), list(pack.keys)
        )
        for cumulative, wanted in zip(made[:2], pack.offsets(), strict=True):
            assert framework.dtype_of(cumulative) == "int32" and framework.numpy(cumulative).tolist() == wanted
        assert made[2:] == (max(pack.queries), max(pack.keys))
        names = ("cumulative_seqlen_Q", "cumulative_seqlen_KV", "max_seqlen_Q", "max_seqlen_KV")
        given = dict(zip(names, made, strict=True))
    found = gradients(path, op, arrays, **pack.arguments, **given)
    expected = [np.zeros_like(a) for a in found]
    expected[1][:] = -np.inf
    rows, columns = pack.offsets()
    for i, (count, keys) in enumerate(zip(pack.queries, pack.keys, strict=True)):
        if not count or not keys:
            continue
        q, k = slice(rows[i], rows[i + 1]), slice(columns[i], columns[i + 1])
        parts = [a[:, part] for a, part in zip(arrays, (q, k, k, q, q), strict=True)]
        own = gradients(path, op, parts, **pack.arguments)
        for whole, part, tokens in zip(expected, own, (q, q, q, k, k), strict=True):
            whole[:, tokens] = part
    for what, a, b in zip(("out", "lse", "query", "key", "value"), found, expected, strict=True):
        assert np.array_equal(a == -np.inf, b == -np.inf), what
        np.testing.assert_allclose(np.nan_to_num(a, neginf=0), np.nan_to_num(b, neginf=0), atol=1e-12, err_msg=what)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_dtypes_and_arguments_by_position(framework: Framework, dtype: str) -> None:
    """Arguments in upstream's order; lse is returned only if asked for; tokens outside all sequences are not read."""
    pack = PACKS[5]
    arrays = pack.arrays()[:3]
    for array, count in zip(arrays, (5, 6, 6), strict=True):
        array[:, count:] = np.nan
    tensors = [framework.tensor(a, dtype) for a in arrays]
    attention = framework.face("attention")
    out = attention(*tensors, True, 0.5, list(pack.queries), list(pack.keys))
    again, lse = attention(*tensors, True, 0.5, None, None, *pack.offsets(), 3, 4, return_lse=True)
    assert framework.dtype_of(out) == dtype and framework.dtype_of(lse) == "float32"
    values = framework.numpy(out)
    assert np.array_equal(values, framework.numpy(again)) and np.isfinite(values).all()
    assert values[:, :5].any() and not values[:, 5:].any()
    generic = framework.module("compat.v021").attention(*tensors, True, 0.5, list(pack.queries), list(pack.keys))
    assert np.array_equal(framework.numpy(generic), values)


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_without_lengths(framework: Framework) -> None:
    """Nothing is packed, and arguments that say that are accepted."""
    query = framework.tensor(np.random.default_rng(0).random((2, 3, 1, 4)), "float32")
    made = framework.face("generate_varlen_parameters")(query, query, query, None, None)
    assert made == (None, None, 0, 0)
    attention = framework.face("attention")
    assert np.array_equal(
        framework.numpy(attention(query, query, query, False, None, None, None, *made)),
        framework.numpy(attention(query, query, query)),
    )
    one = framework.tensor(np.ones((1, 3, 1, 4)), "float32")
    with pytest.raises(ValueError, match="cumulative_seqlen_Q is missing"):
        attention(one, one, one, max_seqlen_Q=3, max_seqlen_KV=0)


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_lengths_take_precedence(framework: Framework) -> None:
    """Over cumulative lengths that contradict them."""
    tensor = framework.tensor(np.random.default_rng(0).random((1, 7, 2, 4)), "float32")
    attention = framework.face("attention")
    both = attention(tensor, tensor, tensor, **{**OFFSETS, **LENGTHS, "cumulative_seqlen_Q": [0, 1, 7]})
    assert np.array_equal(framework.numpy(both), framework.numpy(attention(tensor, tensor, tensor, **LENGTHS)))


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_parameters_of_things_that_are_no_tensors(framework: Framework) -> None:
    query = framework.tensor(np.ones((1, 7, 1, 4)), "float32")
    generate = framework.face("generate_varlen_parameters")
    with pytest.raises(TypeError, match=r"^generate_varlen_parameters: key must be a tensor of this package's"):
        generate(query, [query], query, [7], [7])
    with pytest.raises(
        ValueError, match=r"^generate_varlen_parameters: seqlens_KV must not be negative; item 1 has -1"
    ):
        generate(query, query, query, [3, 4], [3, -1])


LENGTHS = {"seqlens_Q": [3, 4], "seqlens_KV": [2, 5]}
OFFSETS = {"cumulative_seqlen_Q": [0, 3, 7], "cumulative_seqlen_KV": [0, 2, 7], "max_seqlen_Q": 4, "max_seqlen_KV": 5}
FOUR = "cumulative_seqlen_Q, cumulative_seqlen_KV, max_seqlen_Q and max_seqlen_KV"
BROKEN = (
    (LENGTHS | {"seqlens_KV": None}, ValueError, "seqlens_Q and seqlens_KV come together; seqlens_KV is missing"),
    (OFFSETS | {"max_seqlen_Q": None}, ValueError, f"{FOUR} come together; max_seqlen_Q is missing"),
    (
        LENGTHS | {"seqlens_KV": [7]},
        ValueError,
        "seqlens_Q and seqlens_KV must hold equally many sequences; got 2 and 1",
    ),
    (
        LENGTHS | {"seqlens_Q": [3, 5]},
        ValueError,
        "seqlens_Q must not exceed the packed length 7; they end at 8, and item 1 at 8",
    ),
    (LENGTHS | {"seqlens_Q": [3, -1]}, ValueError, "seqlens_Q must not be negative; item 1 has -1"),
    (LENGTHS | {"seqlens_Q": []}, ValueError, "seqlens_Q must hold at least one sequence"),
    (LENGTHS | {"seqlens_Q": [3, 4.0]}, TypeError, "seqlens_Q must be ints of shape (sequences,); item 1 is 4.0"),
    (
        LENGTHS | {"seqlens_Q": [[3], [4]]},
        ValueError,
        "seqlens_Q must be ints of shape (sequences,); got lists in a list",
    ),
    (
        LENGTHS | {"seqlens_Q": np.array([3.0, 4.0])},
        TypeError,
        "seqlens_Q must be ints of shape (sequences,); item 0 is 3.0",
    ),
    (LENGTHS | {"seqlens_Q": 7}, TypeError, "seqlens_Q must be ints of shape (sequences,); got 7"),
    (
        OFFSETS | {"cumulative_seqlen_Q": [1, 3, 7]},
        ValueError,
        "cumulative_seqlen_Q must begin with 0 and hold at least one sequence; got [1, 3, 7]",
    ),
    (
        OFFSETS | {"cumulative_seqlen_KV": [0, 8, 7]},
        ValueError,
        "cumulative_seqlen_KV must not decrease; item 1 goes from 8 to 7",
    ),
    (
        OFFSETS | {"cumulative_seqlen_KV": [0, 8, 9]},
        ValueError,
        "cumulative_seqlen_KV must not exceed the packed length 7; they end at 9, and item 0 at 8",
    ),
    (
        OFFSETS | {"max_seqlen_Q": 3},
        ValueError,
        "max_seqlen_Q must lie between the longest sequence, 4, and the packed length 7; got 3",
    ),
    (
        OFFSETS | {"max_seqlen_KV": 8},
        ValueError,
        "max_seqlen_KV must lie between the longest sequence, 5, and the packed length 7; got 8",
    ),
    (OFFSETS | {"max_seqlen_KV": 5.0}, TypeError, "max_seqlen_KV must be an int; got 5.0"),
)


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
@pytest.mark.parametrize(("given", "error", "words"), BROKEN, ids=range(len(BROKEN)))
def test_errors(given: dict[str, Any], error: type[Exception], words: str, framework: Framework) -> None:
    """In full, and the same text in both packages."""
    tensor = framework.tensor(np.ones((1, 7, 2, 4)), "float32")
    with pytest.raises(error) as caught:
        framework.face("attention")(tensor, tensor, tensor, **given)
    assert str(caught.value) == f"attention: {words}"


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_more_than_one_batch_item(framework: Framework) -> None:
    tensor = framework.tensor(np.ones((2, 7, 2, 4)), "float32")
    with pytest.raises(ValueError, match=r"^attention: query must have one batch item, the packed one; got 2$"):
        framework.face("attention")(tensor, tensor, tensor, **LENGTHS)
    with pytest.raises(ValueError, match=r"parameters: query must have one batch item, the packed one; got 2$"):
        framework.face("generate_varlen_parameters")(tensor, tensor, tensor, **LENGTHS)
    with pytest.raises(ValueError, match=r"^generate_varlen_parameters: seqlens_Q and seqlens_KV come together"):
        framework.face("generate_varlen_parameters")(tensor, tensor, tensor, [1])
