"""Tokens that come one after another: with a cache, the results are those of one causal call on all of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from frameworks import FRAMEWORKS, OURS, PATHS, Framework, Path

Array = Any
ODD = (1, 7, 2, 64, 3, 1, 129, 5)  # lengths of chunks, repeated


def _stream(
    path: Path, arrays: dict[str, Array], cache: Any, lengths: tuple[int, ...], **more: Any
) -> dict[str, Array]:
    """out and lse of all tokens, computed chunk by chunk, and the largest capacity that the cache had."""
    framework, dtype = path.framework, "float32"
    outs, lses, capacities, first, turn = [], [], [], 0, 0
    while first < arrays["query"].shape[1]:
        chunk = slice(first, first + lengths[turn % len(lengths)])
        query, key, value = (framework.tensor(arrays[name][:, chunk], dtype) for name in ("query", "key", "value"))
        cache.append(key, value)
        with framework.watch() as ran:
            out, lse = cache.attend(query, return_lse=True, backend=path.backend, **more)
        assert ran == {path.backend}
        outs.append(framework.numpy(out))
        lses.append(framework.numpy(lse))
        capacities.append(cache.capacity)
        first, turn = chunk.stop, turn + 1
    return {"out": np.concatenate(outs, 1), "lse": np.concatenate(lses, 1), "capacity": max(capacities)}


def _tokens(length: int, rest: tuple[int, ...] = (), heads: int = 4, kv: int = 2, batch: int = 2) -> dict[str, Array]:
    random = np.random.default_rng([3, length, *rest])
    sizes = {"query": (heads, 8), "key": (kv, 8), "value": (kv, 6)}
    return {name: random.standard_normal((batch, length, *rest, *size)) for name, size in sizes.items()}


def _whole(path: Path, arrays: dict[str, Array], face: str, **arguments: Any) -> dict[str, Array]:
    framework = path.framework
    tensors = [framework.tensor(arrays[name], "float32") for name in ("query", "key", "value")]
    out, lse = framework.face(face)(*tensors, **arguments, return_lse=True, backend=path.backend)
    return {"out": framework.numpy(out), "lse": framework.numpy(lse)}


def _assert_same(found: dict[str, Array], whole: dict[str, Array]) -> None:
    for name, truth in whole.items():
        np.testing.assert_allclose(found[name], truth, rtol=0, atol=3e-6 * np.abs(truth).max())


@pytest.mark.parametrize(("window", "dilation"), [(33, 1), (8, 3)])
@pytest.mark.parametrize("lengths", [(1,), ODD], ids=["token by token", "odd chunks"])
@pytest.mark.parametrize("path", OURS, ids=str)
def test_2000_tokens(path: Path, lengths: tuple[int, ...], window: int, dilation: int) -> None:
    """The results equal those of one causal call, and the cache holds no more than the window needs."""
    if lengths == (1,) and path.backend == "pure" and dilation > 1:
        lengths = (1, 1, 3)
    arrays = _tokens(2000)
    cache = path.framework.package.KeyValueCache(window, dilation=dilation)
    found = _stream(path, arrays, cache, lengths)
    reach = (window - 1) * dilation
    assert cache.tokens == 2000 and found["capacity"] <= reach + max(reach, *lengths)
    _assert_same(found, _whole(path, arrays, "na1d", kernel_size=window, dilation=dilation, is_causal=True))


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_frames_of_a_video(path: Path) -> None:
    """Causal in time; the other axes are whole, with windows of their own."""
    arrays = _tokens(9, (6, 7), batch=1)
    window = {"kernel_size": (3, 5, 2), "stride": (1, 2, 1), "dilation": (2, 1, 3), "is_causal": (True, False, True)}
    cache = path.framework.package.KeyValueCache(**window)
    found = _stream(path, arrays, cache, (1, 2))
    _assert_same(found, _whole(path, arrays, "na3d", **window))


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_bias_and_additional_keys(path: Path) -> None:
    arrays, framework = _tokens(40), path.framework
    random = np.random.default_rng(9)
    more = {
        "rpb": framework.tensor(random.standard_normal((4, 13)), "float32"),
        "additional_keys": framework.tensor(random.standard_normal((2, 3, 2, 8)), "float32"),
        "additional_values": framework.tensor(random.standard_normal((2, 3, 2, 6)), "float32"),
    }
    found = _stream(path, arrays, framework.package.KeyValueCache(7), (4, 1, 9), **more)
    _assert_same(found, _whole(path, arrays, "na1d", kernel_size=7, is_causal=True, **more))


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_a_long_prompt_is_released(framework: Framework) -> None:
    """The buffers hold a prompt of any length, and shrink with the next token; reset() empties them."""
    cache = framework.package.KeyValueCache(16)
    key = framework.tensor(np.ones((1, 5000, 2, 4)), "float32")
    cache.append(key, key)
    assert cache.capacity == 5015
    cache.append(key[:, :1], key[:, :1])
    assert cache.capacity == 30 and cache.tokens == 5001
    cache.reset()
    assert cache.capacity == 0 and cache.tokens == 0


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_modules_take_a_cache(framework: Framework) -> None:
    """With a cache, a module computes its input chunk by chunk with the results of the whole input."""
    package = framework.package
    for kv_heads in (None, 2):
        module = package.NeighborhoodAttention1D(32, 4, 9, dilation=2, is_causal=True, num_kv_heads=kv_heads)
        x = framework.tensor(np.random.default_rng(2).standard_normal((2, 50, 32)), "float32")
        whole = framework.numpy(module(x))
        cache = package.KeyValueCache(module.kernel_size, dilation=module.dilation, is_causal=module.is_causal)
        parts = [module(x[:, at : at + 3], cache=cache) for at in range(0, 50, 3)]
        found = np.concatenate([framework.numpy(part) for part in parts], 1)
        np.testing.assert_allclose(found, whole, rtol=0, atol=2e-6)


ERRORS = [
    (
        {"kernel_size": 5, "is_causal": False},
        ValueError,
        "is_causal must hold for axis 0, along which the tokens arrive; got (False,)",
    ),
    (
        {"kernel_size": 5, "stride": 2},
        ValueError,
        (
            "stride must be 1 on axis 0: a larger one lets a query's window depend on tokens that have not arrived "
            "yet; got (2,)"
        ),
    ),
    ({"kernel_size": 0}, ValueError, "kernel_size must be at least 1; axis 0 has 0"),
    ({"kernel_size": (3, 3, 3, 3)}, ValueError, "the window must have 1, 2 or 3 axes; got 4"),
    ({"kernel_size": 2.5}, TypeError, "kernel_size must be an int or a sequence of 1 ints; got 2.5"),
]


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
@pytest.mark.parametrize(("arguments", "error", "text"), ERRORS)
def test_windows_that_cannot_stream(framework: Framework, arguments: dict[str, Any], error: type, text: str) -> None:
    with pytest.raises(error) as caught:
        framework.package.KeyValueCache(**arguments)
    assert str(caught.value) == f"KeyValueCache: {text}"


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_an_empty_chunk_is_the_newest(framework: Framework) -> None:
    """It holds no token that a query could be of, at the beginning and later; the tokens before stay."""
    cache, arrays = framework.package.KeyValueCache(5), _tokens(7)
    query, key, value = (framework.tensor(arrays[name], "float32") for name in ("query", "key", "value"))
    for first, end in ((0, 3), (3, 7)):
        cache.append(key[:, :0], value[:, :0])
        assert cache.tokens == first
        with pytest.raises(ValueError, match="query must hold tokens of the newest chunk, at most 0; got 3"):
            cache.attend(query[:, :3])
        with pytest.raises(ValueError) as caught:
            cache.attend(query[:, :0])
        assert str(caught.value) == "KeyValueCache.attend: query shape must not be zero; got (0,)"
        cache.append(key[:, first:end], value[:, first:end])
        out = framework.numpy(cache.attend(query[:, first:end]))
    whole = framework.numpy(framework.face("na1d")(query, key, value, 5, is_causal=True))
    np.testing.assert_allclose(out, whole[:, 3:], rtol=0, atol=3e-6)


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_chunks_that_do_not_fit(framework: Framework) -> None:
    def tokens(*shape: int, dtype: str = "float32") -> Any:
        return framework.tensor(np.ones(shape), dtype)

    cache = framework.package.KeyValueCache(5)
    with pytest.raises(ValueError) as caught:
        cache.attend(tokens(1, 1, 2, 4))
    assert str(caught.value) == (
        "KeyValueCache.attend: query must hold tokens of the newest chunk, at most 0; got 1. "
        "Append the keys and values of the tokens first"
    )
    cache.append(tokens(1, 3, 2, 4), tokens(1, 3, 2, 4))
    with pytest.raises(ValueError) as caught:
        cache.append(tokens(2, 3, 2, 4), tokens(2, 3, 2, 4))
    assert str(caught.value) == (
        "KeyValueCache.append: key must have the sizes of the earlier tokens, except on axis 0; "
        "got (2, 3, 2, 4) after (1, 'any', 2, 4)"
    )
    with pytest.raises(TypeError) as wrong:
        cache.append(tokens(1, 3, 2, 4, dtype="float16"), tokens(1, 3, 2, 4, dtype="float16"))
    assert str(wrong.value) == (
        "KeyValueCache.append: key and the earlier tokens must share one dtype; got float16 and float32"
    )
    with pytest.raises(ValueError) as caught:
        cache.append(tokens(1, 2, 2, 4), tokens(1, 3, 2, 4))
    assert str(caught.value) == (
        "KeyValueCache.append: key and value must share one batch, shape and number of heads; "
        "got (1, 2, 2) and (1, 3, 2)"
    )
    assert cache.tokens == 3
