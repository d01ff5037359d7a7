"""From code of a kernel library back to lines of the Metal source."""

import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

from .toolchain import HERE

SHIM = f"{HERE.name}/shim/"


@cache
def symbolizer() -> list[str]:
    """The command that turns code offsets into lines of source; llvm's own follows inlined calls best."""
    for command in (["llvm-symbolizer-19", "--functions=none", "--inlines"], ["addr2line", "-i"]):
        if shutil.which(command[0]):
            return command
    return []


def source_place(library: Path, code: int) -> str:
    """`kernel.metal:12` of a return address in a kernel library: the innermost call that is not in the shim."""
    command = symbolizer()
    if not command:
        return f"{library.name}+{code - 1:#x}"
    done = subprocess.run([*command, "-e", str(library), hex(code - 1)], capture_output=True, text=True, check=True)
    places = re.findall(r"^(.+?:\d+)", done.stdout, re.MULTILINE)
    outside = [place for place in places if SHIM not in place] or places
    return Path(outside[0]).name if outside else f"{library.name}+{code - 1:#x}"
