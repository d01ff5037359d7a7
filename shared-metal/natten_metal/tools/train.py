"""The ``demo train`` command of both packages: learn to read handwritten digits by neighborhood attention.

A small classifier is trained on scikit-learn's handwritten digits, with the same initial weights and the same batches
in both packages. With ``p`` the 4x4 grid of overlapping 3x3 patches of an image:

    x = embed(p) + position
    x = x + attention(norm1(x));  x = x + contract(silu(expand(norm2(x))))        in each block
    logits = head(norm(x), all tokens concatenated)

The framework is passed in as a :class:`TrainPackage`, with the model and the optimizer (AdamW); the rest is here.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from .command_line import CommandError, backend_in_force, check_outputs, end, natural, positive, write
from .curves import Curve, draw_curves
from .demo import require

if TYPE_CHECKING:
    import numpy as np

    from .denoise import Array

    Labels = np.ndarray[tuple[int, ...], np.dtype[np.int64]]

SIDE = 8
CLASSES = 10
# An image is a grid of GRID x GRID tokens: 3x3 pixels around every second pixel of every second row.
PATCH = 3
GRID = 4
WIDTH = 32
HEADS = 2
HIDDEN = 64
BLOCKS = 2
WINDOW = 3

STEPS = 800
BATCH = 32
# The shape of a batch's query, for the attention op.
QUERY_SHAPE = (BATCH, GRID, GRID, HEADS, WIDTH // HEADS)
RATE = 3e-3
WARM_UP = 50
# The remaining settings of AdamW. A long memory of squared gradients (0.999) does not suit a run this short.
BETAS = (0.9, 0.99)
EPSILON = 1e-8
DECAY = 0.05
# Which fifth of the images is held out; fixed, so that runs of any seed can be compared.
SPLIT_SEED = 0


@dataclass(frozen=True, slots=True)
class Digits:
    """Patches ``[N, 4, 4, 9]`` float32 with ink from 0 to 1, and labels ``[N]``: for training, and held out."""

    images: "Array"
    labels: "Labels"
    test_images: "Array"
    test_labels: "Labels"


class Trainer(Protocol):
    """The model and its optimizer in one framework."""

    def step(self, images: "Array", labels: "Labels", rate: float) -> float:
        """One step of AdamW at a learning rate; returns the mean cross-entropy before it."""

    def logits(self, images: "Array") -> "Array":
        """``[N, 4, 4, 9]`` -> ``[N, 10]``."""

    def explain(self) -> str:
        """The package's explanation of how it attends to a batch."""


@dataclass(frozen=True, slots=True)
class TrainPackage:
    """The package that trains.

    package: its name, 'natten-mps'. backends: those that can train. trainer(weights) -> a :class:`Trainer` that
    starts from :func:`initial_weights`. get_backend, use_backend: the package's functions.
    """

    package: str
    backends: tuple[str, ...]
    get_backend: Callable[[], str]
    trainer: Callable[[dict[str, "Array"]], Trainer]
    use_backend: Callable[[str], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class Record:
    """The results of a run.

    losses: mean cross-entropy of each step's batch. before, after: accuracy on the held-out images, from 0 to 1.
    predictions: the digit read from each held-out image. seconds: of training, without evaluation.
    """

    package: str
    seed: int
    losses: list[float]
    before: float
    after: float
    predictions: list[int]
    seconds: float


def load_patches() -> Digits:
    """scikit-learn's 1797 handwritten digits, every fifth of a fixed shuffle held out."""
    import numpy as np
    from sklearn.datasets import load_digits

    found = load_digits()
    images = patches((found.images / found.images.max()).astype(np.float32))
    labels = found.target.astype(np.int64)
    order = np.random.default_rng(SPLIT_SEED).permutation(len(labels))
    test, train = np.split(order, [len(order) // 5])
    return Digits(images[train], labels[train], images[test], labels[test])


def patches(images: "Array") -> "Array":
    """The overlapping 3x3 patches ``[N, 4, 4, 9]`` of images ``[N, 8, 8]``, zeros around the border."""
    import numpy as np

    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)))
    found = np.lib.stride_tricks.sliding_window_view(padded, (PATCH, PATCH), (1, 2))[:, ::2, ::2]
    return found.reshape(len(images), GRID, GRID, PATCH * PATCH)


