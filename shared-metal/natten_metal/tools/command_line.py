"""What the commands of both packages have in common: how they end, and how they write files.

A command never ends in a traceback for what a user, a full disk or a closed pipe did.
"""

import argparse
import atexit
import errno
import importlib.util
import json
import os
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Callable
from contextlib import AbstractContextManager, redirect_stdout
from pathlib import Path
from typing import Any, BinaryIO

from ..plan.tuning import default_path
from ..plan.verdicts import KernelFailure

# Exit statuses that a shell reports for a process ended by a signal.
INTERRUPTED, PIPE_CLOSED = 128 + 2, 128 + 13
# What --json without a file means.
STDOUT = Path("-")


class CommandError(Exception):
    """A message for the user; the command ends with exit status 1."""


def end(name: str, command: Callable[[], int]) -> int:
    """Run ``command`` and return its exit status; name: how its messages begin, 'natten-mps demo'."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that lacks a character shows it escaped
            stream.reconfigure(errors="backslashreplace")
    try:
        status = command()
        sys.stdout.flush()
        return status
    except CommandError as error:
        print(f"{name}: {error}", file=sys.stderr)
    except KernelFailure as error:
        print(f"{name}: a kernel failed: {error}", file=sys.stderr)
    except MemoryError:
        print(f"{name}: there is not enough memory for this", file=sys.stderr)
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of stdout is gone; Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    return 1


def paragraph(text: str) -> str:
    """A description for a formatter that keeps lines as they are, because the examples below it have some."""
    return textwrap.fill(" ".join(text.split()), 79)


def backend_in_force(get_backend: Callable[[], str], usable: tuple[str, ...]) -> None:
    """:class:`CommandError` if the backend in force is unknown, or not one of those that the command can use."""
    try:
        chosen = get_backend()
    except ValueError as error:
        raise CommandError(str(error)) from None
    if chosen not in usable:
        raise CommandError(
            f"the backend in force is '{chosen}', which this command does not take; "
            f"choose with --backend: {', '.join(usable)}"
        )


def need_matplotlib(package: str, what: str, instead: str = "") -> None:
    """:class:`CommandError` unless matplotlib is installed. Its list of fonts goes to the package's cache folder.

    what: 'pictures need', what cannot be had without it; instead: what can.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise CommandError(
            f"{what} matplotlib, which is not installed: pip install '{package}[tools]'" + (instead and f"; {instead}")
        )
    if "matplotlib" in sys.modules or "MPLCONFIGDIR" in os.environ:
        return
    folder = default_path().parent / "matplotlib"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        usable = os.access(folder, os.W_OK)
    except OSError:
        usable = False
    if not usable:  # a home folder that cannot be written to
        folder = Path(tempfile.mkdtemp())
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["MPLCONFIGDIR"] = str(folder)


# --- numbers: what argparse's type= takes ----------------------------------------------------------


def whole(text: str, least: int) -> int:
    """An integer of at least ``least``; argparse.ArgumentTypeError for anything else."""
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number") from None
    if number < least:
        raise argparse.ArgumentTypeError(f"must be at least {least}; got {number}")
    return number


def positive(text: str) -> int:
    """An integer of at least 1."""
    return whole(text, 1)


def natural(text: str) -> int:
    """An integer that is not negative."""
    return whole(text, 0)


# --- files -----------------------------------------------------------------------------------------


def check_outputs(paths: list[Path | None], read: Path | None = None) -> None:
    """:class:`CommandError` before the work, not after it, if a file cannot be written; :data:`STDOUT` is none.

    read: the file that the command reads, which it must not overwrite.
    """
    taken = {} if read is None else {read.resolve(): "is the file that is read"}
    for path in paths:
        if path is None or path == STDOUT:
            continue
        try:
            _check_output(path)
            resolved = path.resolve()
        except OSError as error:
            raise CommandError(f"{path}: cannot be written: {error.strerror}") from None
        if resolved in taken:
            raise CommandError(f"{path}: {taken[resolved]}; choose another name")
        taken[resolved] = "is named twice"


def _check_output(path: Path) -> None:
    """:class:`CommandError`, or OSError as opening the file would raise it."""
    if path.is_dir():
        raise CommandError(f"{path}: is a folder")
    if not path.parent.is_dir():
        raise CommandError(f"{path}: there is no folder {path.parent}")
    if path.exists():
        if not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return
    path.touch()
    path.unlink()


def write(path: Path, fill: Callable[[BinaryIO], object]) -> None:
    """Write a file whole or not at all, by ``fill``; :class:`CommandError` if it cannot be written."""
    if path.exists() and not path.is_file():  # a device or a pipe has no other name to be written under
        _fill(path, path, fill)
        return
    part = path.with_name(f".{path.name[:200]}.part")
    try:
        _fill(path, part, fill)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _fill(path: Path, target: Path, fill: Callable[[BinaryIO], object]) -> None:
    try:
        with target.open("wb") as file:
            fill(file)
    except OSError as error:
        raise CommandError(f"{path}: cannot be written: {error.strerror or error}") from None


# --- JSON ------------------------------------------------------------------------------------------


def add_json(parser: argparse.ArgumentParser, what: str) -> None:
    """Add ``--json [FILE]``: None if it is not given, :data:`STDOUT` without a file. what: that it writes."""
    parser.add_argument(
        "--json", nargs="?", const=STDOUT, type=Path, metavar="FILE", help=f"{what} (JSON; without a FILE: to stdout)"
    )


def beside_json(path: Path | None) -> AbstractContextManager[Any]:
    """Where the rest is printed while ``--json`` said ``path``: on stderr if the document goes to stdout."""
    return redirect_stdout(sys.stderr if path == STDOUT else sys.stdout)


def write_json(document: dict[str, Any], path: Path) -> None:
    """Write a document where ``--json`` said. ValueError for a number that JSON does not have."""
    write_document(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n", path)


def write_document(text: str, path: Path) -> None:
    """Write a document that is JSON already where ``--json`` said."""
    if path == STDOUT:
        sys.stdout.write(text)
    else:
        write(path, lambda file: file.write(text.encode()))
