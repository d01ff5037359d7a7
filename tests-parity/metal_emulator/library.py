"""Compiling Metal source for execution."""

import ctypes
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .build import Variant, entry_name, kernel_library
from .launch import Kernel
from .toolchain import require
from .transform import Mode, Translation, translate


class Library:
    """The kernels of one Metal source, compiled. They stay loaded for the life of the process."""

    def __init__(self, path: Path, names: tuple[str, ...], translation: Translation, variant: Variant) -> None:
        self.path = path
        self.names = names
        self._code = ctypes.CDLL(str(path))
        self._translation = translation
        self._variant = variant

    def kernel(self, name: str) -> Kernel:
        """A kernel by its host_name, or by its function name if it has none."""
        if name not in self.names:
            raise KeyError(f"no kernel {name!r} in this library; it has {', '.join(self.names)}")
        entry = getattr(self._code, entry_name(self.names.index(name)))
        address = ctypes.cast(entry, ctypes.c_void_p).value
        assert address is not None
        return Kernel(name, address, self.path, self._translation.bindings(name), self._variant)


def compile_source(
    source: str,
    *,
    kernels: Sequence[str] | None = None,
    fast_math: bool = False,
    sanitizer: str | None = None,
    checked: bool = True,
    optimised: bool = True,
    include_dirs: Sequence[str] = (),
) -> Library:
    """Compile Metal source as a host would get it.

    kernels: the ones to compile, by host name (default: all). fast_math: clang's -ffast-math, with denormals flushed.
    sanitizer: None, "address" (bounds of private arrays too) or "undefined" (integer overflow, division by zero,
    shifts, alignment, ...). checked=False leaves out the memory checks: faster, but only divergence and crashes are
    found. optimised=False keeps every access of the source, even those whose value is not used. include_dirs: folders
    for #include of headers other than Metal's own. Raises CompileError with clang's messages, Unavailable if this
    machine cannot run the emulator.
    """
    require()
    variant = Variant(fast_math, sanitizer, checked, optimised)
    translation = translate(source, Mode.CPU, tuple(map(str, include_dirs)))
    available = translation.kernels()
    wanted = tuple(available) if kernels is None else tuple(kernels)
    unknown = [name for name in wanted if name not in available]
    if unknown or not wanted:
        raise ValueError(f"no kernel {', '.join(unknown)} in the source; it has {', '.join(available) or 'none'}")
    return Library(kernel_library(translation, wanted, variant), wanted, translation, variant)


def compile_sources(sources: Sequence[str], **options: Any) -> list[Library]:
    """compile_source() for several sources at once, with the same options; clang runs in two processes at a time."""
    with ThreadPoolExecutor(max(1, len(sources))) as threads:
        return list(threads.map(lambda source: compile_source(source, **options), sources))
