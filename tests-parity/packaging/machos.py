"""Small files in the format of macOS's libraries, for the tests of what scripts/check_wheel.py says of them."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

ARM64, X86_64 = (0x0100000C, 0), (0x01000007, 3)
PAGE = 4096


@dataclass(frozen=True)
class MachO:
    """A library; without a name, a module. text: what it holds. wrong_page: its signature was made for another text."""

    name: str = ""
    needs: tuple[str, ...] = ("/usr/lib/libSystem.B.dylib", "/usr/lib/libc++.1.dylib")
    search: tuple[str, ...] = ()
    oldest: tuple[int, int] = (14, 0)
    processor: tuple[int, int] = ARM64
    text: bytes = b""
    signed: bool = True
    wrong_page: bool = False

    def made(self) -> bytes:
        commands = [struct.pack("<6I", 0x32, 24, 1, self.oldest[0] << 16 | self.oldest[1] << 8, 14 << 16, 0)]
        if self.name:
            commands.append(_text_command(0xD, self.name, 24, struct.pack("<3I", 0, 0, 0)))
        commands += [_text_command(0xC, need, 24, struct.pack("<3I", 0, 0, 0)) for need in self.needs]
        commands += [_text_command(0x8000001C, folder, 12) for folder in self.search]
        size = 16 * self.signed + sum(map(len, commands))
        limit = 32 + size + len(self.text)
        limit += -limit % 16
        if self.signed:
            pages = -(-limit // PAGE)
            signature = 20 + 44 + 1 + 32 * pages
            commands.append(struct.pack("<4I", 0x1D, 16, limit, signature))
        kind = 6 if self.name else 8
        header = struct.pack("<8I", 0xFEEDFACF, *self.processor, kind, len(commands), size, 0x85, 0)
        content = (header + b"".join(commands) + self.text).ljust(limit, b"\0")
        return content + self._signature(content) if self.signed else content

    def _signature(self, content: bytes) -> bytes:
        hashes = [hashlib.sha256(content[at : at + PAGE]).digest() for at in range(0, len(content), PAGE)]
        if self.wrong_page:
            hashes[-1] = bytes(32)
        length = 44 + 1 + 32 * len(hashes)
        directory = struct.pack(
            ">9I4BI", 0xFADE0C02, length, 0x20100, 2, 45, 44, 0, len(hashes), len(content), 32, 2, 0, 12, 0
        )
        blob = directory + b"\0" + b"".join(hashes)
        return struct.pack(">5I", 0xFADE0CC0, 20 + len(blob), 1, 0, 20) + blob


def _text_command(command: int, text: str, start: int, between: bytes = b"") -> bytes:
    """A load command that ends in a text, at ``start``."""
    content = text.encode() + b"\0"
    content += bytes(-(start + len(content)) % 8)
    return struct.pack("<3I", command, start + len(content), start) + between + content
