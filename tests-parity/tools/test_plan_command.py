"""``natten-mps plan`` and ``natten-mlx plan``: what they say is what ``explain`` says, and no tensor is made for it."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from frameworks import FRAMEWORKS, Framework
from torch.utils._python_dispatch import TorchDispatchMode

from natten_mps._metal.plan import costs
from natten_mps._metal.problem.ops import OPS
from natten_mps._metal.tools import forecast

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "backends.md"
M4 = "Apple M4 Max"
# The command's options, and the same call: op, shapes of its first tensors, other arguments (shapes for tensors).
CALLS: dict[str, tuple[str, str, list[tuple[int, ...]], dict[str, Any]]] = {
    "na2d": (
        "--shape 12 20 --kernel-size 5 --stride 2 --dilation 1 2 --is-causal no yes --heads 2 --additional 9",
        "na2d",
        [(1, 12, 20, 2, 64), (1, 12, 20, 2, 64), (1, 12, 20, 2, 64)],
        {
            "kernel_size": 5,
            "stride": 2,
            "dilation": (1, 2),
            "is_causal": (False, True),
            "additional_keys": (1, 9, 2, 64),
            "additional_values": (1, 9, 2, 64),
        },
    ),
    "bias": (
        "--shape 40 --kernel-size 7 --rpb --key-mask --head-dim 20 --head-dim-v 24",
        "na1d",
        [(1, 40, 1, 20), (1, 40, 1, 20), (1, 40, 1, 24)],
        {"kernel_size": 7, "rpb": (1, 13), "key_mask": (1, 40)},
    ),
    "piece": (
        "--shape 8 --key-shape 16 --full-shape 100 --query-start 20 --key-start 16 --kernel-size 9 --dtype float32",
        "na1d",
        [(1, 8, 1, 64), (1, 16, 1, 64), (1, 16, 1, 64)],
        {"kernel_size": 9, "full_shape": 100, "query_start": 20, "key_start": 16},
    ),
    "wrap": (
        "--batch 2 --shape 6 8 --kernel-size 3 --wrap no yes",
        "na2d",
        [(2, 6, 8, 1, 64), (2, 6, 8, 1, 64), (2, 6, 8, 1, 64)],
        {"kernel_size": 3, "wrap": (False, True)},
    ),
    "qk": (
        "--op na3d_qk --shape 4 5 6 --kernel-size 3",
        "na3d_qk",
        [(1, 4, 5, 6, 1, 64), (1, 4, 5, 6, 1, 64)],
        {"kernel_size": 3},
    ),
    "av": ("--op na1d_av --shape 30 --kernel-size 5", "na1d_av", [(1, 30, 1, 5), (1, 30, 1, 64)], {"kernel_size": 5}),
    "attention": (
        "--op attention --heads 4 --kv-heads 2 --shape 30 --key-shape 17 --is-causal",
        "attention",
        [(1, 30, 4, 64), (1, 17, 2, 64), (1, 17, 2, 64)],
        {"is_causal": True},
    ),
}
TENSORS = ("additional_keys", "additional_values", "rpb", "key_mask")


class NoTensors(TorchDispatchMode):
    """Any operation of torch is an error."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} was called")


