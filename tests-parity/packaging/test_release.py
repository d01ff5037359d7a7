"""What must agree before a release: each rule, with a checkout that breaks it, and the program itself."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from house_files import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
import check_release
import set_repository

ADDRESS = "https://code.example/somebody/natten"
MPS, MLX = "natten_mps-9.1.0", "natten_mlx-9.1.0"
MACOS, LINUX, ARM = "macosx_14_0_arm64", "manylinux_2_28_x86_64", "manylinux_2_28_aarch64"
FILES = [*(f"{MPS}-py3-none-{tag}.whl" for tag in (MACOS, LINUX, ARM, "any")), f"{MPS}.tar.gz"]
MLX_FILES = [*(f"{MLX}-cp311-abi3-{tag}.whl" for tag in (MACOS, LINUX, ARM)), f"{MLX}.tar.gz"]
CHANGELOG = "# Changelog\n\n## [9.1.0] - 2030-02-28\n\n- New.\n\n## [9.0.0] - 2030-01-01\n\n- Old.\n"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what the rules read, with version 9.1.0 and everything set."""
    for package in set_repository.PACKAGES:
        path = f"packages/{package}/pyproject.toml"
        (tmp_path / path).parent.mkdir(parents=True)
        text = re.sub(r'^version = ".*"$', 'version = "9.1.0"', (ROOT / path).read_text(), flags=re.M)
        (tmp_path / path).write_text(text)
    for path in (set_repository.CITATION, set_repository.OWNERS):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / path)
    (tmp_path / "CHANGELOG.md").write_text(CHANGELOG)
    set_repository.set_repository(tmp_path, ADDRESS, "@somebody")
    return tmp_path


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text, f"{file.name} lacks {old}"
    file.write_text(text.replace(old, new))


def said_of(checkout: Path, tag: str) -> list[str]:
    """All that keeps a release back, besides its files."""
    unfinished = check_release.unset(checkout) + check_release.undated(checkout, tag.partition("-v")[2])
    return check_release.complaints(checkout, tag) + unfinished


@pytest.mark.parametrize("package", set_repository.PACKAGES)
def test_a_release_where_all_agrees(package: str, checkout: Path) -> None:
    assert said_of(checkout, f"{package}-v9.1.0") == []
    assert check_release.changes(checkout, "9.1.0") == ("2030-02-28", "- New.")
    assert check_release.changes(checkout, "9.0.0") == ("2030-01-01", "- Old.")


@pytest.mark.parametrize(
    "tag", ["v9.1.0", "natten-mps-9.1.0", "natten-mps-v9.1", "natten-mps-v9.1.0.dev1", "natten-v9.1.0"]
)
def test_a_tag_of_another_form(tag: str, checkout: Path) -> None:
    (complaint,) = check_release.complaints(checkout, tag)
    assert complaint == f"a tag is natten-mps-vX.Y.Z or natten-mlx-vX.Y.Z; got {tag!r}"


MPS_PROJECT = "packages/natten-mps/pyproject.toml"
BREAKS = {
    "no heading": ("CHANGELOG.md", "## [9.1.0] - 2030-02-28", "## [9.1.0]", "says nothing about 9.1.0"),
    "no text": ("CHANGELOG.md", "- New.\n", "", "says nothing about 9.1.0"),
    "unreleased": ("CHANGELOG.md", "2030-02-28", "unreleased", "dates 9.1.0 'unreleased'"),
    "no day": ("CHANGELOG.md", "2030-02-28", "2030-02-30", "dates 9.1.0 '2030-02-30'"),
    "no address": (MPS_PROJECT, f'Repository = "{ADDRESS}"\n', "", "address is not set"),
    "two addresses": (MPS_PROJECT, f'Repository = "{ADDRESS}"', f'Repository = "{ADDRESS}2"', "address is not set"),
    "not cited": ("CITATION.cff", "repository-code", "url", "address is not set"),
    "no maintainer": (".github/CODEOWNERS", "\n* @somebody", "\n# * @somebody", "CODEOWNERS names no maintainer"),
}


@pytest.mark.parametrize("fault", BREAKS)
def test_what_keeps_a_release_back(fault: str, checkout: Path) -> None:
    file, old, new, reason = BREAKS[fault]
    edit(checkout / file, old, new)
    (complaint,) = said_of(checkout, "natten-mps-v9.1.0")
    assert reason in complaint


def test_the_version_is_the_tags(checkout: Path) -> None:
    (checkout / "CHANGELOG.md").write_text(CHANGELOG.replace("9.1.0", "9.2.0"))
    assert check_release.complaints(checkout, "natten-mlx-v9.2.0") == [
        "natten-mlx is 9.1.0, and the tag natten-mlx-v9.2.0"
    ]


