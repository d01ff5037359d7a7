"""What is installed on which machine, and what is wrong with that: all that can be said before a framework is imported.

A framework that is broken may end the process that imports it, so it is first imported by another one.
"""

import json
import os
import platform
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any, NamedTuple

from ..plan.chip import ask, chip_name, gpu_cores, macos_release
from ..plan.verdicts import quoted

OLDEST_MACOS = (14, 0)
# Seconds in which a framework must have been imported, from a slow disk too.
PATIENCE = 300


@dataclass(frozen=True, slots=True)
class Framework:
    """The framework under a package, as installers know it.

    name: in words. module: what is imported of it. distribution: what is installed. parts: on an operating system
    (as ``sys.platform`` names it), distributions of which one must be installed too, because the framework's own holds
    no library there. install: the command that installs it all, by operating system; '' for all others.
    """

    name: str
    module: str
    distribution: str
    install: Mapping[str, str]
    parts: Mapping[str, tuple[str, ...]]

    def command(self, system: str) -> str:
        """The command that installs it."""
        return self.install.get(system, self.install[""])


@dataclass(frozen=True, slots=True)
class Machine:
    """Where the package is installed. system: as ``sys.platform``. os: its name and version. rosetta: whether an Apple
    chip translates this process, which is built for Intel's. memory: in bytes."""

    system: str
    os: str
    architecture: str
    rosetta: bool
    chip: str
    gpu_cores: int | None
    cpus: int | None
    memory: int | None

    def __str__(self) -> str:
        cores = f", {self.gpu_cores} GPU cores" if self.gpu_cores else ""
        memory = f", {self.memory / 2**30:.0f} GiB" if self.memory else ""
        rosetta = " under Rosetta" if self.rosetta else ""
        return f"{self.chip}{cores}, {self.cpus} CPUs{memory}, {self.os}, {self.architecture}{rosetta}"


class Finding(NamedTuple):
    """Something wrong. remedy: what to do. fatal: whether nothing can be computed before that is done."""

    problem: str
    remedy: str
    fatal: bool = True


@dataclass(frozen=True, slots=True)
class Installation:
    """A package on a machine. python: its version. versions: of what is installed, by distribution; None: not there.

    requires: the package's own requirements, ``Requires-Python`` first, as its metadata states them. newest_python: the
    newest on which it is tested. settings: the environment variables that begin with NATTEN.
    """

    package: str
    machine: Machine
    python: str
    versions: Mapping[str, str | None]
    requires: tuple[str, ...]
    newest_python: str
    settings: Mapping[str, str]

    def as_json(self) -> dict[str, Any]:
        """Its part of the doctor's file."""
        return {
            "package": self.package,
            "machine": asdict(self.machine),
            "python": self.python,
            "versions": dict(self.versions),
            "settings": dict(self.settings),
        }

    def lines(self) -> list[str]:
        """The same for people."""
        there = [f"{name} {version}" for name, version in self.versions.items() if version]
        settings = [f"  {name}={value}" for name, value in self.settings.items()]
        return [f"  {self.machine}", f"  Python {self.python}, {', '.join(there)}", *settings]


def here(package: str, framework: Framework) -> Installation:
    """This process's installation of ``package``."""
    parts = dict.fromkeys(name for names in framework.parts.values() for name in names)
    own = metadata.metadata(package)
    required = [f"python{own['Requires-Python'] or ''}", *(metadata.requires(package) or ())]
    named = dict.fromkeys(_distribution(each) for each in required[1:] if "extra ==" not in each)
    pythons = [line.split(" :: ")[-1] for line in own.get_all("Classifier") or () if "Python :: 3." in line]
    return Installation(
        package,
        machine(),
        platform.python_version(),
        {name: _version(name) for name in {package: None, framework.distribution: None} | parts | named | EXTRAS},
        tuple(required),
        max(pythons, key=_numbers, default=""),
        {name: value for name, value in sorted(os.environ.items()) if name.startswith("NATTEN")},
    )


# Not required, but of interest: what most tensors come from.
EXTRAS = dict.fromkeys(("numpy",))


def machine() -> Machine:
    """This machine."""
    mac = macos_release()
    pages = [os.sysconf(name) if name in os.sysconf_names else 0 for name in ("SC_PHYS_PAGES", "SC_PAGE_SIZE")]
    return Machine(
        sys.platform,
        f"macOS {mac}" if mac else f"{platform.system()} {platform.release()}",
        platform.machine(),
        sys.platform == "darwin" and ask("sysctl", "-n", "sysctl.proc_translated") == "1",
        chip_name(),
        gpu_cores(),
        os.cpu_count(),
        pages[0] * pages[1] or None,
    )


