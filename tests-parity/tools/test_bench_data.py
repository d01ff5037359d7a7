"""What ``bench`` measures and says, without measuring: problems, statistics of times, the file, the report."""

from __future__ import annotations

import argparse
import importlib
import json
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from bench_runs import MISSING, NOISY, OWN, RESULTS, ROW, SDPA

from natten_mps._metal.bench import figures, measure, problems, report, results, table, times, ways
from natten_mps._metal.problem import mask
from natten_mps._metal.problem.problem import all_keys
from natten_mps._metal.tools import bench, command_line

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = (ROOT / "docs" / "bench.md").read_text()
NAMED = list(problems.BY_NAME.values())


# --- problems -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("package", ["natten_mps", "natten_mlx"])
@pytest.mark.parametrize("quick", [False, True], ids=["whole", "quick"])
def test_every_problem_is_legal_and_has_a_plan(package: str, quick: bool) -> None:
    """On an Apple GPU as the planner sees it: by Metal kernels alone, forward and backward."""
    metal, plan, device = (
        importlib.import_module(f"{package}._metal.plan.{name}") for name in ("backend", "plan", "device")
    )
    own = importlib.import_module(f"{package}._metal.bench.problems")
    order = importlib.import_module(f"{package}._backends").ORDER
    gpu = device.Device("gpu", "Apple M1")
    for named in own.BY_NAME.values():
        for dtype in bench.DTYPES:
            planned = plan.plan(named.form(quick).problem(dtype), gpu, "auto", order)
            assert planned.backend == order[0] and planned.forward.launches and planned.backward.launches
    assert order[0] in (metal.METAL.name, metal.NANOBIND.name)


def test_quick_forms_are_small_and_of_the_same_kind() -> None:
    for named in NAMED:
        whole, quick = (named.form(each).problem("float32") for each in (False, True))
        assert mask.flops(quick) <= mask.flops(whole)
        if not named.name.startswith("tokens-"):
            assert quick.queries <= 8192 and mask.flops(quick) < 1e10
        assert (quick.rank, quick.is_causal, quick.head_dim) == (whole.rank, whole.is_causal, whole.head_dim)
        for number in ("stride", "dilation"):
            assert (max(getattr(quick, number)) > 1) == (max(getattr(whole, number)) > 1)
        assert (quick.group_heads > 1) == (whole.group_heads > 1)


def test_problems_are_chosen_by_name_and_group() -> None:
    assert [named.name for named in problems.chosen([])] == [named.name for named in problems.MODELS]
    both = problems.chosen(["hdit", "windows", "hdit"])
    assert [named.name for named in both] == ["hdit", *(named.name for named in problems.WINDOWS)]
    with pytest.raises(KeyError):
        problems.chosen(["no such"])
    assert {1, 2, 3} == {len(named.shape) for named in problems.MODELS}
    assert all(named.source and named.layer for named in NAMED)


def test_the_document_lists_every_problem() -> None:
    for named in problems.MODELS:
        shape, window = "x".join(map(str, named.shape)), "x".join(map(str, named.kernel_size))
        window += ", causal" if named.is_causal else ""
        for word in ("stride", "dilation"):
            value = getattr(named, word)
            window += f", {word} {value if isinstance(value, int) else 'x'.join(map(str, value))}" if value != 1 else ""
        assert f"| `{named.name}` | {named.layer} | {shape} | {window} |" in DOCUMENT


@pytest.mark.parametrize("name", ["cpu-mps.json", "cpu-mlx.json"])
def test_committed_results_have_the_work_of_their_problems(name: str) -> None:
    """Of a forward two products over the pairs of the windows; the gradients need five more."""
    rows = results.load(ROOT / "benchmarks" / "results" / name).rows
    assert len(rows) == 22
    for row in rows:
        problem = problems.BY_NAME[row.problem].form(row.quick).problem(row.dtype)
        assert (row.pairs, row.flops) == (mask.pairs(problem), ways.useful_flops(problem, row.direction))
        products = {results.FORWARD: 2, results.TRAINING: 7}[row.direction]
        tokens, heads = problem.queries, row.batch * row.heads
        assert row.flops == products * 2 * heads * row.pairs * row.head_dim
        dense = ways.useful_flops(all_keys(problem), row.direction)
        assert dense == products * 2 * heads * tokens**2 * row.head_dim


