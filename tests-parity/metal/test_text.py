"""The text of the kernels: checked by a front end with Metal's rules, and compared with Python."""

from __future__ import annotations

import ctypes
import itertools
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from frameworks import MLX
from metal_emulator.lint import lint
from metal_emulator.strict import check

from natten_mlx._launch import fast_metal as _launch_fast
from natten_mlx._launch import nanobind_metal as _launch_nanobind
from natten_mps._metal.metal.params import COUNT, PARAMS
from natten_mps._metal.metal.probe import smallest_launch
from natten_mps._metal.metal.source import (
    CHECK_HEADER,
    HEADERS,
    KERNELS,
    MPP_HEADERS,
    TEMPLATES,
    THREADGROUP_BYTES,
    Instance,
    config,
    entry_point,
    headers,
    library,
    mlx_header,
)
from natten_mps._metal.problem.window import inverse, window

from .mlx_host import PRELUDE, EmulatedMlxHost
from .pool import KITS, LONG_KITS
from .table import DTYPES, entries

Array = Any
MAX_LINES = 400
# Sources are checked with this many instances at a time.
TOGETHER = 70
OPTIONS = ("stage", "wide", "rpb", "additional", "of_additional", "lse_grad", "slots", "empty_zero", "flat")
INCLUDES = Path(mx.__file__).parent / "include"


@cache
def everything() -> tuple[Instance, ...]:
    """All instances of the case table and of the pool, in a fixed order; some with 16-byte copies too."""
    planned = {instance for entry in entries() for instance in entry.instances}
    one_of_each = {(i.template, i.dtype, i.rank, i.stage): i for i in planned if i.record.walks}
    planned |= {replace(instance, wide=True) for instance in one_of_each.values()}
    return tuple(
        sorted(planned | {i for kit in (*KITS, *LONG_KITS) for i in kit.instances.values()}, key=lambda i: i.name)
    )


@cache
def spanning() -> tuple[Instance, ...]:
    """Each template with each dtype, and with and without each option; ranks take turns where possible.

    MLX's text differs by rank and by which tensors have strides, so the instances with the same such tensors get one
    rank.
    """
    turns = {strided: turn % 3 + 1 for turn, strided in enumerate(sorted({i.strided for i in everything()}))}
    found, met = [], set[tuple[Any, ...]]()
    for i in sorted(everything(), key=lambda i: i.rank != turns[i.strided]):
        if not features(i) <= met:
            found.append(i)
            met |= features(i)
    return tuple(sorted(found, key=lambda i: i.name))


def features(i: Instance) -> set[tuple[Any, ...]]:
    """What an instance covers."""
    return {(i.template, i.dtype), *((i.template, option, getattr(i, option)) for option in OPTIONS)}


def torch_text(instance: Instance) -> tuple[str, str]:
    """The text that ``torch.mps.compile_shader`` gets for an instance: the shared part, and its own."""
    own = entry_point(instance)
    return library((instance,)).removesuffix(own), own


def primitive_text(instance: Instance) -> tuple[str, str]:
    """What the C++ primitive compiles."""
    own = entry_point(instance)
    return _launch_nanobind.library(instance).removesuffix(own), own


def mlx_text(instance: Instance) -> tuple[str, str]:
    """The text that MLX generates for ``mx.fast.metal_kernel``: the part shared by instances in which the same tensors
    have strides, and its own.
    """
    MLX.package  # noqa: B018 - selects the CPU
    host = EmulatedMlxHost()
    kernel = _launch_fast._kernel(host, instance)
    launch, shapes = smallest_launch(instance)
    kinds = {a.name: instance.dtype_of(a) for a in instance.arguments}
    given = {name: mx.zeros(shape, _launch_fast.DTYPES[kinds[name]]) for name, shape in shapes.items()}
    _launch_fast._launch(host, kernel, launch, given)  # recorded, never evaluated
    (text,) = kernel.sources.values()
    header, own = mlx_header(instance), config(instance)
    assert text.startswith(header)
    return header.removesuffix(own), own + text.removeprefix(header)


# The text differs by host, because the ways in which a kernel reads its parameters do. MLX puts a prelude in front.
FORMS: dict[str, tuple[Callable[[Instance], tuple[str, str]], str]] = {
    "torch": (torch_text, ""),
    "primitive": (primitive_text, ""),
    "mlx": (mlx_text, PRELUDE),
}