def test_set_again(checkout: Path) -> None:
    """The second call replaces what the first one wrote, and nothing else."""
    before = {path: path.read_text() for path in checkout.rglob("*") if path.is_file()}
    set_repository.set_repository(checkout, ADDRESS + "-2", "@group/team")
    for path, text in before.items():
        assert path.read_text() == text.replace(ADDRESS, ADDRESS + "-2").replace("@somebody", "@group/team"), path
    assert said_of(checkout, "natten-mps-v9.1.0") == []


FILES_OF = {"natten-mps-v9.1.0": FILES, "natten-mlx-v9.1.0": MLX_FILES}
WRONG_FILES = [
    ("natten-mps-v9.1.0", FILES[1:], "no wheel for macOS arm64"),
    ("natten-mps-v9.1.0", [FILES[0], *FILES[2:]], "no wheel for Linux x86-64"),
    ("natten-mlx-v9.1.0", [*MLX_FILES[:2], MLX_FILES[3]], "no wheel for Linux arm64"),
    ("natten-mps-v9.1.0", FILES[:4], f"besides wheels there must be only {MPS}.tar.gz"),
    ("natten-mps-v9.1.0", [*FILES[:3], FILES[4]], "py3-none-any is missing"),
    ("natten-mps-v9.1.0", [*FILES, f"{MPS}-py3-none-linux_x86_64.whl"], "is only for the machine that built it"),
    (
        "natten-mps-v9.1.0",
        [*FILES, FILES[1].replace("2_28", "2_35")],
        "asks for glibc 2.35; natten-mps must run with 2.28",
    ),
    ("natten-mlx-v9.1.0", [*MLX_FILES, MLX_FILES[1].replace("2_28", "2_36")], "natten-mlx must run with 2.35"),
    ("natten-mps-v9.1.0", [MLX_FILES[0], *FILES], f"is not of {MPS}"),
    (
        "natten-mlx-v9.1.0",
        [*MLX_FILES[:3], f"{MLX}-py3-none-any.whl", MLX_FILES[3]],
        "a wheel without compiled kernels",
    ),
    ("natten-mlx-v9.1.0", [name.replace("9.1.0", "9.1.01") for name in MLX_FILES], f"is not of {MLX}"),
]


@pytest.mark.parametrize(("tag", "names", "reason"), WRONG_FILES)
def test_what_may_be_published(tag: str, names: list[str], reason: str) -> None:
    assert check_release.wrong_files(tag, FILES_OF[tag]) == []
    assert any(reason in complaint for complaint in check_release.wrong_files(tag, names))


def test_this_checkout() -> None:
    """Its version has its changes under a heading; all that may be missing is what a maintainer fills in."""
    for package in set_repository.PACKAGES:
        wanted = check_release.project(ROOT, package)["version"]
        assert check_release.changes(ROOT, wanted)[1].startswith("Compared with"), wanted
        assert check_release.complaints(ROOT, f"{package}-v{wanted}") == []


def test_the_program(checkout: Path) -> None:
    for script in ("check_release.py", "set_repository.py"):
        (checkout / "scripts").mkdir(exist_ok=True)
        shutil.copy(ROOT / "scripts" / script, checkout / "scripts")
    notes, dist = checkout / "notes.md", checkout / "dist"
    dist.mkdir()
    for name in FILES:
        (dist / name).touch()

    def run(tag: str, *options: str) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable,
            checkout / "scripts" / "check_release.py",
            tag,
            *options,
            "--notes",
            notes,
            "--files",
        ]
        return subprocess.run([*command, *dist.iterdir()], capture_output=True, text=True)

    passed = "package=natten-mps\nversion=9.1.0\n"
    assert run("natten-mps-v9.1.0").stdout == passed and run("natten-mps-v9.1.0").stderr == ""
    assert notes.read_text() == "- New.\n"
    refused = run("natten-mlx-v9.1.0", "--dry-run")
    assert refused.returncode == 1 and "is not of natten_mlx-9.1.0" in refused.stderr and not refused.stdout
    edit(checkout / "CHANGELOG.md", "2030-02-28", "unreleased")
    assert run("natten-mps-v9.1.0").returncode == 1 and not run("natten-mps-v9.1.0").stdout
    tried = run("natten-mps-v9.1.0", "--dry-run")
    assert tried.stdout == passed and "dates 9.1.0 'unreleased'" in tried.stderr
    assert run("natten-mps-v9.2.0", "--dry-run").returncode == 1
