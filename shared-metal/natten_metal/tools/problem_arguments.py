"""The options of a command that is asked about a problem: shape and window, as the functions take them."""

import argparse
from typing import Any

from ..problem.problem import RANKS
from .command_line import CommandError

_FLAGS = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}
Parser = argparse.ArgumentParser


def add_shape(parser: Parser, required: bool = True) -> None:
    """``--shape``, of the tokens."""
    parser.add_argument(
        "--shape", type=int, nargs="+", required=required, metavar="N", help="tokens of each axis: 1, 2 or 3 numbers"
    )


def add_window(parser: Parser, required: bool = True) -> None:
    """``--kernel-size``, ``--stride``, ``--dilation``, ``--is-causal`` and ``--wrap``: one value, or one per axis."""
    for name, default, text in (
        ("--kernel-size", None, "keys that a query attends to along each axis"),
        ("--stride", [1], "queries that share a window (default: 1)"),
        ("--dilation", [1], "distance between neighbors (default: 1)"),
    ):
        needed = required and default is None
        add = parser.add_argument
        add(
            name,
            type=int,
            nargs="+",
            required=needed,
            default=default,
            metavar="N",
            help=f"{text}; one value or one per axis",
        )
    for name, text in (
        ("--is-causal", "a query sees itself and what lies before"),
        ("--wrap", "windows pass over the end of the axis"),
    ):
        help_text = f"{text}: on every axis, or 'yes' or 'no' for each"
        parser.add_argument(name, type=_flag, nargs="*", default=[False], metavar="yes|no", help=help_text)


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


def window_of(arguments: argparse.Namespace, rank: int) -> dict[str, tuple[Any, ...]]:
    """The window's arguments by name, one entry per axis each; :class:`CommandError` if some have another number."""
    found = {}
    for name in ("kernel_size", "stride", "dilation", "is_causal", "wrap"):
        values = tuple(getattr(arguments, name)) or (True,)  # a switch without values
        if len(values) not in (1, rank):
            option = f"--{name.replace('_', '-')}"
            raise CommandError(f"{option} takes one value, or one for each of {rank} axes; got {len(values)}")
        found[name] = values * rank if len(values) == 1 else values
    return found