def parts() -> list[Any]:
    """All instances as torch compiles them, and a set that covers them in the other forms; with --all, all in each."""
    found = []
    for form in FORMS:
        spans = spanning() if form != "torch" else ()
        rest = tuple(instance for instance in everything() if instance not in spans)
        for chosen, marks in ((spans, []), (rest, [pytest.mark.all] if spans else [])):
            for first in range(0, len(chosen), TOGETHER):
                part = chosen[first : first + TOGETHER]
                name = f"{form}, {part[0].template}..{part[-1].template}"
                found.append(pytest.param(form, part, id=name, marks=marks))
    return found


@pytest.mark.usefixtures("emulator")
@pytest.mark.parametrize(("form", "instances"), parts())
def test_strict_check_and_lint_are_clean(form: str, instances: tuple[Instance, ...]) -> None:
    """Texts that share their beginning are checked as one."""
    text_of, prelude = FORMS[form]
    sources: dict[str, list[str]] = {}
    for instance in instances:
        shared, own = text_of(instance)
        assert f"{instance.name}_" in own or f" {instance.name}(" in own
        sources.setdefault(shared, []).append(own)
    assert len(sources) == 1 or form == "mlx"
    for shared, own in sources.items():
        source = shared + "\n".join(own)
        assert check(prelude + source, [str(INCLUDES)]) == []
        assert lint(source) == []


@pytest.mark.usefixtures("emulator")
def test_the_checks_can_fail() -> None:
    """A pointer that changes its address space, and a literal of type double, are reported in the real text."""
    source, before = library(everything()[:1]), "METAL_FUNC int fragment_row"
    assert source.count(before) == 1
    moved = "METAL_FUNC thread float* lost(device float* p) { return p; }\n"
    assert [finding.rule for finding in check(source.replace(before, moved + before))] == ["address-space"]
    wide = "METAL_FUNC float lost() { return 1.5; }\n"
    assert [finding.rule for finding in lint(source.replace(before, wide + before))] == ["literal"]


def test_every_template_is_checked() -> None:
    """With every dtype and option, in every rank; a few instances are enough for that."""
    assert {(i.template, i.dtype) for i in everything()} == set(itertools.product(TEMPLATES, DTYPES))
    assert len(spanning()) < len(everything()) / 10
    assert set().union(*map(features, spanning())) == set().union(*map(features, everything()))
    assert {i.rank for i in spanning()} == {i.rank for i in everything()} == {1, 2, 3}


def test_the_source_is_ascii_and_includes_only_metal() -> None:
    """Hosts pass the text through ASCII and compile it from memory."""
    for instance in everything():
        assert entry_point(instance).isascii()
    source = library(everything()[:3])
    assert source.isascii()
    assert re.findall(r"#\s*include\s*(.*)", source) == ["<metal_stdlib>", "<metal_simdgroup_matrix>"]
    assert "#pragma once" not in source


def test_headers_are_short_and_all_used() -> None:
    """Each header is in the text, says in its first line what it is, and has at most 400 lines."""
    assert sorted(path.name for path in KERNELS.glob("*.h")) == sorted((*HEADERS, *MPP_HEADERS, CHECK_HEADER))
    text = headers()
    assert "barrier" in text and "atomic" not in text, "sums have one order, whatever the schedule"
    for name in HEADERS:
        lines = (KERNELS / name).read_text(encoding="ascii").splitlines()
        assert len(lines) <= MAX_LINES, name
        assert lines[0].startswith("// "), f"{name} does not say in its first line what it is"
        kept = [line for line in lines if not line.lstrip().startswith(("//", "#pragma once"))]
        assert "\n".join(kept).strip() in text


def test_params_are_those_of_the_header() -> None:
    """Name by name, in order, without gaps."""
    text = (KERNELS / "params.h").read_text(encoding="ascii")
    found = {name: int(value) for name, value in re.findall(r"^  (k\w+) = (\d+),", text, re.MULTILINE)}
    count = found.pop("kParamCount")
    assert found == {name: first for name, (first, _) in PARAMS.items()}
    ends = [first + count for first, count in PARAMS.values()]
    assert [0, *ends] == [*found.values(), count] and count == COUNT


def test_names_identify_instances() -> None:
    """No two instances have the same name: each field changes it, and those of the table all differ."""
    whole = everything()
    assert len({instance.name for instance in whole}) == len(whole) > 400
    one = Instance("na_fwd", "float32", 2, 16, 32)
    other: dict[str, Any] = {
        "template": "na_qk",
        "dtype": "float16",
        "rank": 3,
        "dim": 32,
        "dim_v": 16,
        "patch": (1, 8, 1),
        "heads": 2,
        "simdgroups": 3,
        "chunk": 40,
        "bricks": 1,
        "table": 64,
        "team": 2,
    }
    changed = [replace(one, **{f.name: other.get(f.name, not getattr(one, f.name))}) for f in fields(Instance)]
    assert len({instance.name for instance in [one, *changed]}) == len(changed) + 1
    assert all(re.fullmatch(r"[A-Za-z_]\w*", instance.name) for instance in whole)
    # Adjacent numbers in a name stay separated.
    near = [
        replace(one, dim=d, dim_v=v, simdgroups=s, chunk=c)
        for d, v, s, c in itertools.product((1, 11), (1, 11), (1, 11), (1, 11))
    ]
    assert len({instance.name for instance in near}) == len(near)


