"""How much memory the machine has, and how much a call needs in a process whose framework does not count it."""

import ctypes
import os
import sys
from collections.abc import Callable
from pathlib import Path

# Where Linux says what a control group may use, in its two versions.
GROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def machine_bytes() -> int:
    """Memory of the machine, or what the process's group may use of it."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in GROUP_LIMITS:
        try:
            text = Path(path).read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            limits.append(int(text))
    return min(limits)


def resident_peak(call: Callable[[], object]) -> int | None:
    """The most resident memory during ``call`` beyond what there was before; None where it cannot be asked for anew.

    Only Linux forgets an earlier peak. What the allocator holds back for later is given to the system first; a call
    that reuses small pieces of what remains needs so much more than this says.
    """
    if sys.platform != "linux":
        return None
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak becomes what is resident now
        before = _status("VmRSS")
        call()
        return max(0, _status("VmHWM") - before)
    except (OSError, AttributeError):  # a system that does not allow it; a C library without malloc_trim
        return None


def _status(name: str) -> int:
    """A number of bytes in /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return 1024 * int(value.split()[0])
    raise OSError(f"/proc/self/status has no {name}")
