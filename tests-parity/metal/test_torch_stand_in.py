"""The stand-in for ``torch.mps.compile_shader`` itself: what it binds, how it launches, and what it rejects."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from .host import DTYPES, EmulatedHost, EmulatedLibrary, KernelDefect

pytestmark = pytest.mark.usefixtures("emulator")
MAX_THREADS = 1024

SOURCE = """#include <metal_stdlib>
using namespace metal;
kernel void word(device uint* out [[buffer(0)]], constant uint* given [[buffer(1)]], constant long& at [[buffer(2)]]) {
  out[0] = given[at];
}
kernel void bytes(const device uchar* given [[buffer(0)]], device uchar* out [[buffer(1)]],
                  uint at [[thread_position_in_grid]]) {
  out[at] = given[at];
}
kernel void places(device uint* out [[buffer(0)]], uint3 at [[thread_position_in_grid]],
                   uint3 all [[threads_per_grid]], uint3 group [[threadgroup_position_in_grid]]) {
  out[(at.z * all.y + at.y) * all.x + at.x] = (group.z * 100 + group.y) * 100 + group.x;
}
"""


@pytest.fixture
def host() -> EmulatedHost:
    return EmulatedHost()


@pytest.fixture
def library(host: EmulatedHost) -> EmulatedLibrary:
    return host.compile_shader(SOURCE)


def words(library: EmulatedLibrary, given: Any, count: int) -> list[int]:
    """The 32-bit words of a non-tensor argument as a kernel reads them, and no more."""
    found = []
    for at in range(count + 1):
        out = torch.empty(1, dtype=torch.int32)
        if at == count:
            with pytest.raises(KernelDefect, match="out of bounds"):
                library.word(out, given, at)
        else:
            library.word(out, given, at)
            found.append(out.item() % 2**32)
    return found


# --- arguments ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (7, [7, 0]),
        (2**40 + 3, [3, 256]),
        (-1, [2**32 - 1] * 2),
        (True, [1, 0]),
        (1.5, [0x3FC00000]),
        ([1, 2], [1, 0, 2, 0]),
        ((1.0, -2.0), [0x3F800000, 0xC0000000]),
    ],
)
def test_numbers(library: EmulatedLibrary, given: Any, wanted: list[int]) -> None:
    """Integers and booleans have 64 bits, floats 32, alone and in lists."""
    assert words(library, given, len(wanted)) == wanted


@pytest.mark.parametrize(("value", "count"), [(1, 512), (1.0, 1024)])
def test_arguments_by_value_are_small(library: EmulatedLibrary, host: EmulatedHost, value: float, count: int) -> None:
    out = torch.empty(1, dtype=torch.int32)
    library.word(out, [value] * count, 0)
    with pytest.raises(ValueError, match=r"bytes by value; at most 4096"):
        library.word(out, [value] * (count + 1), 0)
    assert len(host.launches) == 1


def test_strides_of_tensors_are_ignored(library: EmulatedLibrary) -> None:
    """A tensor is only the address of its first element; memory is read in order from there."""
    x = torch.arange(24, dtype=torch.uint8).reshape(4, 6)
    for view, first in ((x.t(), 0), (x[1:, 2:], 8), (x[:, ::2], 0), (x[0].expand(2, 6), 0)):
        out = torch.empty(8, dtype=torch.uint8)
        library.bytes(view, out, threads=8)
        assert out.tolist() == list(range(first, first + 8))
    out = torch.zeros(4, 4, dtype=torch.uint8)
    library.bytes(x, out[:, 1], threads=3)
    assert out.flatten().tolist() == [0, 0, 1, 2, *[0] * 12]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_elements_keep_their_bits(library: EmulatedLibrary, dtype: torch.dtype) -> None:
    given = torch.tensor([0, 1, 1, 0, 1], dtype=dtype)
    raw = given.view(torch.uint8)
    out = torch.empty_like(raw)
    library.bytes(given[1:], out, threads=4 * given.element_size())
    assert torch.equal(out[: 4 * given.element_size()], raw[given.element_size() :])


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64, torch.complex128], ids=str)
def test_dtypes_that_metal_does_not_have(library: EmulatedLibrary, host: EmulatedHost, dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=f"^Metal has no {dtype}$"):
        library.bytes(torch.zeros(4, dtype=dtype), torch.empty(4, dtype=torch.uint8))
    assert not host.launches


def test_new_memory_is_uninitialised(library: EmulatedLibrary) -> None:
    """Reading what ``torch.empty`` allocated before it is written is a fault, and so is reading past the memory."""
    both = "kernel void twice(device float* out [[buffer(0)]]) { out[0] = out[0] * 2; }"
    twice = EmulatedHost().compile_shader(both).twice
    with pytest.raises(KernelDefect, match="uninitialised"):
        twice(torch.empty(1))
    given = torch.tensor([1.0, 3.0])
    twice(given[1:])
    assert given.tolist() == [1, 6]
    with pytest.raises(KernelDefect, match="out of bounds"):
        library.bytes(torch.zeros(7, dtype=torch.uint8), torch.empty(8, dtype=torch.uint8), threads=8)


@pytest.mark.parametrize("given", [[], None, "7", [None], [1, 2.5]])
def test_values_that_are_no_argument(library: EmulatedLibrary, host: EmulatedHost, given: Any) -> None:
    """The first number of a list determines the type of all; an integer may stand for a float, but not the reverse."""
    with pytest.raises(RuntimeError, match=r"neither a tensor|not all of one kind"):
        library.word(torch.empty(1, dtype=torch.int32), given, 0)
    assert not host.launches
    assert words(library, [1.0, 2], 2) == [0x3F800000, 0x40000000]


# --- launches ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("threads", "allowed", "group"),
    [
        (None, MAX_THREADS, 60),  # the elements of the first tensor
        (None, 32, 32),
        (12, MAX_THREADS, 12),
        ((12,), 8, 8),
        ((5, 12), MAX_THREADS, MAX_THREADS),  # in two and three dimensions, as many as are allowed, along the first
        ((3, 4, 5), 64, 64),
    ],
)
def test_threads_and_the_default_group(
    library: EmulatedLibrary, host: EmulatedHost, threads: Any, allowed: int, group: int
) -> None:
    host.allowed_threads = lambda name: allowed
    assert (library.places.max_threads_per_threadgroup, library.places.thread_execution_width) == (allowed, 32)
    out = torch.full((60,), -1, dtype=torch.int32)
    library.places(out, threads=threads)
    (launch,) = host.launches
    assert (launch.name, launch.threads) == ("places", group)
    sizes = [60] if threads is None else [threads] if isinstance(threads, int) else list(threads)
    x, y, z = [*sizes, 1, 1][:3]
    wanted = [(c * 100 + b) * 100 + a // group for c in range(z) for b in range(y) for a in range(x)]
    assert out.tolist() == wanted + [-1] * (60 - len(wanted))


@pytest.mark.parametrize(("threads", "group"), [(60, 7), ((6, 10), (4, 3)), ((3, 4, 5), (2, 2, 2))])
def test_threads_are_not_groups(library: EmulatedLibrary, host: EmulatedHost, threads: Any, group: Any) -> None:
    """There are as many threads as requested, and the last group of an axis may have fewer."""
    out = torch.empty(60, dtype=torch.int32)
    library.places(out, threads=threads, group_size=group)
    all_, own = ([*(size if isinstance(size, tuple) else [size]), 1, 1][:3] for size in (threads, group))
    assert out.tolist() == [
        (c // own[2] * 100 + b // own[1]) * 100 + a // own[0]
        for c in range(all_[2])
        for b in range(all_[1])
        for a in range(all_[0])
    ]
    (launch,) = host.launches
    assert launch.threads == own[0] * own[1] * own[2] and launch.written_once


@pytest.mark.parametrize(
    ("threads", "group"), [(None, 65), (128, 65), ((128, 2), (33, 2)), ((4, 4, 8), (4, 4, 5)), ((3, 65), (1, 65))]
)
def test_a_group_that_is_too_large(library: EmulatedLibrary, host: EmulatedHost, threads: Any, group: Any) -> None:
    host.allowed_threads = lambda name: 64
    with pytest.raises(ValueError, match="64"):
        library.places(torch.empty(256, dtype=torch.int32), threads=threads, group_size=group)
    assert not host.launches


@pytest.mark.parametrize(
    ("threads", "group"), [(8, (4, 1)), ((8, 2), 4), ((8, 2), (4, 1, 1)), (None, (4, 1)), ((2,) * 4, None)]
)
def test_dimensions_that_differ(library: EmulatedLibrary, host: EmulatedHost, threads: Any, group: Any) -> None:
    with pytest.raises(RuntimeError, match="dimensions"):
        library.places(torch.empty(16, dtype=torch.int32), threads=threads, group_size=group)
    assert not host.launches


def test_threads_without_a_tensor(host: EmulatedHost) -> None:
    """Without a tensor, only the argument ``threads`` says how many there are."""
    idle = host.compile_shader("kernel void idle(constant long& of [[buffer(0)]]) {}").idle
    with pytest.raises(RuntimeError, match="number of threads is undefined"):
        idle(7)
    idle(7, threads=4)
    assert [launch.name for launch in host.launches] == ["idle"]


# --- compiling ---------------------------------------------------------------------------------------


def test_kernels_are_attributes(library: EmulatedLibrary, host: EmulatedHost) -> None:
    assert sorted(dir(library)) == ["bytes", "places", "word"]
    with pytest.raises(RuntimeError, match=r"^Failed to create function state object for: absent$"):
        library.absent  # noqa: B018 - looking it up is what fails
    assert host.compilations == [SOURCE]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        pytest.param(SOURCE.replace("given[at]", "taken[at]", 1), r"undeclared identifier 'taken'", id="unknown-name"),
        pytest.param(SOURCE + "int lost = ;", r"expected expression", id="syntax"),
        pytest.param(SOURCE + "// \N{MICRO SIGN}", r"^program source must be ASCII$", id="comment-not-ascii"),
    ],
)
def test_a_source_that_does_not_compile(host: EmulatedHost, source: str, message: str) -> None:
    """A SyntaxError, immediately, with the compiler's message."""
    with pytest.raises(SyntaxError, match=message) as caught:
        host.compile_shader(source)
    assert str(caught.value).startswith("failed to compile source code: ") == source.isascii()