# --- times ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1.0), (0.1, 1.4), (0.5, 3.0), (0.9, 4.6), (1.0, 5.0)])
def test_quantiles(share: float, expected: float) -> None:
    assert times.quantile([5.0, 1.0, 4.0, 2.0, 3.0], share) == pytest.approx(expected)
    assert times.quantile([7.0], share) == 7.0


def test_a_ratio_is_of_medians() -> None:
    found = times.ratio([200.0, 210.0, 190.0, 200.0], [100.0, 100.0, 100.0, 100.0])
    assert (found.value, found.reason, str(found)) == (2.0, "", "2x")
    assert 1.9 < found.low < 2.0 < found.high < 2.1


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (999.7, "1000"),
        (999.4, "999"),
        (99.97, "100"),
        (9.996, "10"),
        (12_000, "12000"),
        (12_345.6, "12346"),
        (3e-5, "0.00003"),
        (0.0012345, "0.00123"),
        (2.0, "2"),
        (0.0, "0"),
        (-2500.4, "-2500"),
        (float("nan"), "nan"),
    ],
)
def test_three_digits_are_never_a_power_of_ten(value: float, said: str) -> None:
    assert times.digits(value) == said


def test_no_figure_is_a_power_of_ten() -> None:
    """A row of 12 000 and of a few operations in a second, and the line of such a peak."""
    slow = replace(OWN, times_us=(4e12,) * 5, peak_bytes=40)
    fast = replace(SDPA, times_us=(ROW.flops / 12e6,) * 5, peak_bytes=(1 << 40) - 1)
    row = replace(ROW, entries=(slow, fast), predicted_us=0.03)
    found = replace(RESULTS, rows=(row,), peaks={"float16": results.Peak(12_000.0, 0.00003)})
    own, other = (figures.words(found, row, entry) for entry in row.entries)
    assert (own.time, own.rate, own.memory, own.predicted) == ("4000000000", "0.00000000983", "0.0000381", "0.00003")
    assert (other.rate, other.memory) == ("12000", "1048576")
    line = "peak of float16: 12000 GFLOP/s; copies: 0.00003 GB/s"
    assert table.peak_line("float16", found.peaks["float16"]) == line
    assert f"- {line}\n" in report.markdown(report.runs([found]), ())


def test_noise_that_both_share_leaves_a_ratio_alone() -> None:
    """Rounds that take ten times as long for both, because of other work, have the same ratio as the others."""
    base = [1.0, 10.0, 1.0, 10.0, 1.0]
    found = times.ratio([3 * each for each in base], base)
    assert (found.value, found.low, found.high, found.reason) == (3.0, 3.0, 3.0, "")


@pytest.mark.parametrize("swing", [0.5, 0.9, 1.1, 2.0])
def test_a_ratio_whose_spread_is_larger_than_itself_is_not_told(swing: float) -> None:
    """Rounds alternate between ratios whose distance is ``swing`` times their middle."""
    ratios = [4.0 * (1 + swing / 2 * sign) for sign in (-1, 1)] * 20
    found = times.ratio(ratios, [1.0] * 40)
    assert found.high - found.low == pytest.approx(4.0 * swing)
    assert bool(found.reason) == (str(found) == "?") == (swing > 1)


def test_too_few_rounds_have_no_spread() -> None:
    assert times.ratio([2.0, 2.0], [1.0, 1.0]).reason.startswith("fewer than 3 rounds")
    with pytest.raises(AssertionError, match="not from the same rounds"):
        times.ratio([2.0], [1.0, 1.0])


