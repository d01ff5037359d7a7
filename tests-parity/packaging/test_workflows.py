"""What workflows run can be run here, and what they may do is what they need."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from house_files import ROOT
from ruamel.yaml import YAML

FOLDER = ROOT / ".github" / "workflows"
NAMES = {"bench", "ci", "metal", "newest", "pages", "release", "wheels"}
PINNED = re.compile(r"uses: (?P<action>[\w.-]+/[\w./-]+)@(?P<commit>[0-9a-f]{40}) # (?P<version>v\d+\.\d+\.\d+)$")
# Of scripts, what is no command of this project: it says something, or makes the release's page.
OTHER = ('echo "::warning ', "cat notes.md >>", "gh release create ", "dnf install ", "python3.12 -m venv ")


def load(name: str) -> dict[str, Any]:
    return YAML(typ="safe").load((FOLDER / f"{name}.yml").read_text())


def jobs() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for name in sorted(NAMES):
        for job, content in load(name)["jobs"].items():
            yield name, job, content


def commands(script: str) -> set[str]:
    """Those of dev.sh, from its list of cases."""
    cases = script[script.index('case "${1:-}" in\n  demo)') :]
    return set(re.findall(r"^  ([\w-]+)\)", cases, re.MULTILINE))


def test_the_workflows() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == NAMES


def test_steps_call_what_there_is() -> None:
    known, seen = commands((ROOT / "dev.sh").read_text()), set()
    assert {"check", "test", "lock", "bench"} < known
    for name, job, content in jobs():
        for step in content.get("steps", []):
            run = step.get("run", "")
            command = re.match(r"\./dev\.sh ([\w-]+)", run)
            script = re.match(r"python3 (scripts/\w+\.py)|(\.ci/run)$", run)
            if command:
                seen.add(command[1])
                assert command[1] in known, f"{name}, {job}: {run}"
            elif script:
                assert (ROOT / (script[1] or script[2])).is_file(), f"{name}, {job}: {run}"
            else:
                assert not run or run.startswith(OTHER), f"{name}, {job}: {run}"
    assert {"check", "build", "check-wheel", "gate", "macos-wheels", "metal", "mlx", "torch", "bench"} <= seen


def test_actions_are_pinned_alike() -> None:
    """To a commit, whose version stands beside it; every use of an action to the same one."""
    commits: dict[str, set[tuple[str, str]]] = {}
    for path in FOLDER.iterdir():
        for line in path.read_text().splitlines():
            if "uses: " in line and "uses: ./" not in line:
                found = PINNED.search(line)
                assert found, f"{path.name}: {line.strip()}"
                commits.setdefault(found["action"], set()).add((found["commit"], found["version"]))
    assert "actions/checkout" in commits
    assert {action: len(pins) for action, pins in commits.items()} == dict.fromkeys(commits, 1)


def test_nobody_may_do_more_than_needed() -> None:
    """Nothing may be written but by the jobs that publish; no checkout keeps a token; every job ends some time."""
    writing = {}
    for name, job, content in jobs():
        assert load(name)["permissions"] == {}, name
        allowed = content.get("permissions", {})
        writing |= {(name, job): {what for what, how in allowed.items() if how == "write"}}
        assert "timeout-minutes" in content or "uses" in content, f"{name}, {job}"
        for step in content.get("steps", []):
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False, f"{name}, {job}"
    assert {job: what for job, what in writing.items() if what} == {
        ("release", "publish"): {"id-token", "attestations"},
        ("release", "notes"): {"contents"},
        ("pages", "deploy"): {"id-token", "pages"},
    }


def test_the_site_is_published_from_main_alone() -> None:
    pages = load("pages")
    build, deploy = pages["jobs"]["build"], pages["jobs"]["deploy"]
    assert deploy["needs"] == "build" and deploy["if"] == "github.ref == 'refs/heads/main'"
    assert {"run": "./dev.sh docs"} in build["steps"] and build["steps"][-1]["with"] == {"path": "site"}


def test_a_release_is_checked_before_it_leaves() -> None:
    """Publishing waits for the files, these for the wheels and their gate; by hand nothing is published."""
    release, wheels = load("release")["jobs"], load("wheels")["jobs"]
    assert release["publish"]["if"] == "github.event_name == 'push'"
    assert release["publish"]["environment"] == "${{ needs.check.outputs.package }}"
    assert {*release["publish"]["needs"]} == {"check", "files"} and {*release["files"]["needs"]} == {"check", "wheels"}
    assert release["notes"]["needs"] == "publish" and release["wheels"]["uses"].endswith("/wheels.yml")
    assert wheels["gate"]["needs"] == "build" and any(
        "./dev.sh gate" in step.get("run", "") for step in wheels["gate"]["steps"]
    )


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", ".pre-commit-config.yaml", ".github/pull_request_template.md"])
def test_pages_name_commands_that_there_are(page: str) -> None:
    named = set(re.findall(r"\./dev\.sh ([a-z][\w-]+)", (ROOT / page).read_text()))
    assert named and named <= commands((ROOT / "dev.sh").read_text())
