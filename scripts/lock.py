"""Exports the dependency groups of pyproject.toml to requirements/GROUP.txt: each release with the hashes of its files.

Releases in the files stay as they are while pyproject.toml allows them. Nothing names the registry that they came from.
With --check nothing is written; exit status 1 if a file differs from what would be. What uv has cached is enough for
that; where it is not and the registry cannot be reached, --check says so, and exits with 0.

"""

import argparse
import difflib
import re
import subprocess
import sys
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from registry import ROOT, UnreachableRegistry, uv

FOLDER = ROOT / "requirements"
PACKAGES = ("natten-mps", "natten-mlx")
# One release for all versions of Python and both systems.
OPTIONS = ("--universal", "--python-version", "3.11", "--fork-strategy", "fewest", "--generate-hashes", "--quiet")
HEADER = "# By ./dev.sh lock, from the dependency group `{}` of pyproject.toml.\n"
# Every other group takes the releases of dev's, except that each release of MLX has a group of its own.
FIRST = "dev"


def groups() -> list[str]:
    """The groups that no other includes, FIRST first."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    included = {entry["include-group"] for group in listed.values() for entry in group if isinstance(entry, dict)}
    return sorted(listed.keys() - included, key=lambda name: (name != FIRST, name))


def build_requires() -> str:
    """What the packages ask for to be built."""
    projects = [tomllib.loads((ROOT / "packages" / name / "pyproject.toml").read_text()) for name in PACKAGES]
    return "\n".join(line for project in projects for line in project["build-system"]["requires"])


def export(group: str, out: Path, *options: str) -> str:
    """The text of requirements/GROUP.txt. In ``out``, which lies in FOLDER already, FIRST's file is the new one."""
    file = out / f"{group}.txt"
    held = FOLDER / file.name
    # Releases without their hashes, which are then read from the registry.
    pins = re.findall(r"^[\w.-]+==[^\\\n]+", held.read_text(), re.MULTILINE) if held.exists() else []
    file.write_text("\n".join(pins))
    left_out = [word for name in PACKAGES for word in ("--no-emit-package", name)]
    command = ["pip", "compile", *OPTIONS, "--no-header", "--no-annotate", *left_out, "--group", group, "-o", file]
    if group != FIRST and not group.startswith("mlx-"):
        command += ["--constraints", out / f"{FIRST}.txt"]
    if group == "build":
        (out / "build.in").write_text(build_requires())
        command.append(out / "build.in")
    uv(*command, *options)
    return HEADER.format(group) + file.read_text()


def export_all(*options: str) -> dict[str, str]:
    """The text of each group's file."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as pool:
        out, (first, *others) = Path(folder), groups()
        made = {first: export(first, out, *options)}
        return made | dict(zip(others, pool.map(lambda group: export(group, out, *options), others), strict=True))


def differences(made: dict[str, str]) -> list[str]:
    """Where the files in FOLDER are not what they should be: lines of a diff."""
    lines = []
    for name in sorted(made.keys() | {path.stem for path in FOLDER.glob("*.txt")}):
        path = FOLDER / f"{name}.txt"
        held = path.read_text() if path.exists() else ""
        pair = (held.splitlines(), made.get(name, "").splitlines())
        lines += difflib.unified_diff(*pair, f"requirements/{name}.txt", "exported now", lineterm="", n=0)
    return lines


def check() -> None:
    try:
        made = export_all("--offline")
    except subprocess.CalledProcessError:
        made = export_all()
    lines = differences(made)
    if lines:
        print("lock: requirements/ is not what pyproject.toml asks for; run ./dev.sh lock", *lines[:20], sep="\n")
        sys.exit(1)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="lock.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--check", action="store_true", help="write nothing; say what differs")
    parser.add_argument("--upgrade", action="store_true", help="take the newest releases that pyproject.toml allows")
    parser.add_argument("--upgrade-package", metavar="NAME", action="append", default=[], help="only of this package")
    given = parser.parse_args()
    options = ["--upgrade"] * given.upgrade + [f"--upgrade-package={name}" for name in given.upgrade_package]
    if given.check and options:
        parser.error("--check upgrades nothing")
    try:
        if given.check:
            check()
            return
        for group, text in export_all(*options).items():
            (FOLDER / f"{group}.txt").write_text(text)
    except subprocess.CalledProcessError as error:
        sys.exit(f"lock: {error.stderr.strip()}")
    except UnreachableRegistry as reason:
        if not given.check:
            sys.exit(f"lock: the package registry cannot be reached: {reason}")
        print(f"lock: SKIPPED, requirements/ not compared: the package registry cannot be reached: {reason}")


if __name__ == "__main__":
    main()
