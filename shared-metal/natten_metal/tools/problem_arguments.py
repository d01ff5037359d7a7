"""The options of a command that is asked about a problem: shape and window, as the functions take them."""

import argparse
from collections.abc import Sequence
from typing import Any

from ..problem.problem import RANKS
from .command_line import CommandError

# A window's arguments, and what those mean that are not given; a window has no other size than one that is given.
_DEFAULTS: dict[str, tuple[Any, ...]] = {"stride": (1,), "dilation": (1,), "is_causal": (False,), "wrap": (False,)}
WINDOW = ("kernel_size", *_DEFAULTS)
_FLAGS = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}
Parser = argparse.ArgumentParser


def add_shape(parser: Parser, required: bool = True) -> None:
    """``--shape``, of the tokens."""
    parser.add_argument(
        "--shape", type=int, nargs="+", required=required, metavar="N", help="tokens of each axis: 1, 2 or 3 numbers"
    )


def add_window(parser: Parser, required: bool = True) -> None:
    """``--kernel-size``, ``--stride``, ``--dilation``, ``--is-causal`` and ``--wrap``: one value, or one per axis."""
    for name, needed, text in (
        ("--kernel-size", required, "keys that a query attends to along each axis"),
        ("--stride", False, "queries that share a window (default: 1)"),
        ("--dilation", False, "distance between neighbors (default: 1)"),
    ):
        help_text = f"{text}; one value or one per axis"
        parser.add_argument(name, type=int, nargs="+", required=needed, metavar="N", help=help_text)
    for name, text in (
        ("--is-causal", "a query sees itself and what lies before"),
        ("--wrap", "windows pass over the end of the axis"),
    ):
        help_text = f"{text}: on every axis, or 'yes' or 'no' for each"
        parser.add_argument(name, type=_flag, nargs="*", metavar="yes|no", help=help_text)


def _flag(text: str) -> bool:
    if text.lower() not in _FLAGS:
        raise argparse.ArgumentTypeError(f"must be yes or no; got '{text}'")
    return _FLAGS[text.lower()]


def shape_of(arguments: argparse.Namespace) -> tuple[int, ...]:
    """The shape; :class:`CommandError` unless it has one to three positive lengths."""
    shape = tuple(arguments.shape)
    if len(shape) not in RANKS:
        raise CommandError(f"--shape takes 1, 2 or 3 numbers, one per axis; got {len(shape)}")
    if min(shape) < 1:
        raise CommandError(f"--shape must be at least 1 on each axis; got {shape}")
    return shape


def option(name: str) -> str:
    """The option of an argument: '--kernel-size'."""
    return f"--{name.replace('_', '-')}"


def window_of(arguments: argparse.Namespace, rank: int, names: Sequence[str] = WINDOW) -> dict[str, tuple[Any, ...]]:
    """The window's arguments by name, one entry per axis each; :class:`CommandError` if some have another number."""
    found = {}
    for name in names:
        given = getattr(arguments, name)
        values = _DEFAULTS[name] if given is None else tuple(given) or (True,)  # a switch without values
        if len(values) not in (1, rank):
            takes = "one value" if rank == 1 else f"one value, or one for each of {rank} axes"
            raise CommandError(f"{option(name)} takes {takes}; got {len(values)}")
        found[name] = values * rank if len(values) == 1 else values
    return found
