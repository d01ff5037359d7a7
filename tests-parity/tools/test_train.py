"""The training demo: the same small classifier learns to read digits in both packages, step for step."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from frameworks import FRAMEWORKS, MPS, OURS, Framework
from frameworks import Path as OnBackend
from PIL import Image
from sklearn.datasets import load_digits

from natten_mps._metal.tools import curves, train

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
import compare_training

# One worker trains for all of these tests.
pytestmark = pytest.mark.xdist_group("train")

STEPS = 40
# The loss starts at 2.5, where adjacent float32 numbers are 2.4e-7 apart. Before rounding errors have grown, two orders
# of summation differ by a few of those steps; at the end of the short run backends may differ by 1e-5. Another formula
# differs by more: test_the_bound_is_tight.
AT_FIRST, FIRST = 2e-6, 5
AT_LAST = 1e-5
PALE, BRIGHT = (colour for colour, _ in curves.STYLES)


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bounds are those of CPUs. (MLX: see frameworks.Mlx.)"""
    import torch

    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


def command(framework: Framework, *arguments: object) -> int:
    assert framework.package
    return int(framework.module("cli").main(["demo", "train", *map(str, arguments)]))


@dataclasses.dataclass(frozen=True)
class Run:
    """The output of a training run: its record, the picture, and the record's text."""

    record: train.Record
    picture: np.ndarray
    text: str


def trained(backend: OnBackend, *arguments: object) -> Run:
    """A training run by the command, on the requested backend and no other."""
    with TemporaryDirectory() as folder:
        out, record = Path(folder) / "out.png", Path(folder) / "run.json"
        with backend.framework.watch() as ran:
            given = ("--backend", backend.backend, "--out", out, "--record", record, *arguments)
            assert command(backend.framework, *given) == 0
        assert ran == {backend.backend}
        with Image.open(out) as picture:
            assert picture.format == "PNG"
            pixels = np.asarray(picture)
        text = record.read_text()
        return Run(train.Record(**json.loads(text)), pixels, text)


@cache
def short(backend: OnBackend) -> Run:
    return trained(backend, "--steps", STEPS)


DENSE = OnBackend(MPS, "dense")


# --- data and model of both packages --------------------------------------------------------------------


def test_patches_are_the_pixels_around_every_second_one() -> None:
    images = np.arange(2 * 64, dtype=np.float32).reshape(2, 8, 8) + 1
    found = train.patches(images)
    assert (found.shape, found.dtype) == ((2, 4, 4, 9), np.float32)
    np.testing.assert_array_equal(found[1, 1, 2].reshape(3, 3), images[1, 1:4, 3:6])
    np.testing.assert_array_equal(found[0, 0, 0].reshape(3, 3), [[0, 0, 0], [0, 1, 2], [0, 9, 10]])


def test_a_fifth_is_held_out() -> None:
    digits = train.load_patches()
    assert (len(digits.labels), len(digits.test_labels)) == (1438, 359)
    both = np.concatenate([digits.images, digits.test_images]), np.concatenate([digits.labels, digits.test_labels])
    found = sorted((label, image.tobytes()) for image, label in zip(*both, strict=True))
    real = load_digits()
    images = train.patches((real.images / 16).astype(np.float32))
    assert found == sorted((label, image.tobytes()) for image, label in zip(images, real.target, strict=True))
    # No digit is rare among those held out, and they are not sorted.
    assert np.bincount(digits.test_labels).min() > 20
    assert np.array_equal(digits.test_images, train.load_patches().test_images)


def test_batches_show_every_image_once_before_any_again() -> None:
    images = np.arange(100, dtype=np.float32).reshape(-1, 1, 1, 1)
    digits = train.Digits(images, np.arange(100), images, np.arange(100))
    found = list(train.batches(digits, 7, 3))
    assert [len(labels) for _, labels in found] == [32] * 7
    epochs = [np.concatenate([labels for _, labels in found[i : i + 3]]) for i in (0, 3)]
    assert [len(set(epoch)) for epoch in epochs] == [96, 96]
    assert not np.array_equal(*epochs)
    assert all(np.array_equal(image.ravel(), labels) for image, labels in found)
    again, other = (np.concatenate([labels for _, labels in train.batches(digits, 7, seed)]) for seed in (3, 4))
    np.testing.assert_array_equal(again, np.concatenate([labels for _, labels in found]))
    assert not np.array_equal(again, other)


