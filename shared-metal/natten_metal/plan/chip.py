"""The chip and macOS of this machine, asked of the operating system: no framework is needed to know them."""

import platform
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from ..caches import cached

Ask = Callable[..., str]


def ask(*command: str) -> str:
    """What a program of the operating system prints; '' if there is none, or it does not answer soon."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False, errors="replace")
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


@cached("chip", 1)
def chip_name() -> str:
    """'Apple M4 Max', or what the CPU calls itself elsewhere; at least its architecture."""
    if sys.platform == "darwin":
        return mac_chip(ask) or platform.machine()
    return linux_chip(_text("/proc/cpuinfo")) or platform.processor() or platform.machine()


@cached("GPU cores", 1)
def gpu_cores() -> int | None:
    """Cores of the Apple GPU; None where there is none, or macOS does not say."""
    return mac_gpu_cores(ask) if sys.platform == "darwin" else None


@cached("macOS", 1)
def macos_release() -> str:
    """'26.3', or '' elsewhere."""
    return mac_release(ask) or platform.mac_ver()[0] if sys.platform == "darwin" else ""


def mac_release(ask: Ask) -> str:
    """macOS's own release, or ''. A Python that was built with an older SDK is told that macOS 26 is 16
    (``platform.mac_ver``: cpython issue 135675); a program of the system is not.
    """
    return ask("sw_vers", "-productVersion")


def mac_chip(ask: Ask) -> str:
    """macOS's name of the chip, or ''."""
    return ask("sysctl", "-n", "machdep.cpu.brand_string")


def mac_gpu_cores(ask: Ask) -> int | None:
    """The number that the GPU's entry in macOS's registry of devices has."""
    found = re.search(r'"gpu-core-count"\s*=\s*(\d+)', ask("ioreg", "-r", "-d", "1", "-c", "AGXAccelerator"))
    return int(found[1]) if found else None


def linux_chip(cpuinfo: str) -> str:
    """The CPU's name in the text of /proc/cpuinfo, or '' where it has none, as on most ARM machines."""
    found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return found[1].strip() if found else ""


def _text(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""
