"""The CPU kernels as a C++ program: random problems against a simple reference, sanitized, on every instruction set.

``test_cpu.cpp`` says what is compared. Without optimisation the sanitizers see every access, and the program builds in
seconds. With ``--all`` it is also built as shipped, with every available compiler, and faults are planted that must be
found.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
import build

pytestmark = [
    pytest.mark.xdist_group("cpu-kernels"),
    pytest.mark.skipif(build.compiler() is None, reason=f"no C++ compiler: {', '.join(build.COMPILERS)}"),
]
ISAS = tuple(build.ISAS)
MEMORY_ERRORS = ("-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
RACES = ("-O1", "-fsanitize=thread")
SHIPPED = ("-O3",)
# Of the program's calls; with the argument they run on threads of a host instead.
THREADS, REGIONS = 3, "--regions"


def cpu_runs(isa: str) -> bool:
    """Whether this machine has the instruction set; :func:`assert_clean` checks which one the library used."""
    if isa in ("neon", "sse"):
        return True
    with open("/proc/cpuinfo") as file:
        flags = next(line for line in file if line.startswith("flags")).split()
    return {"avx2": "avx2", "avx512": "avx512bw"}[isa] in flags


def make(cxx: str, flags: tuple[str, ...], folder: Path) -> Path:
    objects = build.compile_objects(cxx, flags, build.SHARED, folder, ISAS)
    return build.link(cxx, flags, [*objects, build.compile_driver(cxx, flags, folder)], folder / "test")


def run(program: Path, isa: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    options = "allocator_may_return_null=1:halt_on_error=1"
    settings = {"NATTEN_CPU_ISA": isa, "NATTEN_NUM_THREADS": "" if REGIONS in arguments else str(THREADS)}
    settings |= dict.fromkeys(("ASAN_OPTIONS", "UBSAN_OPTIONS", "TSAN_OPTIONS"), options)
    return subprocess.run([str(program), *arguments], env=os.environ | settings, capture_output=True, text=True)


def assert_clean(done: subprocess.CompletedProcess[str], isa: str) -> None:
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert done.stdout.startswith(f"{isa}, "), done.stdout
    assert REGIONS in done.args or f", {THREADS} threads, " in done.stdout, done.stdout
    assert ": 0 failures" in done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cpu")


@pytest.fixture(scope="module")
def checked(folder: Path) -> Path:
    """The program with AddressSanitizer and UndefinedBehaviorSanitizer."""
    cxx = build.compiler()
    assert cxx is not None
    return make(cxx, MEMORY_ERRORS, folder / "memory")


@pytest.mark.parametrize("isa", ISAS)
def test_memory_and_undefined_behaviour(isa: str, checked: Path) -> None:
    if not cpu_runs(isa):
        pytest.skip(f"this machine has no {isa}")
    assert_clean(run(checked, isa, "--problems", "16", "--seed", str(ISAS.index(isa))), isa)


def test_threads_of_a_host(checked: Path) -> None:
    """Calls run on them, however many there are, but not in a forked child, nor where the variable is set."""
    assert_clean(run(checked, ISAS[0], REGIONS), ISAS[0])


def test_read_ahead_and_kept(checked: Path, folder: Path) -> None:
    """What is read ahead belongs to the next unit of work, in any order of units; a patch keeps what fits."""
    cxx = build.compiler()
    assert cxx is not None
    walk = build.compile_walk(cxx, MEMORY_ERRORS, ISAS[0], folder / "walk")
    objects = [checked.parent / f"{name}.o" for name in ("pool", "host", *ISAS)]
    done = run(build.link(cxx, MEMORY_ERRORS, [*objects, walk], folder / "walk" / "test"), ISAS[0])
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert done.stdout.endswith(": 0 failures\n"), done.stdout


def test_races(folder: Path) -> None:
    """One instruction set is enough: threads share only the pool and the tensors."""
    cxx = build.compiler()
    assert cxx is not None
    isa = [isa for isa in ISAS if cpu_runs(isa)][-1]
    program = make(cxx, RACES, folder / "races")
    # ThreadSanitizer does not support forking from a process with threads.
    for arguments in (("--problems", "16"), (REGIONS,)):
        assert_clean(run(program, isa, *arguments, "--no-fork"), isa)


def test_instruction_sets_share_no_inline_function(checked: Path) -> None:
    """The linker keeps one of several inline functions with the same name, so each instruction set needs its own."""
    for isa in ISAS:
        listed = build.run("nm", "--demangle", "--defined-only", checked.parent / f"{isa}.o").splitlines()
        weak = [line.split(maxsplit=2)[2] for line in listed if line.split(maxsplit=2)[1] in "WVu"]
        assert weak, "nothing was found"
        shared = [name for name in weak if f"natten::{isa}::" not in name and "san_" not in name and "san." not in name]
        assert not shared, shared


# --- with --all ---------------------------------------------------------------------------------------------


@pytest.mark.all
@pytest.mark.parametrize("cxx", build.COMPILERS)
def test_as_shipped(cxx: str, folder: Path) -> None:
    if not shutil.which(cxx):
        pytest.skip(f"this machine has no {cxx}")
    program = make(cxx, SHIPPED, folder / f"shipped-{cxx}")
    for isa in filter(cpu_runs, ISAS):
        assert_clean(run(program, isa, "--problems", "400", "--seed", "7"), isa)


# Faults are planted in the instruction set that builds fastest, except those that only patches of several panels show.
PLAIN = ISAS[0]
OF_PANELS = ("columns.h", "lanes.h", "geometry.h", "micro.h")
# File, original text, faulty text: each fault must be found.
FAULTS = (
    ("columns.h", "seen[lower.low].high <= x", "seen[lower.low].high < x"),
    ("columns.h", "if (own.low > low) high = na::minimum(high, own.low);", ""),
    ("columns.h", "segment.on = {panel * C::PANEL, segment.on.count + C::PANEL};", "segment.on = {0, C::PANEL};"),
    ("columns.h", "na::minimum(range.low, low + offset)", "low + offset"),
    ("columns.h", "{na::minimum(range.low, x.low + offset), ", "{x.low + offset, "),
    ("columns.h", "seen[lane[kLaneGroup - 1]].high;", "seen[lane[0]].high;"),
    ("columns.h", "range.high = sees ? high", "range.high = sees ? x.high - 1"),
    ("columns.h", "from[v] & row_sight_[v]", "from[v]"),
    ("columns.h", "? 0 : PatchMarks<C>::kRuns; }", "? 0 : 0; }"),
    ("columns.h", "marks_.kept = !spilled_;", "marks_.kept = true;"),
    ("columns.h", " && runs_ <= PatchMarks<C>::kRuns;", ";"),
    ("launch.h", "if (wanted != number) {", "if (number < 0) {"),
    ("launch.h", "      marks.clear();\n", ""),
    ("additional.h", "    scratch.patch.marks.clear();\n", ""),
    ("lanes.h", "if (live[lane]) {", "{"),
    ("lanes.h", "seen[a][na::minimum(last, count - 1)].high;", "seen[a][0].high;"),
    ("geometry.h", "axis.d) + rows - 1) / rows;", "axis.d)) / rows;"),
    ("geometry.h", "higher <= end", "higher < end"),
    ("load.h", "uint16_t(half | sign)", "uint16_t(half | sign >> 1)"),
    ("micro.h", "at += size;", "at += size - (size > 5);"),
    ("micro.h", "load(to) * before[l]", "load(to) * before[0]"),
    ("totals.h", "total[d] * factor + double(sum[d])", "total[d] + factor * 0 + double(sum[d])"),
    ("totals.h", "        sum[d] = T(0);\n", ""),
    ("forward.h", "total[v] = total[v] * down[v] + sum;", "total[v] = total[v] + sum;"),
    ("backward.h", "delta -= reinterpret_cast", "delta += reinterpret_cast"),
    ("additional.h", "length * part / parts", "length * (part / 2) / parts"),
    ("backward.h", "factor[v] = rest * T(p.scale);", "factor[v] = splat(T(p.scale));"),
    ("backward.h", "sum.pairs.normed = true;", ""),
    ("pairs.h", "if (normed)", "if (LANES_ARE_QUERIES && normed)"),
    ("forward.h", "inverse_total[v] = reciprocal(softmax.total[v]);", "inverse_total[v] = T(1) / softmax.total[v];"),
    ("vector.h", "lse == V{} - __builtin_inff() ? V{} + __builtin_inff() : lse", "lse"),
    ("rpb.h", "step *= 2 * p.w[a] - 1", "step *= 2 * p.w[a]"),
    ("split.h", "fill_empty(lanes, rows);", ""),
    ("pool.cpp", "if (first >= units) return;", "if (first + step >= units) return;"),
    ("pool.cpp", "(nullptr, nullptr, forget_threads)", "(nullptr, forget_threads, nullptr)"),
    ("pool.cpp", "  the_region.store(nullptr);\n}", "}"),
    ("pool.cpp", "if (worker < own.workers) ", "if (worker <= own.workers) "),
    ("pool.cpp", "threads_of_process().set ? nullptr : the_region.load()", "the_region.load()"),
    ("natten_cpu.cpp", "s > w", "false"),
    ("geometry.h", "rows.low + int(patch", "int(patch"),
    ("lanes.h", "if (axis.columns < axis.full) keep_at_hand(a, axis, count);", ""),
    ("lanes.h", "column_origin[a] = group - axis.column_start;", "column_origin[a] = group;"),
    ("split.h", "na::group_length(axis.full,", "na::group_length(axis.rows,"),
    ("natten_cpu.cpp", "full_shape[a] && keys_at_hand(p, a)", "full_shape[a] || keys_at_hand(p, a)"),
    ("natten_cpu.cpp", "query < first + d;", "query < first + 1;"),
    ("natten_cpu.cpp", "start + length <= full", "length <= full"),
    ("backward.h", "if (op.key_mask.data) clear_masked(lanes, batch, scratch);", ""),
    ("sides.h", "side.base = mask.data + batch * mask.batch;", "side.base = mask.data + 0 * batch;"),
    ("columns.h", "na::minimum(x + run, part.high)}, false) - x;", "na::minimum(x + run, part.high)}, true) - x;"),
)


@pytest.mark.parametrize("file, text, fault", FAULTS, ids=str)
def test_faults_can_be_planted(file: str, text: str, fault: str) -> None:
    """The text that a fault replaces occurs in the kernels."""
    assert text != fault and text in (build.SHARED / "cpu" / file).read_text()


@pytest.fixture(scope="module")
def driver(folder: Path) -> Path:
    cxx = build.compiler()
    assert cxx is not None
    return build.compile_driver(cxx, ("-O1",), folder / "faults")


@pytest.fixture(scope="module")
def sound(folder: Path) -> dict[str, Path]:
    """Object files without a fault."""
    cxx = build.compiler()
    assert cxx is not None
    made = build.compile_objects(cxx, ("-O1",), build.SHARED, folder / "sound", ISAS)
    return {path.stem: path for path in made}


@pytest.mark.all
@pytest.mark.parametrize("fault", (None, *FAULTS), ids=lambda fault: fault and f"{fault[0]}: {fault[1]}")
def test_planted_faults_are_found(
    fault: tuple[str, str, str] | None, driver: Path, sound: dict[str, Path], tmp_path: Path
) -> None:
    cxx = build.compiler()
    assert cxx is not None
    for part in ("cpu", "kernels"):
        shutil.copytree(build.SHARED / part, tmp_path / part)
    if fault:
        file = tmp_path / "cpu" / fault[0]
        assert fault[1] in file.read_text()
        file.write_text(file.read_text().replace(fault[1], fault[2], 1))
    isa = [isa for isa in ISAS if cpu_runs(isa)][-1] if fault and fault[0] in OF_PANELS else PLAIN
    made = build.compile_objects(cxx, ("-O1",), tmp_path, tmp_path / "objects", (isa,))
    others = [sound[name] for name in ISAS if name != isa]
    program = build.link(cxx, (), [*made, *others, driver], tmp_path / "test")
    done = [run(program, isa, *arguments) for arguments in (("--problems", "120"), (REGIONS,))]
    assert any(each.returncode for each in done) == (fault is not None), [each.stdout for each in done]
