"""How commands end when something outside them fails: a message and an exit status, never a traceback."""

from __future__ import annotations

import importlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from processes import LIMIT

from natten_mps._metal.tools import command_line
from natten_mps._metal.tools.command_line import CommandError

PACKAGES = ("natten_mps", "natten_mlx")
NAMES = dict(zip(PACKAGES, ("natten-mps", "natten-mlx"), strict=True))
# A command that draws a small picture.
DEMO = ("demo", "photo.png", "--window", "3")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.fromarray(np.full((24, 32, 3), 128, np.uint8)).save(tmp_path / "photo.png")
    return tmp_path


def ended(package: str, folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command, run by ``python -m`` in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", package, *arguments],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.mark.parametrize("package", PACKAGES)
def test_help_and_documents_have_the_same_commands(package: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        importlib.import_module(f"{package}.cli").main(["--help"])
    named = re.findall(r"^    (\w+(?: train)?)(?:  |$)", capsys.readouterr().out, re.MULTILINE)
    documents = Path(__file__).resolve().parents[2]
    (listed,) = re.findall(
        r"the command line: (.+) \|$", (documents / "docs/architecture.md").read_text(), re.MULTILINE
    )
    assert [name.replace("demo train", "training demo") for name in named] == listed.split(", ")


@pytest.mark.parametrize("package", PACKAGES)
def test_python_runs_the_package(package: str, folder: Path) -> None:
    done = ended(package, folder, *DEMO)
    assert done.returncode == 0 and "PSNR" in done.stdout and (folder / f"{NAMES[package]}-demo.png").exists()


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("command", [DEMO, ("demo", "train", "--steps", "2")], ids=["demo", "train"])
def test_a_backend_of_the_environment(package: str, command: tuple[str, ...], folder: Path) -> None:
    done = ended(package, folder, *command, NATTEN_BACKEND="garbage")
    name = f"{NAMES[package]} {'demo train' if 'train' in command else 'demo'}"
    assert done.returncode == 1
    assert done.stderr.startswith(f"{name}: NATTEN_BACKEND: unknown backend 'garbage'; {NAMES[package]} has auto,")
    # Dense attention has enough memory for a digit's tokens, but not for an image's.
    done = ended(package, folder, *command, NATTEN_BACKEND="dense")
    if "train" in command:
        assert done.returncode == 0 and "backend: dense" in done.stdout
    else:
        wanted = f"{name}: the backend in force is 'dense', which this command does not take; choose with --backend: "
        assert done.returncode == 1 and done.stderr.startswith(wanted)
        assert ended(package, folder, *command, "--backend", "pure", NATTEN_BACKEND="dense").returncode == 0


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has a device that is always full")
def test_a_full_disk(package: str, folder: Path) -> None:
    for option in ("--out", "--array"):
        done = ended(package, folder, *DEMO, option, "/dev/full")
        assert done.returncode == 1
        assert done.stderr == f"{NAMES[package]} demo: /dev/full: cannot be written: No space left on device\n"


@pytest.mark.parametrize("package", PACKAGES)
def test_a_terminal_without_unicode(package: str, folder: Path) -> None:
    (folder / "photo.png").rename(folder / "Blüte.png")
    done = ended(package, folder, "demo", "Blüte.png", "--window", "3", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.returncode == 0 and r"Bl\xfcte.png, 32 x 24" in done.stdout


PLAN = ("plan", "--shape", "8", "--kernel-size", "3", "--device", "Apple M1")


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("command", [DEMO, PLAN], ids=["demo", "plan"])
def test_a_closed_pipe(package: str, command: tuple[str, ...], folder: Path) -> None:
    """As in `natten-mps demo | true`: the reader has gone before the first line."""
    read, write = os.pipe()
    os.close(read)
    process = subprocess.Popen(
        [sys.executable, "-m", package, *command], cwd=folder, stdout=write, stderr=subprocess.PIPE, text=True
    )
    os.close(write)
    _, error = process.communicate(timeout=LIMIT)
    assert (process.returncode, error) == (command_line.PIPE_CLOSED, "")


@pytest.mark.parametrize("package", PACKAGES)
def test_an_interrupt(package: str, folder: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", package, "demo", "train", "--steps", "1000000"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which a shell's background jobs ignore
    )
    assert process.stdout is not None and process.stdout.readline().startswith("digits")
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=LIMIT)
    assert process.returncode == command_line.INTERRUPTED
    assert error.endswith(f"{NAMES[package]} demo train: interrupted\n") and "Traceback" not in error
    assert not list(folder.glob("*train*"))


# --- paths ----------------------------------------------------------------------------------------------


def test_a_file_is_not_written_over_what_is_read(folder: Path) -> None:
    photo, before = folder / "photo.png", (folder / "photo.png").read_bytes()
    (folder / "link.png").symlink_to(photo)
    for name in ("photo.png", "./photo.png", "link.png"):
        for option in ("--out", "--array"):
            done = ended("natten_mps", folder, *DEMO, option, name)
            assert done.returncode == 1
            shown = Path(name)
            assert done.stderr == f"natten-mps demo: {shown}: is the file that is read; choose another name\n"
    done = ended("natten_mps", folder, *DEMO, "--out", "same", "--array", "same")
    assert done.returncode == 1 and done.stderr == "natten-mps demo: same: is named twice; choose another name\n"
    assert photo.read_bytes() == before


def test_what_cannot_be_written_is_an_error_before_the_work_begins(folder: Path) -> None:
    done = ended("natten_mps", folder, *DEMO, "--out", "x" * 300 + ".png")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.endswith(".png: cannot be written: File name too long\n")


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"before")

    def failing(file: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise OSError(28, "No space left on device")

    with pytest.raises(CommandError, match=r"out: cannot be written: No space left on device$"):
        command_line.write(path, failing)
    assert path.read_bytes() == b"before" and os.listdir(tmp_path) == ["out"]
    command_line.check_outputs([path, None])
    assert path.read_bytes() == b"before"
    command_line.write(path, lambda file: file.write(b"after"))
    assert path.read_bytes() == b"after" and os.listdir(tmp_path) == ["out"]
