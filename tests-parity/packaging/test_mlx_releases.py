"""The releases of MLX that wheels of natten-mlx have an extension for: one list, and what is derived from it."""

from __future__ import annotations

import re
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import check_mlx_releases  # noqa: E402
import mlx_releases  # noqa: E402


def pinned(file: str) -> dict[str, str]:
    """Packages and their releases in a file of requirements/."""
    text = (ROOT / "requirements" / file).read_text()
    return dict(re.findall(r"^([\w.-]+)==([^ \\\n]+)", text, re.MULTILINE))


def test_the_releases_are_the_newest_of_mlx_and_what_the_tests_run_on() -> None:
    releases = mlx_releases.releases()
    assert len(releases) >= 3
    assert releases == sorted(releases, key=lambda release: [int(part) for part in release.split(".")], reverse=True)
    assert pinned("dev.txt")["mlx"] == releases[0]


def test_each_release_is_pinned_for_both_systems() -> None:
    for release in mlx_releases.releases():
        pins = pinned(f"mlx-{release}.txt")
        assert pins.keys() == {"mlx", "mlx-cpu", "mlx-metal", "nanobind"}
        assert {pins[name] for name in pins.keys() - {"nanobind"}} == {release}


def test_the_documents_name_them() -> None:
    said = re.search(r"one for each of ([\d., and\n]+), and takes", (ROOT / "docs" / "versions.md").read_text())
    assert said
    assert sorted(re.findall(r"[\d.]+\d", said[1])) == sorted(mlx_releases.releases())


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The releases that are fetched, each leaving an empty folder; Python 3.11 and 3.12 are here, others are not."""
    asked: list[str] = []

    def uv(*arguments: str | Path, **environment: str) -> str:
        if arguments[:2] == ("python", "install"):
            asked.append("every Python")
            return ""
        target = Path(arguments[arguments.index("--target") + 1])
        target.mkdir()
        asked.append(target.name)
        return ""

    here = {python: (f"cpython-{python.replace('.', '')}-x86_64-linux-gnu", tmp_path) for python in ("3.11", "3.12")}
    monkeypatch.setattr(mlx_releases, "uv", uv)
    monkeypatch.setattr(mlx_releases, "headers", here.get)
    monkeypatch.setattr(mlx_releases, "FOLDER", tmp_path)
    return asked


def test_the_folder_is_filled_once_and_keeps_nothing_that_is_not_listed(
    fetched: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = [f"mlx-{release}" for release in mlx_releases.releases()]
    folder = mlx_releases.lay_out(macos=True)
    assert fetched == wanted
    assert "no headers of Python 3.14 here" in capsys.readouterr().err
    pythons = {"python-cpython-311-darwin", "python-cpython-312-darwin"}
    assert {path.name for path in folder.iterdir()} == {*wanted, *pythons}
    monkeypatch.setattr(mlx_releases, "releases", lambda: [release.removeprefix("mlx-") for release in wanted[:2]])
    assert mlx_releases.lay_out(macos=True) == folder
    assert fetched == wanted
    assert {path.name for path in folder.iterdir()} == {*wanted[:2], *pythons}


def test_where_every_python_is_wanted_one_without_headers_is_an_error(fetched: list[str]) -> None:
    with pytest.raises(SystemExit, match=re.escape("no headers of Python 3.13 here")):
        mlx_releases.lay_out(every=True)
    assert fetched[-1] == "every Python"


def test_headers_are_those_of_the_python_that_is_asked_for() -> None:
    suffix, folder = mlx_releases.headers(f"{sys.version_info.major}.{sys.version_info.minor}") or ("", Path())
    assert suffix == sysconfig.get_config_var("SOABI")
    assert (folder / "Python.h").exists()
    assert mlx_releases.headers("3.99") is None


REASON = "the C++ extensions here were built for MLX 2.1.0, 2.0.0 and cannot run with MLX 1.0.0; ..."
WARNED = [(30, f"na1d: the pure backend runs: {REASON}")]
TOLD = {
    "its extension runs": (("2.1.0", None, [(20, "a note")]), "2.1.0", ""),
    "the oldest, without": (("1.0.0", REASON, WARNED), None, ""),
    "the oldest is listed": (("2.0.0", None, []), None, ""),
    "another release": (("2.0.0", None, []), "2.1.0", "MLX 2.0.0 was installed in place of 2.1.0"),
    "no extension": (("2.1.0", REASON, []), "2.1.0", REASON),
    "a warning": (("2.1.0", None, [(30, "slow")]), "2.1.0", "slow"),
    "one that does not fit": (("1.0.0", None, []), None, "an extension that was not built for MLX 1.0.0 runs"),
    "silence": (("1.0.0", REASON, []), None, "one warning with the reason was due, and there were 0: []"),
    "twice": (("1.0.0", REASON, WARNED * 2), None, "one warning with the reason was due, and there were 2: "),
}


@pytest.mark.parametrize("case", TOLD)
def test_what_a_wheel_must_do_on_a_release(case: str) -> None:
    told, wanted, complaint = TOLD[case]
    said = check_mlx_releases.complaints(told, ["2.1.0", "2.0.0"], wanted)
    assert len(said) == bool(complaint)
    assert "".join(said).startswith(complaint)
