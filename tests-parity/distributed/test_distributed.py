"""``distributed.na{1,2,3}d`` on 2, 3 and 4 processes of this machine, compared with one; errors, silent processes."""

from __future__ import annotations

import pytest
from distributed_launch import run

FRAMEWORKS = ("torch", "mlx")


@pytest.mark.parametrize("drawn", [8, pytest.param(60, marks=pytest.mark.all)])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_results_gradients_and_bytes(framework: str, count: int, drawn: int) -> None:
    ended = run(framework, "agree", count, drawn)
    assert [each.status for each in ended] == [0] * count, "\n".join(each.errors[-3000:] for each in ended)
    for process, each in enumerate(ended):
        assert len(each.reports) == drawn + (2 if count == 3 else 1)
        for report in each.reports:
            for name, error in report["errors"].items():
                assert error <= report["tolerance"], (process, name, error, report["what"])
            assert report["sent"] == report["due"], (process, report)
    assert (sum(report["sent"] for each in ended for report in each.reports) > 0) == (count > 1)


ASKED = "query (1, :, {h}, 4) {t}, key (1, :, {h}, 4) {t}, value (1, :, {h}, 4) {t}, kernel_size=({w},), stride=(1,), "
ASKED += "dilation=(1,), is_causal=(False,), scale=0.5, axis=(0,), wrap=(False,), return_lse=False{more}"


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_what_one_process_rejects_all_raise(framework: str) -> None:
    dtype = {"torch": "float64", "mlx": "float32"}[framework]
    more = {"torch": f", requires_grad={[False] * 6}", "mlx": ""}[framework]

    def asked(h: int = 2, w: int = 5) -> str:
        return ASKED.format(h=h, w=w, t=dtype, more=more)

    def differ(first: str, other: str) -> str:
        return (
            "na1d: every process must make the same call, with shards that differ only along the cut axes; process 0 "
            f"called with {first}; process 2 with {other}"
        )

    no_tensor = "na1d: query must be a tensor of this package's framework; got NoneType"
    expected = [
        (
            "value is shorter",
            "ValueError",
            (
                "na1d: query, key and value of a process must be shards of the same tokens; process 2 has 6, 6 and 5 "
                "tokens along axis 0"
            ),
        ),
        ("other heads", "ValueError", differ(asked(), asked(h=3))),
        ("other window", "ValueError", differ(asked(), asked(w=3))),
        (
            "window is too wide",
            "ValueError",
            "na1d: kernel_size * dilation must not exceed the axis length; axis 0 has 7 * 1 = 7 > 6",
        ),
        ("no tensor", "ValueError", f"na1d: process 2 could not take part: TypeError: {no_tensor}"),
        ("no tokens", "ValueError", "na1d: every process must hold tokens; process 2 has 0 along axis 0"),
        ("axis", "ValueError", "na1d: axis must be one or two different axes of 0..0; got 1"),
        ("a mask", "TypeError", "na1d: got an unexpected keyword argument 'key_mask'"),
        ("legal", "", ""),
    ]
    ended = run(framework, "rejected", 3)
    assert [each.status for each in ended] == [0] * 3, "\n".join(each.errors[-3000:] for each in ended)
    for process, each in enumerate(ended):
        found = [(report["call"], report["kind"], report["text"]) for report in each.reports]
        own = [
            ("no tensor", "TypeError", no_tensor) if call == "no tensor" else (call, *rest) for call, *rest in expected
        ]
        assert found == (own if process == 2 else expected)


PLACEMENTS = [
    "query, key and value must all be DTensors, or none of them",
    "they must be placed alike; got (Shard(dim=2),) and (Shard(dim=3),)",
    "each placement must shard one of the dimensions 1..2; got (Shard(dim=3),)",
    "additional keys and values, and rpb, must be replicated",
    "their mesh is the group; leave group out",
]


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.all)])
def test_distributed_tensors(count: int) -> None:
    """Results and gradients of DTensors are DTensors placed alike, with the values of the whole problem."""
    ended = run("torch", "placed", count)
    assert [each.status for each in ended] == [0] * count, "\n".join(each.errors[-3000:] for each in ended)
    for each in ended:
        ways = 2 if count == 4 else 1
        assert all(len(report["errors"]) == 8 and max(report["errors"]) < 1e-12 for report in each.reports[:ways])
        assert [report["text"] for report in each.reports[ways:]] == [f"na2d: {text}" for text in PLACEMENTS]


def test_gradients_that_some_processes_lack() -> None:
    """They count as zeros, and stay None where all lack them; modules that differ are an error in every process."""
    ended = run("torch", "summed", 2)
    assert [each.status for each in ended] == [0] * 2, "\n".join(each.errors[-3000:] for each in ended)
    text = "sum_gradients: every process must pass the same module; process 0 has 2 parameters with 2 numbers, "
    for each in ended:
        assert each.reports == [{"sums": [3.0, 2.0, None]}, {"text": text + "process 1 has 2 with 3"}]


@pytest.mark.all
def test_torch_compiles_what_is_around_a_call() -> None:
    ended = run("torch", "compiled", 3)
    assert [each.status for each in ended] == [0] * 3, "\n".join(each.errors[-3000:] for each in ended)
    for each in ended:
        (report,) = each.reports
        assert report["graphs"] == 2 and len(report["errors"]) == 4 and max(report["errors"]) < 1e-12


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_process_that_is_killed_is_an_error_in_all_others(framework: str) -> None:
    ended = run(framework, "killed", 3)
    assert ended[1].status == -9
    for each in (ended[0], ended[2]):
        assert each.status == 3, each.errors[-3000:]
        (report,) = each.reports
        assert report["kind"] == "RuntimeError" or report["kind"] == "DistBackendError"
        assert report["seconds"] < 20


def test_torch_waits_for_a_silent_process_until_the_group_times_out() -> None:
    ended = run("torch", "stopped", 3)
    for each in (ended[0], ended[2]):
        assert each.status == 3, each.errors[-3000:]
        assert 5 < each.reports[0]["seconds"] < 20


def test_mlx_ends_with_a_message_if_a_process_is_silent() -> None:
    """MLX's ring has no time limit, and only the end of the process stops its waiting."""
    ended = run("mlx", "stopped", 3)
    messages = [
        f"na1d: process {process} of 3 waited 8 s for the others to make the same call, and ends" for process in (0, 2)
    ]
    assert any(line in each.errors for line, each in zip(messages, (ended[0], ended[2]), strict=True))
    assert all(each.status in (1, 3) for each in (ended[0], ended[2]))
