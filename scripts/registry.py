"""uv, and the package registry that it reads."""

import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# What uv prints if it cannot reach the registry, as opposed to not finding a package there.
UNREACHABLE = ("error sending request", "dns error", "timed out", "Connection refused")


class UnreachableRegistry(Exception):
    """The package registry cannot be reached."""


def uv(*arguments: str | Path, **environment: str) -> str:
    """What uv prints. UnreachableRegistry, or CalledProcessError, which holds its stderr, if it fails."""
    program = os.environ.get("UV") or shutil.which("uv") or str(ROOT / ".tools" / "bin" / "uv")
    command, settings = [program, *arguments], os.environ | environment
    done = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, check=False)
    if done.returncode and any(words in done.stderr for words in UNREACHABLE):
        raise UnreachableRegistry(" ".join(done.stderr.split()))
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)
    return done.stdout