def findings(here: Installation, framework: Framework) -> list[Finding]:
    """What is wrong, the cause before its consequences; nothing is imported."""
    return [*_of_python(here), *_of_machine(here.machine), *_of_framework(here, framework)]


def _of_python(here: Installation) -> list[Finding]:
    wanted = here.requires[0].partition(">=")[2]
    if _numbers(here.python) < _numbers(wanted):
        remedy = (
            f"install Python {here.newest_python}, make a new environment with it, and install {here.package} there"
        )
        return [Finding(f"Python {here.python} is too old: {here.package} needs {wanted} or newer", remedy)]
    newest = here.newest_python
    if newest and _numbers(here.python)[:2] > _numbers(newest):
        problem = f"Python {here.python} is newer than {newest}, the newest that {here.package} is tested with"
        return [Finding(problem, f"if something does not work, try Python {newest}", fatal=False)]
    return []


def _of_machine(machine: Machine) -> list[Finding]:
    if machine.system != "darwin":
        return []
    if machine.rosetta:
        problem = "this Python is built for Intel and runs under Rosetta, where there is no Apple GPU for it"
        return [Finding(problem, "install a Python for arm64, and make a new environment with it")]
    if machine.architecture != "arm64":
        return [Finding("this Mac has an Intel CPU; the kernels are for Apple Silicon", "use a Mac with an M chip")]
    version = _numbers(machine.os.partition(" ")[2])
    if version < OLDEST_MACOS:
        oldest = ".".join(map(str, OLDEST_MACOS))
        return [Finding(f"{machine.os} is too old: {oldest} or newer is needed", "update macOS")]
    return []


def _of_framework(here: Installation, framework: Framework) -> list[Finding]:
    """What is missing of the framework, or does not fit."""
    command = framework.command(here.machine.system)
    found = here.versions.get(framework.distribution)
    if found is None:
        return [Finding(f"{framework.name} is not installed", command)]
    oldest = next((_oldest(each) for each in here.requires if _distribution(each) == framework.distribution), "")
    if oldest and _numbers(found) < _numbers(oldest):
        problem = f"{framework.distribution} {found} is too old: {here.package} needs {oldest} or newer"
        return [Finding(problem, command.replace("install ", "install --upgrade ", 1))]
    parts = framework.parts.get(here.machine.system, ())
    present = {name: here.versions.get(name) for name in parts if here.versions.get(name)}
    if parts and not present:
        problem = f"{framework.distribution} is installed without its library, which {' or '.join(parts)} holds"
        return [Finding(problem, command)]
    for name, version in present.items():
        if version != found:
            problem = f"{framework.distribution} {found} and {name} {version} do not belong together"
            return [
                Finding(problem, f"pip install --force-reinstall {framework.distribution}=={found} {name}=={found}")
            ]
    return []


def import_failure(here: Installation, framework: Framework) -> Finding | None:
    """Why the framework cannot be imported, tried in another process; None if it can, or has been already."""
    if framework.module in sys.modules:
        return None
    program = f"import json, sys; sys.path[:] = json.loads(sys.argv[1]); import {framework.module}"
    command = [sys.executable, "-c", program, json.dumps([path for path in sys.path if isinstance(path, str)])]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False, errors="replace")
    except subprocess.TimeoutExpired:
        words = f"it had not been imported after {PATIENCE} seconds"
    else:
        if not done.returncode:
            return None
        words = quoted(RuntimeError(done.stderr.strip().rpartition("\n")[2]))
        if done.returncode < 0:
            words = f"its import ended the process by {signal.Signals(-done.returncode).name}"
    command_again = framework.command(here.machine.system).replace("install ", "install --force-reinstall ", 1)
    return Finding(f"{framework.name} is installed, but cannot be imported: {words}", command_again)


# --- versions ----------------------------------------------------------------------------------------


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    """The numbers that a version begins with: (2, 13, 0) of '2.13.0+cpu'."""
    return tuple(int(part) for part in re.findall(r"\d+", re.match(r"[\d.]*", version)[0]))  # type: ignore[index]


def _distribution(requirement: str) -> str:
    """'mlx' of 'mlx[cpu]>=0.31; sys_platform == "linux"'."""
    return re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]


def _oldest(requirement: str) -> str:
    """'2.9' of 'torch>=2.9'; '' if there is no lower end."""
    found = re.search(r">=\s*([\d.]+)", requirement)
    return found[1] if found else ""