@contextmanager
def no_tensors(framework: Framework, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A context in which making a tensor is an error: of MLX, by any function that the package makes one with."""
    if framework.name == "mps":
        with NoTensors():
            yield
        return
    import mlx.core as mx

    def refuse(*arguments: Any, **named: Any) -> Any:
        raise AssertionError("an array was made")

    with monkeypatch.context() as patch:
        for name in ("zeros", "ones", "full", "arange", "eval", "zeros_like", "concatenate"):
            patch.setattr(mx, name, refuse)
        yield


def planned(framework: Framework, options: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    cli = importlib.import_module(f"{framework.package_name}.cli")
    capsys.readouterr()
    assert cli.main(["plan", *options, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def explained(framework: Framework, name: str) -> str:
    """What ``explain`` says of the same call on tensors."""
    options, op, shapes, arguments = CALLS[name]
    dtype = "float32" if "float32" in options else "float16"
    tensors = [framework.tensor(torch.zeros(shape).numpy(), dtype) for shape in shapes]
    given = {
        n: framework.tensor(torch.zeros(a).numpy(), "bool" if n == "key_mask" else dtype) if n in TENSORS else a
        for n, a in arguments.items()
    }
    said: str = framework.face("explain")(op, *tensors, **given)
    return said


def test_guards_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    for framework in FRAMEWORKS:
        with no_tensors(framework, monkeypatch), pytest.raises(AssertionError):
            if framework.name == "mps":
                torch.zeros(1)
            else:
                importlib.import_module("mlx.core").zeros(1)


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_it_says_what_explain_says(
    framework: Framework, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with no_tensors(framework, monkeypatch):
        found = planned(framework, CALLS[name][0].split(), capsys)
    assert found["explain"] == explained(framework, name)
    assert found["backend"] == framework.compiled and found["device"]["kind"] == "cpu"
    assert found["costs"] is None and found["forward"]["predicted_us"] is None and found["forward"]["launches"] == []
    _, op, shapes, arguments = CALLS[name]
    for direction in ("forward", "backward"):
        useful = framework.face("flops")(op, *shapes, backward=direction == "backward", **arguments)
        assert found[direction]["useful_flops"] == useful


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_a_gpu_that_is_not_here(framework: Framework, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exact counts of every launch, the model's time, and dense attention's beside it."""
    options, op = CALLS[name][0].split(), CALLS[name][1]
    found = planned(framework, [*options, "--device", M4, "--compare"], capsys)
    assert found["device"] == {"name": M4, "kind": "gpu"}
    assert found["costs"] == {"device": M4, "measured": False, "error": costs.table()["error"]}
    module, device = framework.module, framework.module("_tools.plan").TARGET.device(M4)
    own = module("_metal.plan.costs")
    problem = _problem(framework, options)
    plan = framework.module("_device").machine().plan(problem, device, "auto")
    assert found["backend"] == plan.backend in ("metal", "nanobind", "fast_metal")
    for direction, program in (("forward", plan.forward), ("backward", plan.backward_without_lse)):
        launches, counts = found[direction]["launches"], own.launch_counts(program)
        assert [each["kernel"] for each in launches] == [launch.instance.name for launch in program.launches] != []
        for each, launch, exact in zip(launches, program.launches, counts, strict=True):
            assert (each["threadgroups"], each["threads"]) == (list(launch.grid), launch.threads)
            assert each["counts"] == {field: getattr(exact, field) for field in forecast.COUNTS}
            assert each["counts"]["bricks"] == launch.bricks and each["counts"]["full"] == launch.full
            assert each["predicted_us"] > 0
        total = sum(each["predicted_us"] for each in launches)
        assert found[direction]["predicted_us"] == pytest.approx(total)
        assert found[direction]["executed_over_useful"] >= (1 if direction == "forward" else 0)
    assert (found["all_keys"] is None) == (op[2:] in ("d_qk", "d_av") or op[-2:] in ("qk", "av"))
    if found["all_keys"] is not None:
        assert found["all_keys"]["forward_us"] > 0 and found["all_keys"]["backward_us"] > 0
    _check_alternatives(framework, found)


def _problem(framework: Framework, options: list[str]) -> Any:
    """The problem of the command's options."""
    import argparse

    tools = framework.module("_metal.tools.plan")
    parser = argparse.ArgumentParser()
    tools.add_plan(parser.add_subparsers(), framework.package_name, lambda: None)
    op, specs, given = tools.described(parser.parse_args(["plan", *options]))
    return framework.module("_metal.problem.faces").explained("plan", op, specs, given)


def _check_alternatives(framework: Framework, found: dict[str, Any]) -> None:
    backends = {each["backend"]: each for each in found["backends"]}
    assert list(backends) == list(framework.module("_backends").ORDER)
    assert [name for name, each in backends.items() if each["chosen"]] == [found["backend"]]
    assert backends[found["backend"]]["forward_us"] == found["forward"]["predicted_us"]
    for each in backends.values():
        assert (each["reason"] is None) or (each["forward_us"] is None)
    walks = [
        (direction, launch)
        for direction in ("forward", "backward")
        for launch in found[direction]["launches"]
        if launch["tiling"] is not None and "of_additional" not in launch["kernel"]
    ]
    assert 0 < len(found["tilings"]) <= len(walks)
    for listed in found["tilings"]:
        (chosen,) = [each for each in listed["candidates"] if each["chosen"]]
        times = [each["predicted_us"] for each in listed["candidates"]]
        assert times == sorted(times)
        match = [
            launch
            for direction, launch in walks
            if (direction, launch["template"]) == (listed["direction"], listed["template"])
            and launch["tiling"] == {name: chosen[name] for name in launch["tiling"]}
        ]
        assert [launch["counts"]["bricks"] for launch in match][:1] == [chosen["bricks"]]


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_what_is_printed(framework: Framework, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli, target = importlib.import_module(f"{framework.package_name}.cli"), tmp_path / "plan.json"
    options = ["plan", "--shape", "64", "64", "--kernel-size", "7", "--device", M4, "--compare", "--json", str(target)]
    assert cli.main(options) == 0
    printed, found = capsys.readouterr().out, json.loads(target.read_text())
    assert printed.startswith(found["explain"] + "\n")
    for launch in found["forward"]["launches"] + found["backward"]["launches"]:
        assert re.search(rf"^ {launch['template']} .* {launch['counts']['bricks']:,} ", printed, re.MULTILINE)
    assert f"unit costs: predicted for {M4}, not measured; the model's error is about" in printed
    assert "attention of 4096 queries to 4096 keys, with the same kernels: " in printed
    assert " chosen" in printed and f"{found['backend']} (chosen)" in printed
    fields = re.findall(r"^\| `(\w+)` \|", DOCUMENT.read_text().partition("Its fields:")[2], re.MULTILINE)
    assert fields == list(found)


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_no_number_is_printed_as_a_power_of_ten(framework: Framework, capsys: pytest.CaptureFixture[str]) -> None:
    """Where all keys take thousands of times as long, and where there is next to nothing to do."""
    cli = importlib.import_module(f"{framework.package_name}.cli")
    for shape in ("200000", "3"):
        assert cli.main(["plan", "--shape", shape, "--kernel-size", "2", "--head-dim", "1", "--device", M4]) == 0
        printed = capsys.readouterr().out
        assert re.search(r", \d+(\.\d+)? times as long$", printed, re.MULTILINE)
        assert not re.search(r"\de[+-]\d", printed)


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shape", "8", "--kernel-size", "9"], "na1d: kernel_size * dilation must not exceed the axis length"),
        (["--shape", "8"], "na1d needs --kernel-size"),
        (
            ["--shape", "8", "--kernel-size", "3", "--device", "Apple Pie"],
            "--device 'Apple Pie' is not known; known are",
        ),
        (["--shape", "8", "--kernel-size", "3", "--backend", "flex"], "plan: unknown backend 'flex'"),
        (["--shape", "8", "--kernel-size", "3", "--heads", "3", "--kv-heads", "2"], "na1d: "),
        (["--op", "na2d", "--shape", "8", "--kernel-size", "3"], "na2d: "),
        (["--shape", "8", "--kernel-size", "3", "--backend", "metal", "--device", "cpu"], "cannot take this problem"),
        (["--shape", "8", "--kernel-size", "3", "--json", "no/folder.json"], "there is no folder"),
    ],
)
def test_errors(framework: Framework, options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    cli = importlib.import_module(f"{framework.package_name}.cli")
    assert cli.main(["plan", *options]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith(f"{framework.package_name.replace('_', '-')} plan: ") and message in printed.err
    assert printed.out == ""


def test_every_op_can_be_planned(capsys: pytest.CaptureFixture[str]) -> None:
    for framework in FRAMEWORKS:
        for op in OPS.values():
            for rank, face in enumerate(op.faces[1:], 1):
                shape = ["7"] * (1 if face == "attention" else rank)
                window = [] if face == "attention" else ["--kernel-size", "3"]
                found = planned(framework, ["--op", face, "--shape", *shape, *window, "--device", M4], capsys)
                assert found["explain"].startswith(f"{face}: ")
