"""Whether a tag may be released: it names a package and its version, the changelog has that version, nothing is unset.

Prints `package=` and `version=` for the workflow. Exit status 1, and every reason, if a rule is broken.

usage: check_release.py TAG [--dry-run] [--notes FILE] [--files FILE...]

  TAG       natten-mps-vX.Y.Z or natten-mlx-vX.Y.Z
  --dry-run what is unset or undated is a warning
  --notes   where the version's part of the changelog is written to
  --files   what will be published: only this package and version, one sdist, and a wheel for each platform
"""

import argparse
import datetime
import re
import sys
import tomllib
from pathlib import Path

from set_repository import CITATION, OWNERS, PACKAGES, ROOT

TAG = re.compile(rf"({'|'.join(PACKAGES)})-v(\d+\.\d+\.\d+(?:(?:a|b|rc)\d+)?)")
HEADING = re.compile(r"^## \[(?P<version>[^\]]+)\] - (?P<date>.+)$", re.MULTILINE)
# What the names of a release's wheels say; natten-mps has one wheel more, for machines that none of the others fits.
PLATFORMS = {
    "macOS arm64": r"macosx_\d+_\d+_arm64",
    "Linux x86-64": r"manylinux_\d+_\d+_x86_64",
    "Linux arm64": r"manylinux_\d+_\d+_aarch64",
}
PURE = "py3-none-any"
# The newest glibc 2.x that a wheel for Linux may ask for; natten-mlx's is that of MLX's own wheels.
GLIBC = {"natten-mps": 28, "natten-mlx": 35}


def project(root: Path, package: str) -> dict:
    return tomllib.loads((root / "packages" / package / "pyproject.toml").read_text())["project"]


def changes(root: Path, wanted: str) -> tuple[str, str]:
    """The date and the text of a version in the changelog; both empty if it is not there."""
    text = (root / "CHANGELOG.md").read_text()
    headings = list(HEADING.finditer(text))
    for heading, end in zip(headings, [*(h.start() for h in headings[1:]), len(text)], strict=True):
        if heading["version"] == wanted:
            return heading["date"], text[heading.end() : end].strip()
    return "", ""


def _is_date(text: str) -> bool:
    try:
        return datetime.date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def unset(root: Path) -> list[str]:
    """What a maintainer has to fill in once."""
    faults = []
    addresses = {package: project(root, package).get("urls", {}).get("Repository") for package in PACKAGES}
    cited = re.search(r'^repository-code: "(.+)"$', (root / CITATION).read_text(), re.MULTILINE)
    if None in addresses.values() or len({*addresses.values(), cited and cited[1]}) > 1:
        faults.append(f"the project's address is not set, or not the same in both packages and {CITATION}")
    if not re.search(r"^\*\s+@\w", (root / OWNERS).read_text(), re.MULTILINE):
        faults.append(f"{OWNERS} names no maintainer")
    return [f"{line}: run scripts/set_repository.py" for line in faults]


def undated(root: Path, wanted: str) -> list[str]:
    """What the day of the release settles."""
    date, text = changes(root, wanted)
    if not text or _is_date(date):
        return []
    return [f"CHANGELOG.md dates {wanted} {date!r}: write the day of the release, YYYY-MM-DD"]


def complaints(root: Path, tag: str) -> list[str]:
    """What is wrong, besides what a maintainer still has to fill in."""
    parts = TAG.fullmatch(tag)
    if not parts:
        return [f"a tag is {' or '.join(f'{package}-vX.Y.Z' for package in PACKAGES)}; got {tag!r}"]
    package, wanted = parts.groups()
    faults = []
    if (stated := project(root, package)["version"]) != wanted:
        faults.append(f"{package} is {stated}, and the tag {tag}")
    if not changes(root, wanted)[1]:
        faults.append(f"CHANGELOG.md says nothing about {wanted} under a heading `## [{wanted}] - YYYY-MM-DD`")
    return faults


def wrong_files(tag: str, names: list[str]) -> list[str]:
    """What is wrong with the names of the files that will be published."""
    package, wanted = TAG.fullmatch(tag).groups()
    stem = f"{package.replace('-', '_')}-{wanted}"
    wheels = [name.removesuffix(".whl") for name in names if name.endswith(".whl")]
    faults = [f"{name} is not of {stem}" for name in names if not name.startswith((f"{stem}-", f"{stem}.tar.gz"))]
    if [name for name in names if not name.endswith(".whl")] != [f"{stem}.tar.gz"]:
        faults.append(f"besides wheels there must be only {stem}.tar.gz")
    for platform, pattern in PLATFORMS.items():
        if not any(re.search(pattern, wheel) for wheel in wheels):
            faults.append(f"no wheel for {platform}")
    faults += [
        f"{wheel} is only for the machine that built it"
        for wheel in wheels
        if wheel.endswith(("-linux_x86_64", "-linux_aarch64"))
    ]
    asked = {wheel: max(map(int, re.findall(r"manylinux_2_(\d+)_", wheel)), default=0) for wheel in wheels}
    faults += [
        f"{wheel} asks for glibc 2.{glibc}; {package} must run with 2.{GLIBC[package]}"
        for wheel, glibc in asked.items()
        if glibc > GLIBC[package]
    ]
    # A failed compiler leaves a wheel without compiled kernels; natten-mps publishes one on purpose.
    pure = [wheel for wheel in wheels if wheel.endswith(PURE)]
    if bool(pure) != (package == "natten-mps"):
        faults.append(f"{PURE} is {'missing' if not pure else 'a wheel without compiled kernels'}")
    return faults


def listed(faults: list[str]) -> str:
    return "".join(f"check_release: {line}\n" for line in faults)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("tag")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--notes", type=Path)
    parser.add_argument("--files", type=Path, nargs="+")
    given = parser.parse_args()
    faults = complaints(ROOT, given.tag)
    if faults:
        sys.exit(listed(faults))
    package, wanted = TAG.fullmatch(given.tag).groups()
    to_fill_in = unset(ROOT) + undated(ROOT, wanted)
    faults = [] if given.dry_run else to_fill_in
    if given.files:
        faults += wrong_files(given.tag, sorted(file.name for file in given.files))
    if faults:
        sys.exit(listed(faults))
    print(listed(to_fill_in), end="", file=sys.stderr)
    if given.notes:
        given.notes.write_text(changes(ROOT, wanted)[1] + "\n")
    print(f"package={package}\nversion={wanted}")


if __name__ == "__main__":
    main()
