"""The journal of a call that runs slab by slab: a small file beside its result, so that an interrupted call can resume.

It names the call, how it is cut, and how many slabs, in their order, are on the disk. After each slab, a new file
replaces it atomically, so that it never claims more than what is done. A finished call removes it.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..problem.checks import slabs as rules

VERSION = 1
KEYS = {"journal", "call", "slab", "done"}


@dataclass(frozen=True, slots=True)
class Journal:
    """One journal. call: everything that the results depend on, as values of JSON."""

    face: str
    path: Path
    call: dict[str, Any]

    def begun(self) -> tuple[tuple[int, ...], int] | None:
        """The lengths of the slabs and how many are done; None without a journal. ValueError if it belongs to another
        call or is no journal at all.
        """
        try:
            text = self.path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            found = json.loads(text)
        except ValueError:
            rules.reject_journal_file(self.face, self.path, "it is not JSON")
        if not isinstance(found, dict) or set(found) != KEYS or found["journal"] != VERSION:
            rules.reject_journal_file(self.face, self.path, f"its keys are not those of version {VERSION}")
        was, now = found["call"], json.loads(json.dumps(self.call))
        if was != now:
            names = [name for name in {**was, **now} if was.get(name) != now.get(name)]
            rules.reject_journal(self.face, self.path, {name: (was.get(name), now.get(name)) for name in names})
        return tuple(found["slab"]), found["done"]

    def record(self, slab: tuple[int, ...], done: int) -> None:
        """Record that the first ``done`` slabs are on the disk; when this returns, so is the record."""
        part = self.path.with_name(f"{self.path.name}.part")
        with part.open("w") as file:
            json.dump({"journal": VERSION, "call": self.call, "slab": slab, "done": done}, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(self.path)
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def remove(self) -> None:
        """The call is finished."""
        self.path.unlink(missing_ok=True)