class Clockwork:
    """A clock that calls move."""

    def __init__(self) -> None:
        self.now = 0.0
        self.made: list[str] = []

    def call(self, name: str, seconds: float) -> Any:
        def run() -> str:
            self.made.append(name)
            self.now += seconds
            return name

        return run

    def __call__(self) -> float:
        return self.now


def test_ways_take_turns() -> None:
    clock, waited = Clockwork(), []
    calls = {name: clock.call(name, seconds) for name, seconds in (("fast", 0.01), ("slow", 0.5))}
    found = measure.interleaved(calls, waited.extend, 1.0, {"fast": 0.01, "slow": 0.5}, clock)
    assert set(found) == {"fast", "slow"} and len(found["fast"]) == len(found["slow"]) == measure.FEWEST
    assert found["fast"] == pytest.approx([0.01] * measure.FEWEST) and found["slow"] == pytest.approx([0.5] * 5)
    # The fast one settles the machine first, in each round.
    assert clock.made == ["fast", "fast", "slow"] * measure.FEWEST and waited == clock.made


def test_short_calls_are_timed_together() -> None:
    clock = Clockwork()
    calls = {"tiny": clock.call("tiny", 1e-4), "own": clock.call("own", 1e-9)}
    found = measure.interleaved(calls, lambda _: None, 0.1, {"tiny": 1e-4, "own": 1e-9}, clock)
    assert found["tiny"] == pytest.approx([1e-4] * len(found["tiny"]))
    rounds = len(found["own"])
    assert measure.FEWEST < rounds <= measure.MOST
    assert clock.made.count("tiny") == rounds * (1 + 30) and clock.made.count("own") == rounds * (1 + 64)


def test_a_call_that_fails_has_no_more_turns() -> None:
    clock, failed = Clockwork(), {}
    call, broken = clock.call("fine", 0.2), clock.call("broken", 0.2)

    def breaks() -> str:
        if clock.made.count("broken") == 2:
            raise MemoryError
        return str(broken())

    calls, estimates = {"fine": call, "broken": breaks}, {"fine": 0.2, "broken": 0.2}
    found = measure.interleaved(calls, lambda _: None, 0.1, estimates, clock, failed)
    assert found == {"fine": pytest.approx((0.2,) * measure.FEWEST)} and failed == {"broken": "MemoryError"}
    assert clock.made[:5] == ["fine", "broken", "fine", "broken", "fine"]
    with pytest.raises(MemoryError):
        measure.interleaved(calls, lambda _: None, 0.1, estimates, clock)
    assert measure.interleaved({"broken": breaks}, lambda _: None, 0.1, estimates, clock, failed) == {}


# --- the file -------------------------------------------------------------------------------------------


def changed(name: str, value: Any) -> bytes:
    """The file with another field."""
    return json.dumps(json.loads(results.to_json(RESULTS)) | {name: value}).encode()


def with_row(**fields: Any) -> bytes:
    """With other fields of its first row."""
    first, *others = json.loads(results.to_json(RESULTS))["rows"]
    return changed("rows", [first | fields, *others])


def with_entry(**fields: Any) -> bytes:
    """With other fields of its first entry."""
    first, *others = json.loads(results.to_json(RESULTS))["rows"][0]["entries"]
    return with_row(entries=[first | fields, *others])


