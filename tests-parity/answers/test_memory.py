"""Memory is O(N): the peak of forward and backward above inputs, outputs and gradients, in fresh processes.

The process's high-water mark includes every allocator: the frameworks' and the C++ kernels'.
"""

from __future__ import annotations

import gc
import time
from typing import Any

import numpy as np
import pytest
from frameworks import FRAMEWORKS, MLX, Framework
from process_memory import in_a_fresh_process, memory

LIMIT = 1 << 30

# name -> face, shape of [1, *shape, heads, dim] tensors in float32, kernel_size
LARGE = {
    "sequence of 65536": ("na1d", (1, 65536, 4, 64), 127),
    "image of 256 x 256": ("na2d", (1, 256, 256, 4, 64), 13),
}


def measure(path: str, face: str, shape: list[int], kernel_size: int, passes: list[str]) -> dict[str, Any]:
    """Peak bytes of "forward" alone and of forward and "backward" on a backend, "mps-pure", one after the other.

    extra: above the results; both are relative to the memory before.
    """
    import frameworks

    framework, backend = next((each.framework, each.backend) for each in frameworks.PATHS if str(each) == path)
    warm = [1, *(kernel_size + 1 for _ in shape[1:-2]), *shape[-2:]]
    tensor = 4 * shape[0] * _product(shape[1:])
    kept = {"forward": tensor + tensor // shape[-1], "backward": 4 * tensor + tensor // shape[-1]}
    found: dict[str, Any] = {}
    for size in (warm, shape):
        given = random(framework, size)
        before, began = memory(), time.monotonic()
        for which in passes:
            results = run(framework, backend, face, given, kernel_size, which == "backward")
            peak = memory()["peak"] - before["now"]
            found[which] = {"peak": peak, "extra": peak - kept[which]}
            del results
        found["seconds"] = time.monotonic() - began
    return found


def _product(sizes: list[int]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total


def random(framework: Any, size: list[int]) -> list[Any]:
    """query, key, value and the output's cotangent, in memory."""
    if framework.name == "mps":
        import torch

        torch.set_num_threads(1)
        return [torch.randn(size) for _ in range(4)]
    import mlx.core as mx

    given = [mx.random.normal(size, stream=mx.cpu) for _ in range(4)]
    mx.eval(given)
    return given


def run(framework: Any, backend: str, face: str, given: list[Any], kernel_size: int, backward: bool) -> Any:
    """The results, which the caller keeps alive."""

    def attend(*tensors: Any) -> tuple[Any, ...]:
        found: tuple[Any, ...] = framework.face(face)(*tensors, kernel_size, backend=backend, return_lse=True)
        return found[:1] if backward else found

    with framework.watch() as ran:
        found = framework.vjp(attend, given[:3], given[3:]) if backward else attend(*given[:3])
        framework.evaluate(*(() if backward else found))
    assert ran == {backend}
    return found


def measured(path: str, face: str, shape: tuple[int, ...], kernel_size: int, *passes: str) -> dict[str, Any]:
    """:func:`measure` in a fresh process."""
    call = f"measure({path!r}, {face!r}, {list(shape)!r}, {kernel_size!r}, {list(passes)!r})"
    found: dict[str, Any] = in_a_fresh_process("test_memory", call)
    extra = ", ".join(f"{found[which]['extra'] / 2**20:.1f} MiB extra {which}" for which in passes)
    print(f"{path} {face} {shape}: {extra}, {found['seconds']:.1f} s")
    return found


def slow(path: str) -> Any:
    return pytest.param(path, marks=pytest.mark.all)


@pytest.mark.parametrize("path", ["mps-pure", *map(slow, ("mps-native", "mlx-pure", "mlx-nanobind"))])
@pytest.mark.parametrize("problem", LARGE)
def test_a_large_problem_takes_less_than_a_gibibyte(problem: str, path: str) -> None:
    found = measured(path, *LARGE[problem], "backward")["backward"]
    assert found["peak"] > 0 and found["extra"] < LIMIT, found


@pytest.mark.parametrize("path", ["mps-pure", "mlx-pure"])
def test_memory_grows_with_the_tokens(path: str) -> None:
    """Twice the tokens take at most about twice the memory. Quadratic logits would take 4 GiB."""
    small, large = (
        measured(path, "na1d", (1, tokens, 4, 16), 63, "backward")["backward"]["extra"] for tokens in (8192, 16384)
    )
    assert large < max(2.2 * small, 96 << 20), (small, large)


@pytest.mark.parametrize("path", ["mps-native", "mlx-nanobind"])
@pytest.mark.parametrize("face", ["na2d", pytest.param("na1d", marks=pytest.mark.all)])
def test_the_compiled_kernels_keep_no_logits(face: str, path: str) -> None:
    """Besides inputs and results they need a fraction of the memory of the window's logits, and four times the tokens
    take four times the memory.
    """
    heads, kernel_size, peaks = 4, {"na1d": 169, "na2d": 13}[face], []
    for side in (128, 256):
        shape = {"na1d": (1, side * side, heads, 16), "na2d": (1, side, side, heads, 16)}[face]
        found = measured(path, face, shape, kernel_size, "forward", "backward")
        logits = 4 * heads * 169 * side * side
        for which in ("forward", "backward"):
            # Nor may it be far below 0: the peak has to include the results.
            assert abs(found[which]["extra"]) < logits / 8, found
        peaks.append(found)
    for which in ("forward", "backward"):
        small, large = (found[which]["peak"] for found in peaks)
        # Memory that the process freed earlier and reuses is not counted: a few MiB of the tens that are measured.
        assert large < 4.4 * small + (4 << 20), peaks


@pytest.mark.parametrize("path", [slow("mps-dense"), "mlx-dense"])
def test_what_frameworks_allocate_is_seen(path: str) -> None:
    """The logits of all pairs of 4096 tokens."""
    found = measured(path, "na2d", (1, 64, 64, 4, 16), 13, "forward")["forward"]
    assert found["extra"] > 4 * 4 * 4096**2, found


# face, number of its tensors (in a list: of its lists of tensors), other arguments
KINDS: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "fused": ("na1d", 3, {"kernel_size": 7}),
    "full": ("attention", 3, {}),
    "packed": ("attention", 3, {"seqlens_Q": [1000, 1048], "seqlens_KV": [1000, 1048]}),
    "padded": ("na1d_varlen", 3, {"seq_lens": [2048], "kernel_size": 7}),
    "listed": ("na1d_varlen", [3], {"seq_lens": None, "kernel_size": 7}),
    "logits": ("na1d_qk", 2, {"kernel_size": 7}),
}
LONG = (1, 2048, 2, 16)


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_call_keeps_none_of_its_tensors(kind: str, framework: Framework) -> None:
    """Forward and gradients of several calls: nothing that is kept between calls refers to their tensors."""
    face, count, arguments = KINDS[kind]
    alive: list[int] = []
    for _ in range(4):
        listed = isinstance(count, list)
        number = count[0] if isinstance(count, list) else count
        shape = LONG[1:] if listed else LONG
        given = [framework.tensor(np.ones(shape), "float32") for _ in range(number)]

        def call(*tensors: Any, listed: bool = listed) -> Any:
            found = framework.face(face)(*([t] if listed else t for t in tensors), **arguments)
            return (found[0] if listed else found,)

        results, gradients = framework.vjp(call, given, [framework.tensor(np.ones(out_shape(kind)), "float32")])
        assert len(gradients) == number
        del given, results, gradients, call
        gc.collect()
        alive.append(living_bytes(framework))
    assert max(alive[1:]) <= alive[0] + np.prod(LONG), alive


def out_shape(kind: str) -> tuple[int, ...]:
    return {"listed": LONG[1:], "logits": (*LONG[:-1], 7)}.get(kind, LONG)


def living_bytes(framework: Framework) -> int:
    """Bytes of all tensors that are still referred to."""
    if framework is MLX:
        import mlx.core as mx

        return int(mx.get_active_memory())
    import torch

    tensors = [each for each in gc.get_objects() if type(each) is torch.Tensor]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())
