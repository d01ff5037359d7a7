"""clang for macOS on Apple Silicon, elsewhere: what CMake passes to Apple's, passed to ziglang's.

It compiles with the headers that come with ziglang and those in $NATTEN_MACOS/include, and links to macOS's libraries
by what $NATTEN_MACOS holds: text files with the names of their symbols. scripts/build_macos_wheels.py writes both.

usage: macos_clang.py ARGUMENTS OF CLANG...
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

APPLE = "_LIBCPP_HAS_VENDOR_AVAILABILITY_ANNOTATIONS"


def translated(arguments: list[str]) -> Iterator[str]:
    """The arguments as ziglang's clang takes them."""
    version = "11.0"  # the first for Apple Silicon
    words = iter(arguments)
    for word in words:
        if word == "-arch":
            if next(words) != "arm64":
                sys.exit("macos_clang: for arm64 alone")
        elif word == "-isysroot":
            next(words)
        elif word.startswith("-mmacosx-version-min="):
            version = word.partition("=")[2]
        elif word in ("-bundle", "-dynamiclib"):
            yield "-shared"  # its linker makes no bundles, which are loaded like a library
        else:
            yield word
    # Without optimization it would add sanitizers, whose run time is not there.
    yield from ("-target", f"aarch64-macos.{version}", "-fno-sanitize=all")


def main() -> None:
    arguments, macos = sys.argv[1:], Path(os.environ["NATTEN_MACOS"])
    if any(word in ("-c", "-E", "-S", "-M") for word in arguments):
        # With APPLE, the C++ library's headers use nothing newer than the macOS that is built for.
        driver, more = "c++", ["-isystem", macos / "include", f"-U{APPLE}", f"-D{APPLE}=1"]
    else:
        # Linked as C: as C++, ziglang would link a C++ library of its own into the result.
        driver, more = "cc", [macos / "libc++.tbd", f"-L{macos}"]
    command = [sys.executable, "-m", "ziglang", driver, *translated(arguments), *more]
    sys.exit(subprocess.run(command, check=False).returncode)


if __name__ == "__main__":
    main()