def test_threadgroup_memory_is_as_declared_in_the_text() -> None:
    """The bytes that the planner counts are those of the entry point's arrays, and fit."""
    sizes = {"uint4": 16, "float": 4}
    for instance in everything():
        declared = re.findall(r"threadgroup (uint4|float) \w+\[(\d+)\];", entry_point(instance))
        found = sum(sizes[kind] * int(count) for kind, count in declared)
        placeholder = 32 if declared and not instance.stage and instance.template != "na_rpb" else 0
        placeholder -= 16 if instance.team > 1 else 0  # the board takes the place of one of two
        assert found == instance.threadgroup_bytes + placeholder <= THREADGROUP_BYTES, instance.name


# --- window.h equals window.py -----------------------------------------------------------------------

WINDOW_CALLS = """
#include "window.h"
extern "C" void windows(int n, int w, int s, int causal, int transposed, int* low, int* high) {
  for (int p = 0; p < n; ++p) {
    na::Span span = transposed ? na::inverse(p, n, w, s, causal) : na::window(p, n, w, s, causal);
    low[p] = span.low;
    high[p] = span.high;
  }
}
extern "C" int group_length(int length, int group, int dilation) { return na::group_length(length, group, dilation); }
"""


@pytest.fixture(scope="module")
def window_header(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """window.h, compiled as C++17 by any available compiler."""
    compiler = next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), None)
    if compiler is None:
        pytest.skip("no C++ compiler to read window.h with")
    folder: Path = tmp_path_factory.mktemp("window")
    (folder / "windows.cpp").write_text(WINDOW_CALLS)
    flags = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-shared", "-fPIC"]
    command = [compiler, *flags, f"-I{KERNELS}", str(folder / "windows.cpp"), "-o", str(folder / "windows.so")]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(folder / "windows.so"))


@pytest.mark.parametrize("transposed", [False, True], ids=["window", "inverse"])
def test_window_h_equals_window_py(window_header: ctypes.CDLL, transposed: bool) -> None:
    """At every position of every small axis, for every window and stride, causal or not; and on longer axes."""
    function, positions = inverse if transposed else window, 0
    longer = [
        (n, w, s) for n in (63, 64, 100, 255) for w in (1, 2, 7, 24, 62, 63) for s in (1, 2, 5, 16, 23, 62) if s <= w
    ]
    small = [(n, w, s) for n in range(1, 41) for w in range(1, n + 1) for s in range(1, w + 1)]
    for n, w, s in [*small, *longer]:
        low, high = (np.zeros(n, np.int32) for _ in range(2))
        pointers = [a.ctypes.data_as(ctypes.c_void_p) for a in (low, high)]
        for causal in (False, True):
            window_header.windows(n, w, s, causal, transposed, *pointers)
            wanted = [np.broadcast_to(part, n) for part in function(np.arange(n), n, w, s, causal, np)]
            assert np.array_equal(low, wanted[0]) and np.array_equal(high, wanted[1]), (n, w, s, causal)
            positions += n
    assert positions >= 100_000


def test_full_attention_and_groups_in_the_header(window_header: ctypes.CDLL) -> None:
    """Windows longer than the axis, which only full attention has, and lengths of dilation groups."""
    from natten_mps._metal.problem.window import group_length

    for n, w in itertools.product(range(1, 20), range(1, 40)):
        low, high = (np.zeros(n, np.int32) for _ in range(2))
        pointers = [a.ctypes.data_as(ctypes.c_void_p) for a in (low, high)]
        for transposed, causal in itertools.product((False, True), (False, True)):
            window_header.windows(n, w, 1, causal, transposed, *pointers)
            function = inverse if transposed else window
            wanted = [np.broadcast_to(part, n) for part in function(np.arange(n), n, w, 1, causal, np)]
            assert np.array_equal(low, wanted[0]) and np.array_equal(high, wanted[1]), (n, w, causal, transposed)
    for length, dilation in itertools.product(range(1, 30), range(1, 12)):
        for group in range(dilation):
            assert window_header.group_length(length, group, dilation) == group_length(length, group, dilation)
