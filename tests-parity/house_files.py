"""The files that the rules of the house apply to."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout


@cache
def project_files() -> tuple[str, ...]:
    """All files that git tracks or would track; symlinks are left out, because what they point to is listed."""
    listed = git("ls-files", "--cached", "--others", "--exclude-standard").splitlines()
    return tuple(p for p in sorted(set(listed)) if (ROOT / p).is_file() and not (ROOT / p).is_symlink())


def shipped(*suffixes: str) -> list[str]:
    """The files that end up in a wheel or an sdist."""
    in_package = re.compile(r"shared-metal/|packages/[^/]+/(src|csrc)/")
    return [p for p in project_files() if in_package.match(p) and p.endswith(suffixes)]


def complaints(paths: Iterable[str], rule: Callable[[str, str], list[str]]) -> list[str]:
    paths = list(paths)
    assert paths, "the rule was applied to nothing"
    return [f"{path}: {found}" for path in paths for found in rule((ROOT / path).read_text(), path)]


def assert_none(found: list[str]) -> None:
    assert not found, "\n".join(found)