def test_rates_rise_and_fall() -> None:
    rates = train.rates(300)
    peak = int(np.argmax(rates))
    assert 40 <= peak <= 50
    assert 0.9 * train.RATE < rates[peak] < train.RATE
    assert (np.diff(rates[: peak + 1]) > 0).all()
    assert (np.diff(rates[peak:]) < 0).all()
    assert rates[0] == pytest.approx(train.RATE / train.WARM_UP)
    assert 0 < rates[-1] < 1e-3 * train.RATE


def test_initial_weights() -> None:
    weights = train.initial_weights(0)
    assert {weight.dtype for weight in weights.values()} == {np.dtype(np.float32)}
    qkv = weights["blocks.1.attention.qkv.weight"]
    assert qkv.std() == pytest.approx(train.WIDTH**-0.5, rel=0.05)
    assert not np.array_equal(qkv, weights["blocks.0.attention.qkv.weight"])
    assert not np.array_equal(qkv, train.initial_weights(1)["blocks.1.attention.qkv.weight"])
    np.testing.assert_array_equal(qkv, train.initial_weights(0)["blocks.1.attention.qkv.weight"])


def weights_of(framework: Framework, model: Any) -> dict[str, np.ndarray]:
    """The model's weights by name, as its own framework names them."""
    if framework is MPS:
        return {name: framework.numpy(tensor) for name, tensor in model.state_dict().items()}
    from mlx.utils import tree_flatten

    return {name: framework.numpy(array) for name, array in tree_flatten(model.trainable_parameters())}


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_models_start_from_the_initial_weights(framework: Framework) -> None:
    initial = train.initial_weights(5)
    found = weights_of(framework, framework.module("_tools.train").Trainer(initial).model)
    assert found.keys() == initial.keys()
    for name, weight in initial.items():
        np.testing.assert_array_equal(found[name], weight, err_msg=name)


# --- whole training -----------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", OURS, ids=str)
def test_short_training_is_that_of_dense_attention(backend: OnBackend) -> None:
    run, expected = short(backend).record, short(DENSE).record
    assert (run.package, run.seed, len(run.losses)) == (f"natten-{backend.framework}", 0, STEPS)
    np.testing.assert_allclose(run.losses[:FIRST], expected.losses[:FIRST], rtol=0, atol=AT_FIRST)
    np.testing.assert_allclose(run.losses, expected.losses, rtol=0, atol=AT_LAST)
    # A tenth of the digits by chance, more than half of them after 40 steps.
    assert run.before == expected.before < 0.2
    assert run.after > 0.5
    assert np.mean(run.losses[-5:]) < 0.7 * np.mean(run.losses[:5])
    labels = train.load_patches().test_labels
    assert run.after == np.mean(np.equal(run.predictions, labels))
    # A digit on the edge between two classes may fall either way.
    assert np.not_equal(run.predictions, expected.predictions).sum() <= 1