def initial_weights(seed: int) -> dict[str, "Array"]:
    """The model's weights by name, float32: projections normal with variance 1 / (inputs), biases 0, norms 1."""
    import numpy as np

    generator = np.random.default_rng([seed, 0])

    def linear(name: str, outputs: int, inputs: int) -> dict[str, "Array"]:
        weight = generator.standard_normal((outputs, inputs), np.float32) / np.float32(math.sqrt(inputs))
        return {f"{name}.weight": weight, f"{name}.bias": np.zeros(outputs, np.float32)}

    def norm(name: str) -> dict[str, "Array"]:
        return {f"{name}.weight": np.ones(WIDTH, np.float32), f"{name}.bias": np.zeros(WIDTH, np.float32)}

    weights = linear("embed", WIDTH, PATCH * PATCH)
    weights["position"] = generator.standard_normal((GRID, GRID, WIDTH), np.float32) / 2
    for index in range(BLOCKS):
        block = f"blocks.{index}"
        weights |= norm(f"{block}.norm1")
        weights |= linear(f"{block}.attention.qkv", 3 * WIDTH, WIDTH) | linear(f"{block}.attention.proj", WIDTH, WIDTH)
        weights |= norm(f"{block}.norm2")
        weights |= linear(f"{block}.expand", HIDDEN, WIDTH) | linear(f"{block}.contract", WIDTH, HIDDEN)
    return weights | norm("norm") | linear("head", CLASSES, GRID**2 * WIDTH)


def batches(digits: Digits, steps: int, seed: int) -> Iterator[tuple["Array", "Labels"]]:
    """``steps`` batches of images and labels, reshuffled each time all images have been used."""
    import numpy as np

    generator = np.random.default_rng([seed, 1])
    each = len(digits.labels) // BATCH
    for step in range(steps):
        if step % each == 0:
            order = generator.permutation(len(digits.labels))
        chosen = order[step % each * BATCH :][:BATCH]
        yield digits.images[chosen], digits.labels[chosen]


def rates(steps: int) -> list[float]:
    """The learning rate of each step: a linear rise over the first 50, times half a cosine that ends near 0."""
    return [RATE * min((step + 1) / WARM_UP, 1) * (1 + math.cos(math.pi * step / steps)) / 2 for step in range(steps)]


