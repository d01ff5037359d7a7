"""Writes the project's address and its maintainer into every file that names them, in a checkout that has neither yet.

The address goes into `[project.urls]` of both packages and into CITATION.cff, the maintainer into .github/CODEOWNERS.
Nothing can be released before that (scripts/check_release.py). Called again, it replaces what it wrote.

usage: set_repository.py https://HOST/OWNER/NAME @MAINTAINER
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("natten-mps", "natten-mlx")
CITATION, OWNERS = "CITATION.cff", ".github/CODEOWNERS"
ADDRESS = re.compile(r"https://[\w.-]+(?:/[\w.-]+){2}")
MAINTAINER = re.compile(r"@[\w-]+(?:/[\w-]+)?")
URLS = re.compile(r"^\[project\.urls\]\n(?:\w+ = .*\n)*", re.MULTILINE)


def urls(address: str) -> str:
    pages = {
        "Homepage": address,
        "Documentation": f"{address}/tree/main/docs",
        "Repository": address,
        "Issues": f"{address}/issues",
        "Changelog": f"{address}/blob/main/CHANGELOG.md",
    }
    return "[project.urls]\n" + "".join(f'{name} = "{url}"\n' for name, url in pages.items())


def set_repository(root: Path, address: str, maintainer: str) -> None:
    for package in PACKAGES:
        _replace(root / "packages" / package / "pyproject.toml", URLS, urls(address))
    _replace(root / CITATION, re.compile(r"\n(?:repository-code: .*\n)?\Z"), f'\nrepository-code: "{address}"\n')
    _replace(root / OWNERS, re.compile(r"\n(?:\*.*\n)?\Z"), f"\n* {maintainer}\n")


def _replace(file: Path, pattern: re.Pattern[str], new: str) -> None:
    text, count = pattern.subn(lambda _: new, file.read_text(), count=1)
    if not count:
        raise ValueError(f"{file.name} has no place for {new.strip()!r}")
    file.write_text(text)


def main() -> None:
    match sys.argv[1:]:
        case [address, maintainer] if ADDRESS.fullmatch(address) and MAINTAINER.fullmatch(maintainer):
            set_repository(ROOT, address, maintainer)
        case _:
            sys.exit("usage: set_repository.py https://HOST/OWNER/NAME @MAINTAINER")


if __name__ == "__main__":
    main()