def test_results_survive_their_file() -> None:
    assert results.from_json(results.to_json(RESULTS), "f") == RESULTS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[: len(text) // 2], "f: not JSON: "),
        (lambda text: b"[]", "f: not a file of `bench --json`: its format is not 'natten-bench'"),
        (lambda text: text.replace(b'"natten-bench"', b'"other"'), "f: not a file of `bench --json`"),
        (lambda text: text.replace(b'"version": 1', b'"version": 2'), "f: version 2 of the format; this package reads"),
        (lambda text: text.replace(b'"pairs"', b'"pears"'), "f.rows[0]: lacks pairs"),
        (
            lambda text: text.replace(b'"times_us": [', b'"times_us": ["x", ', 1),
            "f.rows[0].entries[0].times_us[0]: must",
        ),
        (lambda text: text.replace(b'"load": [', b'"load": 3, "was": ['), "f.machine.load: must be tuple; got int"),
        (lambda text: b"[" * 100_000, "f: not JSON: "),
        (lambda text: changed("peaks", {}), "f.rows[0].dtype: 'float16' is not among the peaks"),
        (
            lambda text: changed("peaks", {"float16": {"gflops": 0, "gigabytes_per_second": 1}}),
            "f.peaks.float16: must be above zero",
        ),
        (lambda text: with_row(entries=[]), "f.rows[0].entries: must have the package's own, the first"),
        (
            lambda text: with_row(direction="sideways"),
            "f.rows[0].direction: must be 'forward' or 'training'; got",
        ),
        (lambda text: with_row(stride=[1]), "f.rows[0].stride: must have one number for each of 2 axes"),
        (lambda text: with_row(shape=[0, 56]), "f.rows[0]: shape, batch, heads"),
        (lambda text: with_row(least_bytes=0), "f.rows[0]: shape, batch, heads"),
        (lambda text: with_row(flops=10**400), "f.rows[0].flops: must be a number of at most 1e+30"),
        (lambda text: with_row(predicted_us=10**400), "f.rows[0].predicted_us: must be a number of at most"),
        (lambda text: with_row(predicted_us=float("nan")), "f.rows[0].predicted_us: must be a number of at most"),
        (lambda text: with_entry(state="lost"), "f.rows[0].entries[0].state: is unknown: 'lost'"),
        (
            lambda text: with_entry(times_us=[]),
            "f.rows[0].entries[0].times_us: must have times if the state",
        ),
        (lambda text: with_entry(state="failed"), "f.rows[0].entries[0].times_us: must have times if the state is"),
        (lambda text: with_entry(times_us=[1, 2, 0, 4, 5]), "f.rows[0].entries[0].times_us: must be above zero"),
        (lambda text: with_entry(times_us=[1, 2]), "f.rows[0].entries: must have as many times each"),
    ],
)
def test_a_damaged_file(change: Any, message: str) -> None:
    with pytest.raises(results.Unreadable, match=re.escape(message)):
        results.from_json(change(results.to_json(RESULTS)), "f")


def test_fields_of_a_later_package_are_left_out() -> None:
    given = json.loads(results.to_json(RESULTS))
    given["more"], given["rows"][0]["more"] = 1, 2
    assert results.from_json(json.dumps(given).encode(), "f") == RESULTS


def test_the_document_describes_every_field() -> None:
    described = set(re.findall(r"`(\w+)`", DOCUMENT.partition("## The file")[2]))
    for kind in (results.Results, results.Machine, results.Peak, results.Row, results.Entry):
        assert {each.name for each in fields(kind)} <= described, kind.__name__
    assert f"`{results.FORMAT}`, {results.VERSION}" in DOCUMENT


# --- words ----------------------------------------------------------------------------------------------


def test_figures() -> None:
    own, dense, noisy, missing = (figures.words(RESULTS, ROW, entry) for entry in ROW.entries)
    assert (own.time, own.ratio, own.predicted, own.memory) == ("0.1", "", "0.08", "1")
    # 39.3 million operations in 100 microseconds, of 10 TFLOP/s
    assert (own.rate, own.of_peak) == ("393", "4%")
    assert (dense.ratio, dense.note, dense.rate) == ("4x", "", "98.3")
    assert noisy.ratio == "?" and noisy.note.startswith("the ratio's spread is larger than the ratio")
    assert (missing.time, missing.ratio, missing.note) == ("-", "-", MISSING.reason)
    assert figures.told([ROW], lambda name: True) == [4.0]
    assert table.means(replace(RESULTS, rows=(ROW,))) == [
        "forward: sdpa takes 4 times as long, geometric mean of 1 rows"
    ]


def test_every_run_has_a_label_of_its_own() -> None:
    assert [run.label for run in report.runs([RESULTS])] == [""]
    labels = [run.label for run in report.runs([RESULTS] * 800)]
    assert labels[:2] == ["A", "B"] and labels[25:28] == ["Z", "AA", "AB"] and labels[701:703] == ["ZZ", "AAA"]
    assert len(set(labels)) == 800


