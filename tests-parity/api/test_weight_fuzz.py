"""Damaged files of weights: each loads right, or is a ValueError that names the file and the rule that it breaks."""

from __future__ import annotations

import io
import json
import random
import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch

from natten_mps._metal.weights import files as weight_files
from natten_mps._metal.weights.safetensors_file import DTYPES
from natten_mps.weights import _torch_file

Array = Any
FILES = 1_000
# Where ours is stricter than the library: names and fields in one way only, and arrays that numpy can hold.
STRICTER = re.compile(
    r"occurs twice|has no dtype, shape and data_offsets|dtypes that are read|maximum supported dimension"
    r"|array is too big|Maximum allowed dimension|recursion|Exceeds the limit"
)
NUMBERS = ["-1", "-0", "0", "1", "2", "3", "7", "2147483648", "18446744073709551615", "1" * 30, "1" * 5000]
VALUES = [*NUMBERS, "1.0", "1e2", "true", "null", "NaN", "[]", "{}", '"F32"', '"F8_E4M3"', '"\\ud800"', "[" * 2000]


def small_file(source: random.Random) -> bytes:
    """A valid file: arrays of any dtype and of few elements, and sometimes metadata, gaps in the text, other orders."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}} if source.random() < 0.3 else {}
    data, entries = b"", []
    for name in source.sample(["a", "b.weight", "c", "ä", "x" * 40], source.randint(1, 4)):
        kind, shape = source.choice(list(DTYPES)), [source.randint(0, 3) for _ in range(source.randint(0, 3))]
        size = int(np.prod(shape, dtype=int)) * np.dtype(DTYPES[kind]).itemsize
        place = [len(data), len(data) + size]
        entries.append((name, {"dtype": kind, "shape": shape, "data_offsets": place}))
        data += bytes(source.randrange(2) for _ in range(size))
    source.shuffle(entries)
    text = json.dumps(header | dict(entries), indent=source.choice([None, 1]), ensure_ascii=source.random() < 0.5)
    return packed(text.encode() + b" " * source.randrange(9), data)


def packed(text: bytes, data: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text + data


# --- what damages a file: its bytes, or its header as text ----------------------------------------------


def any_bytes(source: random.Random, content: bytes) -> bytes:
    """Bytes are changed, cut out, or repeated."""
    start = source.randrange(len(content))
    end = min(len(content), start + source.choice([0, 1, 1, 2, 8, 100]))
    new = source.choice([b"", content[start:end] * 2, source.randbytes(end - start), source.randbytes(1)])
    return content[:start] + new + content[end:]


def header_length(source: random.Random, content: bytes) -> bytes:
    length = int.from_bytes(content[:8], "little") + source.choice([-9, -1, 1, 2, 8, 1 << 20, 1 << 40])
    return max(length, 0).to_bytes(8, "little") + content[8:]


def in_header(pattern: str, change: Callable[[random.Random, str], str]) -> Callable[[random.Random, bytes], bytes]:
    """One place of the header that fits the pattern is changed; the length is right again."""

    def damage(source: random.Random, content: bytes) -> bytes:
        end = 8 + int.from_bytes(content[:8], "little")
        text = content[8:end].decode()
        found = list(re.finditer(pattern, text))
        if not found:
            return content
        place = source.choice(found)
        text = text[: place.start()] + change(source, place.group()) + text[place.end() :]
        return packed(text.encode(), content[end:])

    return damage


DAMAGE = [
    any_bytes,
    header_length,
    in_header(r"\d+", lambda source, old: str(max(0, int(old) + source.choice([-4, -1, 1, 4])))),
    in_header(r"\d+", lambda source, old: source.choice(NUMBERS)),
    in_header(r'\d+|"\w+"|\[[^\[\]]*\]|\{[^{}]*\}', lambda source, old: source.choice(VALUES)),
    in_header(r'"(?:F|BF|I|U|BOOL)\d*"', lambda source, old: f'"{source.choice(list(DTYPES))}"'),
    in_header(r'"(?:a|c|shape|dtype|pt)"', lambda source, old: source.choice(['"a"', '"c"', '"shape"', '"\\u0061"'])),
    in_header(r"[,:{}\[\]]", lambda source, old: source.choice(["", ",", ":", "}", "]", " ", "\t", "\0", old * 2])),
    lambda source, content: content,
]


# --- the library's own interpretation, which shares no code with ours -------------------------------------


def expected(content: bytes) -> dict[str, dict[str, Any]] | None:
    """Each array's dtype, shape and bytes; None for a file that the library refuses."""
    try:
        return dict(safetensors.deserialize(content))
    except safetensors.SafetensorError:
        return None


