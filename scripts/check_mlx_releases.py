"""Whether a wheel of natten-mlx runs on the releases of MLX that it should, each in an environment of its own.

On each listed release the extension for it must run, silently; on the oldest that the wheel asks for, unless it is
listed, the pure backend, with one warning. Then `natten-mlx doctor` must pass.

usage: check_mlx_releases.py WHEEL
"""

import json
import logging
import subprocess
import sys
import tempfile
from pathlib import Path

import mlx_releases
from registry import ROOT, uv

# Run in each environment. Prints MLX's version, why no extension runs, and what was logged by two calls.
CALLS = """
import json, logging
import mlx.core as mx, natten_mlx
records = []
handler = logging.Handler()
handler.emit = lambda record: records.append([record.levelno, record.getMessage()])
logging.getLogger().addHandler(handler)
for _ in range(2):
    mx.eval(natten_mlx.na1d(*mx.ones((3, 1, 9, 2, 4)), 3, stream=mx.cpu))
print(json.dumps([mx.__version__, natten_mlx.nanobind_unavailable_reason(), records]))
"""


def complaints(told: tuple[str, str | None, list[tuple[int, str]]], listed: list[str], wanted: str | None) -> list[str]:
    """What is wrong with what CALLS printed. wanted: the release that was asked for; None for the oldest."""
    release, reason, records = told
    warnings = [text for level, text in records if level >= logging.WARNING]
    if wanted is not None and release != wanted:
        return [f"MLX {release} was installed in place of {wanted}"]
    if release in listed:
        return [reason] * (reason is not None) + warnings
    if reason is None or "cannot run with MLX" not in reason:
        return [f"an extension that was not built for MLX {release} runs, or the reason is another: {reason}"]
    if len(warnings) != 1 or reason not in warnings[0]:
        return [f"one warning with the reason was due, and there were {len(warnings)}: {warnings}"]
    return []


def try_wheel(wheel: Path, release: str | None, listed: list[str]) -> list[str]:
    """What does not hold with a release of MLX, or with the oldest that the wheel asks for."""
    with tempfile.TemporaryDirectory() as folder:
        uv("venv", "--quiet", "--no-project", "--python", sys.executable, folder)
        python = Path(folder, "bin", "python")
        pins = ROOT / "requirements" / f"mlx-{release}.txt"
        options = ("--constraints", pins) if release else ("--resolution", "lowest")
        named = f"natten-mlx[cpu] @ {wheel.resolve().as_uri()}"
        uv("pip", "install", "--quiet", "--no-config", "--python", python, *options, named)
        done = subprocess.run([python, "-c", CALLS], cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            return [done.stderr]
        told = json.loads(done.stdout)
        said = complaints(told, listed, release)
        doctor = subprocess.run([python.parent / "natten-mlx", "doctor"], capture_output=True, text=True, check=False)
        if doctor.returncode:
            said.append(f"doctor: {doctor.stdout}{doctor.stderr}")
        last = doctor.stdout.strip().rpartition("\n")[2]
        print(f"MLX {told[0]}: {'no extension fits' if told[1] else 'its extension runs'}; doctor: {last}", flush=True)
        return [f"MLX {told[0]}: {line}" for line in said]


def main() -> None:
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    wheel, listed = Path(sys.argv[1]), mlx_releases.releases()
    try:
        said = [line for release in (*listed, None) for line in try_wheel(wheel, release, listed)]
    except subprocess.CalledProcessError as error:
        sys.exit(f"check_mlx_releases: {error.stderr}")
    if said:
        sys.exit("\n".join(f"check_mlx_releases: {line}" for line in said))


if __name__ == "__main__":
    main()