def test_a_package_that_was_not_timed_has_no_ratios() -> None:
    failed = replace(OWN, state=results.FAILED, times_us=(), reason="a kernel failed")
    row = replace(ROW, entries=(failed, SDPA, NOISY))
    told = [figures.words(replace(RESULTS, rows=(row,)), row, entry) for entry in row.entries]
    assert [each.ratio for each in told] == ["-", "-", "-"] and told[0].note == "a kernel failed"


def test_the_table_and_the_report_say_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    import sys

    table.show(RESULTS, table.console(sys.stdout))
    printed, text = capsys.readouterr().out, report.markdown(report.runs([RESULTS]), ())
    for said in ("Apple M4 Max, 40 GPU cores, 16 CPUs, 64 GiB, macOS 26.3", "4x", "?", MISSING.reason, "0.08"):
        assert said in printed and said in text
    assert printed.count("[1]") == 2 and text.count("[1]") == 2
    both = report.markdown(report.runs([RESULTS, replace(RESULTS, package="natten-mlx")]), ())
    assert "## A: natten-mps on Apple M4 Max (mps)" in both and "| nat, quick, float16, forward | 0.1 | 0.1 |" in both


def test_the_ways_that_are_compared() -> None:
    known = ["sdpa", "sdpa-masked", "gathered", "flex_attention", "natten 0.21.6"]
    assert bench._against(None, False, known) == known
    assert bench._against(None, True, known) == ["sdpa", "sdpa-masked", "gathered", "natten 0.21.6"]
    assert bench._against(["natten", "flex_attention", "sdpa"], True, known) == ["sdpa", *known[3:]]
    assert bench._against([], True, known) == []
    with pytest.raises(command_line.CommandError, match="there is no way 'natten 0' to compare with here"):
        bench._against(["sdpa", "natten 0"], False, known)


@pytest.mark.parametrize("package", ["natten_mps", "natten_mlx"])
def test_the_names_of_the_ways_are_those_that_are_compared(package: str) -> None:
    own, named = importlib.import_module(f"{package}._metal.bench.ways"), problems.BY_NAME["tokens-16"]
    subject = importlib.import_module(f"{package}._tools.bench").subject(True)
    made = own.ways(named, named.problem("float32"), subject, "auto")
    assert [way.name for way in made] == [subject.package, *own.others(named, subject)]


# --- documents ------------------------------------------------------------------------------------------


def test_the_documents_say_what_was_measured() -> None:
    """Figures and plots of documents are those of the committed results: scripts/draw_performance.py writes them."""
    import sys

    sys.path.insert(0, str(ROOT / "scripts"))
    import draw_performance

    written = draw_performance.written()
    assert {path.name for path in written} == {"cpu.svg", "work.svg", "performance.md", "README.md"}
    for path, text in written.items():
        assert path.read_text() == text, f"{path}: run scripts/draw_performance.py"
    for run in draw_performance.measured():
        forward = [row for row in run.results.rows if row.direction == results.FORWARD]
        assert forward and {row.own.state for row in forward} == {results.TIMED}
        assert run.results.machine.load, "a result says what load there was"
        parser = argparse.ArgumentParser()
        bench.add_bench(parser.add_subparsers(), run.results.package, ("auto",), lambda on_cpu: None)
        package, *words = draw_performance.command(run.results).split()
        given, settings = parser.parse_args(words), run.results.settings
        assert package == run.results.package and given.backward and str(given.cpu) == settings["cpu"]
        measured = {row.problem for row in run.results.rows}
        assert measured == {named.name for named in problems.chosen(given.problem)}
        assert (str(given.quick), f"{given.seconds:g}", f"{given.limit:g}") == tuple(settings.values())[:3]
        names = {entry.name for row in run.results.rows for entry in row.entries}
        assert {package, *given.against} == names and given.backend == settings["backend"]