def as_torch(kind: str, shape: list[int], data: bytes) -> torch.Tensor:
    letters, bits = re.fullmatch(r"([A-Z]+)(\d*)", kind).groups()
    names = {"F": "float", "BF": "bfloat", "I": "int", "U": "uint"}
    dtype = getattr(torch, names.get(letters, letters.lower()) + bits)
    flat = torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)
    return flat.float().reshape(shape) if letters == "BF" else flat.reshape(shape)


def assert_right(found: dict[str, Array], wanted: dict[str, dict[str, Any]]) -> None:
    assert found.keys() == wanted.keys()
    for name, array in found.items():
        right = as_torch(wanted[name]["dtype"], wanted[name]["shape"], wanted[name]["data"]).numpy()
        assert array.dtype == right.dtype and array.shape == right.shape, name
        assert array.tobytes() == right.tobytes(), name


def outcome(path: Path) -> dict[str, Array] | str:
    """The arrays, or the error's text; any other error goes on, and fails the test."""
    try:
        return weight_files.read(path)
    except ValueError as error:
        assert str(error).startswith(f"load_weights: {path.name} "), error
        return str(error)


@pytest.fixture(params=["with the library", "without the library"])
def library_calls(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[str] | None:
    """What the safetensors library is asked while it is there; None where it is not installed."""
    if request.param == "without the library":
        monkeypatch.setitem(sys.modules, "safetensors", None)
        return None
    asked, ask = [], safetensors.safe_open

    def watched(path: Any, framework: str) -> Any:
        asked.append(str(path))
        return ask(path, framework=framework)

    monkeypatch.setattr(safetensors, "safe_open", watched)
    return asked


@pytest.mark.parametrize("files", [FILES, pytest.param(10 * FILES, marks=pytest.mark.all)])
def test_damaged_safetensors_files(files: int, library_calls: list[str] | None, tmp_path: Path) -> None:
    source, path, seen = random.Random(files), tmp_path / "damaged.safetensors", Counter()
    for _ in range(files):
        content = source.choice(DAMAGE)(source, small_file(source))
        path.unlink(missing_ok=True)  # some file systems write to disk at once what is truncated and written again
        path.write_bytes(content)
        found, wanted = outcome(path), expected(content)
        seen[type(found).__name__, wanted is not None] += 1
        if isinstance(found, dict):
            assert wanted is not None, f"the library refuses {content!r}"
            assert_right(found, wanted)
        else:
            assert wanted is None or STRICTER.search(found), f"{found}: {content!r}"
    assert seen["dict", True] > files / 8 and seen["str", False] > files / 3, seen
    assert library_calls is None or len(library_calls) >= seen["dict", True]


def whole_files() -> dict[str, list[bytes]]:
    """Small valid files in each way that the other formats are written."""
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b.weight": np.ones(3, np.float16)}
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    writers: dict[str, list[Callable[[Any], Any]]] = {
        ".npz": [lambda file: np.savez(file, **arrays), lambda file: np.savez_compressed(file, **arrays)],
        ".pt": [
            lambda file: torch.save(tensors, file),
            lambda file: torch.save(tensors, file, _use_new_zipfile_serialization=False),
        ],
    }
    made: dict[str, list[bytes]] = {}
    for ending, ways in writers.items():
        files = [io.BytesIO() for _ in ways]
        for write, file in zip(ways, files, strict=True):
            write(file)
        made[ending] = [file.getvalue() for file in files]
    return made


@pytest.mark.parametrize("files", [FILES, pytest.param(10 * FILES, marks=pytest.mark.all)])
@pytest.mark.parametrize("ending", [".npz", ".pt"])
@pytest.mark.filterwarnings("ignore")  # of numpy and torch, about what they find in a damaged file
def test_other_damaged_files(ending: str, files: int, tmp_path: Path) -> None:
    """Their readers are numpy's and torch's: what they raise becomes a ValueError, whatever it was."""
    source, path, seen = random.Random(files), tmp_path / f"damaged{ending}", Counter()
    whole, read = whole_files()[ending], _torch_file if ending == ".pt" else weight_files.read
    for _ in range(files):
        path.unlink(missing_ok=True)
        path.write_bytes(any_bytes(source, source.choice(whole)))
        try:
            read(path)
        except ValueError as error:
            assert re.match(rf"load_weights: damaged{ending} is not a {ending} file, or is incomplete \(.", str(error))
            seen["refused"] += 1
        else:
            seen["read"] += 1
    assert min(seen["refused"], seen["read"]) > files / 10, seen
    with pytest.raises(FileNotFoundError):
        read(tmp_path / f"absent{ending}")
