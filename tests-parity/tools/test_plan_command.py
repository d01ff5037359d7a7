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
from plan_calls import CALLS, M4, planned
from torch.utils._python_dispatch import TorchDispatchMode

from natten_mps._metal.problem.ops import OPS

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "backends.md"
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
def test_what_is_printed(framework: Framework, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli, target = importlib.import_module(f"{framework.package_name}.cli"), tmp_path / "plan.json"
    options = ["plan", "--shape", "64", "64", "--kernel-size", "7", "--device", M4, "--compare", "--json", str(target)]
    assert cli.main(options) == 0
    printed, found = capsys.readouterr().out, json.loads(target.read_text())
    assert printed.startswith(found["explain"] + "\n")
    assert len(found["forward"]["launches"]) == 1 and len(found["backward"]["launches"]) == 3
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
        (["--shape", "8", "--kernel-size", "3", "--backend", "flex"], "unknown backend 'flex'"),
        (
            ["--shape", "8", "--kernel-size", "3", "--heads", "3", "--kv-heads", "2"],
            "na1d: query heads must be a multiple of key/value heads; got 3 and 2",
        ),
        (
            ["--op", "na2d", "--shape", "8", "--kernel-size", "3"],
            "na2d: query must be [batch, X, Y, heads, dim] (5-D); ",
        ),
        (["--op", "attention", "--shape", "8", "--kernel-size", "3"], "attention has no --kernel-size; --op na1d has"),
        (["--op", "attention", "--shape", "8", "--stride", "1"], "attention has no --stride; --op na1d has"),
        (["--op", "attention", "--shape", "8", "--wrap"], "attention has no --wrap; --op na1d has"),
        (["--op", "attention", "--shape", "8", "--query-start", "0"], "attention has no --query-start; --op na1d has"),
        (["--op", "attention", "--shape", "8", "--rpb"], "attention has no --rpb; --op na1d has"),
        (["--op", "attention", "--shape", "8", "--is-causal", "yes", "no"], "--is-causal takes one value; got 2"),
        (
            ["--op", "na1d_qk", "--shape", "8", "--kernel-size", "3", "--key-mask"],
            "na1d_qk has no --key-mask; --op na1d",
        ),
        (
            ["--op", "na1d_qk", "--shape", "8", "--kernel-size", "3", "--head-dim-v", "8"],
            "na1d_qk has no --head-dim-v;",
        ),
        (
            ["--op", "na1d_av", "--shape", "8", "--kernel-size", "3", "--additional", "1"],
            "na1d_av has no --additional;",
        ),
        (["--shape", "8", "--kernel-size", "3", "--backend", "metal", "--device", "cpu"], "cannot take this problem"),
        (["--shape", "8", "--kernel-size", "3", "--json", "no/folder.json"], "there is no folder"),
    ],
)
def test_errors(framework: Framework, options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    cli = importlib.import_module(f"{framework.package_name}.cli")
    assert cli.main(["plan", *options]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith(f"{framework.package_name.replace('_', '-')} plan: ") and message in printed.err
    assert printed.out == "" and "plan: plan: " not in printed.err


@pytest.mark.parametrize(
    ("option", "given", "least"),
    [
        ("--batch", "-1", 0),
        ("--additional", "-1", 0),
        ("--heads", "0", 1),
        ("--kv-heads", "0", 1),
        ("--head-dim", "-64", 1),
        ("--head-dim-v", "0", 1),
        ("--key-shape", "0", 1),
    ],
)
def test_numbers_have_a_least_one(option: str, given: str, least: int, capsys: pytest.CaptureFixture[str]) -> None:
    for framework in FRAMEWORKS:
        cli = importlib.import_module(f"{framework.package_name}.cli")
        with pytest.raises(SystemExit):
            cli.main(["plan", "--shape", "8", "--kernel-size", "3", option, given])
        assert capsys.readouterr().err.endswith(f"argument {option}: must be at least {least}; got {given}\n")


def test_every_op_can_be_planned(capsys: pytest.CaptureFixture[str]) -> None:
    for framework in FRAMEWORKS:
        for op in OPS.values():
            for rank, face in enumerate(op.faces[1:], 1):
                shape = ["7"] * (1 if face == "attention" else rank)
                window = [] if face == "attention" else ["--kernel-size", "3"]
                found = planned(framework, ["--op", face, "--shape", *shape, *window, "--device", M4], capsys)
                assert found["explain"].startswith(f"{face}: ")