@pytest.mark.parametrize(
    ("name", "value"), [("DECAY", 0.049), ("BETAS", (0.9, 0.991)), ("WINDOW", 2), ("RATE", 3.003e-3), ("BATCH", 31)]
)
def test_the_bound_is_tight(name: str, value: object, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = short(DENSE).record.losses
    monkeypatch.setattr(train, name, value)
    changed = trained(DENSE, "--steps", STEPS).record.losses
    assert np.abs(np.subtract(changed, expected)).max() > AT_LAST


@pytest.mark.all
@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_whole_training_reads_97_of_100(framework: Framework) -> None:
    run = trained(OnBackend(framework, "pure")).record
    assert len(run.losses) == 800
    assert run.after >= 0.97
    assert run.seconds < 120


# --- the command --------------------------------------------------------------------------------------


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_what_is_printed(framework: Framework, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.png"
    assert command(framework, "--steps", 2, "--backend", "pure", "--out", out, "--seed", 4, "--progress") == 0
    printed, bar = capsys.readouterr()
    assert "train: 100%" in bar
    assert "2/2" in bar
    assert re.search(r"loss \d\.\d{4}", bar)
    lines = printed.splitlines()
    assert lines[0] == "digits   8 x 8 pixels: 1438 to learn from, 359 held out"
    size = sum(weight.size for weight in train.initial_weights(4).values())
    assert lines[1] == f"model    2 blocks, window 3 x 3 of 4 x 4 tokens, {size} weights, seed 4"
    assert lines[2].startswith("plan     na2d: batch 32, shape (4, 4), heads 2, head_dim 16, kernel_size (3, 3)")
    assert "         backend: pure (backend='pure' was asked for)" in lines
    assert re.fullmatch(r"time     \d+\.\d\d s for 2 steps of 32 images", lines[-4])
    assert re.fullmatch(r"loss     \d\.\d{4} -> \d\.\d{4}", lines[-3])
    assert re.fullmatch(r"accuracy \d+\.\d\d% -> \d+\.\d\d% of the held-out digits", lines[-2])
    assert lines[-1] == f"wrote    {out}"


@pytest.fixture(params=FRAMEWORKS, ids=str)
def cli(request: pytest.FixtureRequest) -> ModuleType:
    return importlib.import_module(f"{request.param.package_name}.cli")


def name_of(cli: ModuleType) -> str:
    return cli.__name__.split(".")[0].replace("_", "-")


def test_help(cli: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, expected in (
        (["--help"], "train a classifier of handwritten digits"),
        (["demo", "--help"], "demo train` trains a classifier instead."),
        (["demo", "train", "--help"], f"example: {name_of(cli)} demo train --seed 1 --record run.json"),
    ):
        with pytest.raises(SystemExit) as exit_:
            cli.main(arguments)
        assert exit_.value.code == 0
        assert expected in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "argument --steps: must be at least 1; got 0"),
        (["--steps", "many"], "argument --steps: 'many' is not a whole number"),
        (["--seed", "-1"], "argument --seed: must be at least 0; got -1"),
    ],
)
def test_bad_arguments(cli: ModuleType, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(["demo", "train", *arguments])
    assert exit_.value.code == 2
    assert capsys.readouterr().err.endswith(f"{name_of(cli)} demo train: error: {message}\n")


def test_errors(cli: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nowhere = tmp_path / "nowhere" / "run.json"
    status = cli.main(["demo", "train", "--out", str(tmp_path / "out.png"), "--record", str(nowhere)])
    wanted = f"{name_of(cli)} demo train: {nowhere}: there is no folder {nowhere.parent}\n"
    assert (status, *capsys.readouterr()) == (1, "", wanted)


def test_an_unusable_backend(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for framework, backend in zip(FRAMEWORKS, ("metal", "fast_metal"), strict=True):
        assert command(framework, "--backend", backend, "--out", tmp_path / "out.png") == 1
        wanted = f"natten-{framework} demo train: na2d: backend='{backend}' cannot take this problem: "
        assert capsys.readouterr().err.startswith(wanted)


def test_an_image_called_train(cli: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo", "./train"]) == 1
    assert capsys.readouterr().err == f"{name_of(cli)} demo: train: no such file\n"


def test_a_missing_module_is_named(
    cli: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert cli.main(["demo", "train"]) == 1
    wanted = f'the demo needs scikit-learn, which is not installed: pip install "{name_of(cli)}[demo]"'
    assert capsys.readouterr().err == f"{name_of(cli)} demo train: {wanted}\n"


def test_a_loss_that_is_no_number_ends_the_training(
    cli: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = importlib.import_module(f"{cli.__package__}._metal.tools.train")
    trainer = importlib.import_module(f"{cli.__package__}._tools.train").Trainer
    monkeypatch.setattr(trainer, "step", lambda *_: float("nan"))
    arguments = ["demo", "train", "--out", str(tmp_path / "out.png")]
    assert cli.main(arguments) == 1
    assert capsys.readouterr().err == f"{name_of(cli)} demo train: the loss became nan in step 1\n"
    assert shared.STEPS == 800
    assert not (tmp_path / "out.png").exists()


# --- the picture of both ------------------------------------------------------------------------------


def shown(pixels: np.ndarray, colour: tuple[int, int, int], box: tuple[int, int, int, int]) -> np.ndarray:
    """Where a colour occurs inside a plot, rows from its top."""
    left, top, right, bottom = box
    return (pixels[top : bottom + 1, left : right + 1] == colour).all(-1)


def test_curves_are_drawn_at_their_losses() -> None:
    falling = [10.0 ** (-2 * step / 99) for step in range(100)]
    drawn = [curves.Curve("falls", tuple(falling)), curves.Curve("stays", (0.5,) * 100)]
    plot = curves.axes(drawn)
    assert (plot.steps, plot.low, plot.high) == (100, -2, 0)
    pixels = np.asarray(curves.draw_curves("header", drawn))
    left, top, right, bottom = plot.box
    pale, bright = (shown(pixels, colour, plot.box) for colour in (PALE, BRIGHT))
    for step in range(100):
        x = round(step / 99 * (right - left))
        rows = np.flatnonzero(pale[:, x])
        if abs(falling[step] - 0.5) > 0.1:  # except where the other lies over it
            assert abs(rows.mean() - (step / 99) * (bottom - top)) <= 4
        level = np.flatnonzero(bright[:, x])
        assert len(level) == 3
        assert abs(level.mean() + np.log10(0.5) / 2 * (bottom - top)) <= 1


def test_a_loss_of_zero_can_be_drawn() -> None:
    assert curves.axes([curves.Curve("zero", (1.0, 0.0))]).low == -8
    assert curves.draw_curves("header", [curves.Curve("zero", (0.0,))]).size == curves.SIZE
    with pytest.raises(ValueError, match="zip"):
        curves.draw_curves("header", [curves.Curve("one of three", (1.0,))] * 3)


def test_the_command_draws_one_curve() -> None:
    run = short(DENSE)
    box = curves.axes([train.curve_of(run.record)]).box
    assert shown(run.picture, PALE, box).any(0).mean() > 0.99
    assert not shown(run.picture, BRIGHT, box).any()


@pytest.fixture
def records(tmp_path: Path) -> tuple[Path, Path]:
    """The records of the short training in both packages."""
    paths = tmp_path / "mps.json", tmp_path / "mlx.json"
    for framework, path in zip(FRAMEWORKS, paths, strict=True):
        path.write_text(short(OnBackend(framework, "pure")).text)
    return paths


def test_both_curves_are_drawn(records: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "train.png"
    assert compare_training.main([*map(str, records), "--out", str(out), "--bound", str(AT_LAST)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("natten-mps and natten-mlx agree: losses differ by at most ")
    assert " of 359 digits were read differently\n" in printed
    loaded = [compare_training.load_record(path) for path in records]
    box = curves.axes([train.curve_of(record) for record in loaded]).box
    with Image.open(out) as picture:
        assert (picture.format, picture.size) == ("PNG", curves.SIZE)
        pixels = np.asarray(picture)
    for colour in (PALE, BRIGHT):
        assert shown(pixels, colour, box).any(0).mean() > 0.99


def test_disagreement_is_reported(
    records: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = records
    run = json.loads(second.read_text())
    out = ["--out", str(tmp_path / "train.png")]
    for changed, status, wanted in (
        ({"losses": [run["losses"][0] + 0.002, *run["losses"][1:]]}, 1, "DISAGREE"),
        ({"after": run["after"] - 0.011}, 1, "DISAGREE"),
        ({"seed": 1}, 2, "compare_training: different seed: 0 of natten-mps, 1 of natten-mlx\n"),
        ({"losses": run["losses"][:-1]}, 2, "compare_training: different steps: 40 of natten-mps, 39 of natten-mlx\n"),
        ({"losses": []}, 2, "expected finite losses\n"),
        ({"loss": 1}, 2, "not a record of a training: "),
    ):
        second.write_text(json.dumps(run | changed))
        assert compare_training.main([str(first), str(second), *out]) == status
        printed, error = capsys.readouterr()
        assert wanted in (printed if status == 1 else error)
