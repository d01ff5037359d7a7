"""What a compiled file for macOS or Linux says about itself, read without running it."""

import hashlib
import re
import struct
from dataclasses import dataclass
from pathlib import Path

import lief

lief.logging.disable()  # it warns of what ziglang's linker leaves empty

# Absolute paths, other than of what every machine has.
PATHS = re.compile(rb"(?<![\w./@$<])/(?:[\w.+-]+/)+[\w.+-]+")
EVERYWHERE = re.compile(rb"/(usr/lib|System/Library|lib64|proc|sys|dev)/")


@dataclass(frozen=True)
class Binary:
    """What a compiled file says.

    system: "macOS" or "Linux". machines: as in wheel tags. oldest: the macOS or glibc that it asks for. name: by which
    others link to it. search: where it looks for libraries. paths: of the machine it was built on.
    """

    system: str
    machines: tuple[str, ...]
    oldest: tuple[int, ...]
    name: str
    search: tuple[str, ...]
    needs: tuple[str, ...]
    signature: str
    paths: tuple[str, ...]


def read(path: Path) -> Binary:
    content = path.read_bytes()
    paths = sorted({found[0].decode() for found in PATHS.finditer(content) if not EVERYWHERE.match(found[0])})
    if content.startswith(b"\x7fELF"):
        return _elf(lief.ELF.parse(str(path)), tuple(paths))
    return _macho(lief.MachO.parse(str(path)), content, tuple(paths))


def _elf(binary: lief.ELF.Binary, paths: tuple[str, ...]) -> Binary:
    entries = {lief.ELF.DynamicEntry.TAG.SONAME: [], lief.ELF.DynamicEntry.TAG.RUNPATH: []}
    for entry in binary.dynamic_entries:
        if entry.tag in entries:
            entries[entry.tag].append(getattr(entry, "name", None) or getattr(entry, "runpath", ""))
    name, search = entries.values()
    asked = [
        version.name for needed in binary.symbols_version_requirement for version in needed.get_auxiliary_symbols()
    ]
    glibc = [tuple(map(int, text[6:].split("."))) for text in asked if re.fullmatch(r"GLIBC_[\d.]+", text)]
    machine = {lief.ELF.ARCH.X86_64: "x86_64", lief.ELF.ARCH.AARCH64: "aarch64"}.get(binary.header.machine_type, "?")
    folders = tuple(folder for line in search for folder in line.split(":"))
    needs = tuple(binary.libraries)
    return Binary("Linux", (machine,), max(glibc, default=(2, 0)), "".join(name), folders, needs, "", paths)


def _macho(binaries: lief.MachO.FatBinary, content: bytes, paths: tuple[str, ...]) -> Binary:
    arm = lief.MachO.Header.CPU_TYPE.ARM64
    machines = tuple("arm64" if part.header.cpu_type == arm else "other" for part in binaries)
    (binary, *_) = binaries
    kind = lief.MachO.LoadCommand.TYPE
    own = [c.name for c in binary.commands if c.command == kind.ID_DYLIB]
    needs = tuple(c.name for c in binary.commands if c.command in (kind.LOAD_DYLIB, kind.LOAD_WEAK_DYLIB))
    search = tuple(c.path for c in binary.commands if c.command == kind.RPATH)
    versions = [c.minos for c in binary.commands if c.command == kind.BUILD_VERSION]
    oldest = tuple(versions[0][:2]) if versions else ()
    return Binary("macOS", machines, oldest, "".join(own), search, needs, unsigned(content), paths)


def unsigned(content: bytes) -> str:
    """Why macOS would not load a Mach-O file for its signature: the hashes of its pages. Empty if it would."""
    count, at, place = struct.unpack_from("<I", content, 16)[0], 32, None
    for _ in range(count):
        command, size = struct.unpack_from("<2I", content, at)
        if command == 0x1D:  # LC_CODE_SIGNATURE
            place = struct.unpack_from("<I", content, at + 8)[0]
        at += size
    if place is None:
        return "is not signed"
    for index in range(struct.unpack_from(">I", content, place + 8)[0]):
        kind, offset = struct.unpack_from(">2I", content, place + 12 + 8 * index)
        if kind == 0:
            return _wrong_pages(content, place + offset)
    return "has a signature without hashes"


def _wrong_pages(content: bytes, directory: int) -> str:
    """directory: where the CodeDirectory is, whose hashes are those of the pages of the file up to a limit."""
    _, _, _, _, hashes, _, _, count, limit = struct.unpack_from(">9I", content, directory)
    size, _, _, shift = struct.unpack_from("4B", content, directory + 36)
    page = 1 << shift
    if count * page < limit:
        return "has a signature that leaves pages out"
    for index in range(count):
        at = directory + hashes + index * size
        made = hashlib.sha256(content[index * page : min((index + 1) * page, limit)]).digest()
        if made[:size] != content[at : at + size]:
            return f"has a signature that does not fit its page {index}"
    return ""