def add_train(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", runner: TrainPackage) -> None:
    """Add the ``demo train`` command to a command line; its ``run`` default takes the parsed arguments.

    The command has two words, which :func:`join_train` joins.
    """
    package = runner.package
    parser = commands.add_parser(
        "demo train",
        help="train a classifier of handwritten digits, and draw its loss curve",
        description=f"""Train a small classifier, {BLOCKS} blocks of 2-D neighborhood attention, on 1438 of
            scikit-learn's 1797 handwritten digits, and test it on the others. Initial weights and batches depend only
            on the seed. Prints the time, the loss and the accuracy, and draws the loss curve as a PNG.""",
        epilog=f"example: {package} demo train --seed 1 --record run.json",
    )
    add = parser.add_argument
    add(
        "--steps",
        type=positive,
        default=STEPS,
        metavar="N",
        help=f"steps of {BATCH} images (default: %(default)s)",
    )
    add(
        "--seed",
        type=natural,
        default=0,
        metavar="N",
        help="seed of the initial weights and of the batches (default: %(default)s)",
    )
    add("--backend", choices=runner.backends, help="the backend to use (default: the backend in force)")
    add(
        "--out",
        type=Path,
        default=Path(f"{package}-train.png"),
        metavar="FILE",
        help="where the loss curve goes, PNG (default: %(default)s)",
    )
    add("--record", type=Path, metavar="FILE", help="also save the losses, the accuracies and the digits read, as JSON")
    add("--progress", action="store_true", help="show the progress bar even if stderr is not a terminal")
    parser.set_defaults(run=lambda arguments: end(f"{runner.package} demo train", lambda: run(arguments, runner)))


def join_train(argv: list[str]) -> list[str]:
    """The command line with ``demo train`` as one word; an image of that name is given as ``./train``."""
    return ["demo train", *argv[2:]] if argv[:2] == ["demo", "train"] else argv


def accuracy(trainer: Trainer, digits: Digits) -> tuple[float, list[int]]:
    """The fraction of the held-out images that are read correctly, and what each was read as."""
    predictions = trainer.logits(digits.test_images).argmax(-1)
    return float((predictions == digits.test_labels).mean()), predictions.tolist()


def train(trainer: Trainer, digits: Digits, args: argparse.Namespace) -> list[float]:
    """The loss of each step. Shows a progress bar of steps on stderr."""
    from tqdm import tqdm

    losses: list[float] = []
    hidden = not (args.progress or sys.stderr.isatty())
    with tqdm(total=args.steps, unit="step", desc="train", file=sys.stderr, disable=hidden) as bar:
        for (images, labels), rate in zip(batches(digits, args.steps, args.seed), rates(args.steps), strict=True):
            loss = trainer.step(images, labels, rate)
            if not math.isfinite(loss):
                raise CommandError(f"the loss became {loss} in step {len(losses) + 1}")
            losses.append(loss)
            bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
            bar.update()
    return losses


def run(args: argparse.Namespace, runner: TrainPackage) -> int:
    """Run the command; returns the exit status. Messages go to stderr, results to stdout."""
    with nullcontext() if args.backend is None else runner.use_backend(args.backend):
        _run(args, runner)
    return 0


def _run(args: argparse.Namespace, runner: TrainPackage) -> None:
    require(["numpy", "PIL", "tqdm", "sklearn"], runner.package)
    check_outputs([args.out, args.record])
    backend_in_force(runner.get_backend, runner.backends)
    digits, weights = load_patches(), initial_weights(args.seed)
    trainer = runner.trainer(weights)
    print(f"digits   {SIDE} x {SIDE} pixels: {len(digits.labels)} to learn from, {len(digits.test_labels)} held out")
    print(
        f"model    {BLOCKS} blocks, window {WINDOW} x {WINDOW} of {GRID} x {GRID} tokens, "
        f"{sum(weight.size for weight in weights.values())} weights, seed {args.seed}"
    )
    try:
        print("plan     " + trainer.explain().replace("\n", "\n         "), flush=True)
    except NotImplementedError as error:
        raise CommandError(str(error)) from None
    before, _ = accuracy(trainer, digits)
    start = time.perf_counter()
    losses = train(trainer, digits, args)
    seconds = time.perf_counter() - start
    after, predictions = accuracy(trainer, digits)
    print(f"time     {seconds:.2f} s for {args.steps} steps of {BATCH} images")
    print(f"loss     {losses[0]:.4f} -> {losses[-1]:.4f}")
    print(f"accuracy {before:.2%} -> {after:.2%} of the held-out digits")
    _write(Record(runner.package, args.seed, losses, before, after, predictions, seconds), args)


def curve_of(record: Record) -> Curve:
    """The run's loss curve, labelled with the final result."""
    return Curve(f"{record.package}: {record.after:.2%} right, {record.seconds:.1f} s", tuple(record.losses))


def _write(record: Record, args: argparse.Namespace) -> None:
    """The loss curve, and the record if requested."""
    picture = draw_curves("Neighborhood attention learns to read digits: loss by step", [curve_of(record)])
    write(args.out, lambda file: picture.save(file, format="PNG"))
    if args.record is not None:
        write(args.record, lambda file: file.write(f"{json.dumps(asdict(record))}\n".encode()))
    print(f"wrote    {args.out}" + (f", {args.record}" if args.record is not None else ""))
