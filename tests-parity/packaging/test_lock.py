"""requirements/: what the environments install, exported by scripts/lock.py."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import lock  # noqa: E402

FILES = sorted((ROOT / "requirements").glob("*.txt"))


def test_each_group_has_its_file() -> None:
    assert {path.name for path in FILES} == {f"{group}.txt" for group in lock.groups()}
    assert {"dev.txt", "build.txt"} <= {path.name for path in FILES}


def test_releases_of_mlx_conflict_with_each_other() -> None:
    """Otherwise uv, which resolves all groups together, could set up no environment from pyproject.toml."""
    conflicts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["uv"]["conflicts"]
    releases = {group for group in lock.groups() if group.startswith("mlx-")}
    assert len(releases) >= 3
    assert releases in [{entry["group"] for entry in conflict} for conflict in conflicts]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_files_pin_every_release_by_its_hashes_and_name_no_host(path: Path) -> None:
    entries = re.split(r"\n(?! )", path.read_text().strip())[1:]
    assert entries
    for entry in entries:
        assert re.fullmatch(r"[\w.-]+==[^\s;]+( ; [^\\\n]+)?( \\\n    --hash=sha256:[0-9a-f]{64})+", entry), entry


def test_build_holds_what_the_packages_ask_for_to_be_built() -> None:
    pinned = (ROOT / "requirements" / "build.txt").read_text()
    for line in lock.build_requires().splitlines():
        name = re.split(r"[^\w-]", line)[0]
        assert re.search(rf"^{name}==", pinned, re.MULTILINE), line


def test_a_difference_is_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    held = {path.stem: path.read_text() for path in FILES}
    monkeypatch.setattr(lock, "export_all", lambda *options: held)
    lock.check()
    release = re.search(r"^ruff==\S+", held["dev"], re.MULTILINE)
    assert release
    changed = held | {"dev": held["dev"].replace(release[0], "ruff==999")}
    monkeypatch.setattr(lock, "export_all", lambda *options: changed)
    with pytest.raises(SystemExit, match="1"):
        lock.check()
    printed = capsys.readouterr().out
    assert printed.startswith("lock: requirements/ is not what pyproject.toml asks for; run ./dev.sh lock\n")
    assert f"-{release[0]}" in printed
    assert "+ruff==999" in printed


def test_a_file_without_a_group_is_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(lock, "FOLDER", tmp_path)
    (tmp_path / "gone.txt").write_text("old==1\n")
    assert lock.differences({}) == ["--- requirements/gone.txt", "+++ exported now", "@@ -1 +0,0 @@", "-old==1"]


def test_only_an_unreachable_registry_skips_the_check(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["lock.py", "--check"])
    uv = tmp_path / "uv"
    monkeypatch.setenv("UV", str(uv))
    uv.write_text("#!/bin/sh\necho 'Caused by: dns error' >&2\nexit 2\n")
    uv.chmod(0o755)
    lock.main()
    assert capsys.readouterr().out.startswith("lock: SKIPPED, requirements/ not compared: ")
    uv.write_text("#!/bin/sh\necho 'no version of ruff==999' >&2\nexit 1\n")
    with pytest.raises(SystemExit, match="no version of ruff==999"):
        lock.main()


@pytest.mark.parametrize(("option", "status"), [("--help", 0), ("--uprade", 2), ("--check --upgrade", 2)])
def test_what_is_no_export_writes_nothing(monkeypatch: pytest.MonkeyPatch, option: str, status: int) -> None:
    """An option that lock.py does not know would otherwise become one of uv's, and its output a file."""
    monkeypatch.setattr(sys, "argv", ["lock.py", *option.split()])
    monkeypatch.setattr(lock, "uv", lambda *_: pytest.fail("uv was called"))
    with pytest.raises(SystemExit) as ended:
        lock.main()
    assert ended.value.code == status
