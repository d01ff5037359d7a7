"""The page: one HTML file, without anything to load, on which shape and window can be played with in a browser.

Its arithmetic is JavaScript (:data:`ARITHMETIC`), because a page has no Python to ask; tests hold it equal to
:mod:`..problem.window` and :mod:`..metal.tiles`. What is data here is written into it as data.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..metal.flat import LONGEST_BOX
from ..metal.tiles import COLUMNS, ROWS, patches
from ..metal.tiling import FLAT_GAIN
from ..problem.problem import RANKS
from .drawing import PALETTE

FOLDER = Path(__file__).parent
# The files of the arithmetic, and of what shows it; each uses those before it.
ARITHMETIC = ("window.js", "problem.js", "bricks.js", "sight.js")
SHOWN_BY = ("draw.js", "page.js")
# What tests and the console reach: the functions that the page itself uses.
NAMES = (
    *("group_length", "window", "inverse", "broken_rule", "axes_of", "seen", "stride_group", "sight", "sees"),
    *("count_bricks", "bricks_of", "best_walk", "fits", "patch_at", "patch_bricks", "brick_of", "work"),
)

Settings = Mapping[str, tuple[Any, ...]]


def _settings(shape: tuple[int, ...], kernel_size: tuple[int, ...], **others: tuple[Any, ...]) -> Settings:
    ones, no = (1,) * len(shape), (False,) * len(shape)
    defaults = {"stride": ones, "dilation": ones, "is_causal": no, "wrap": no}
    return {"shape": shape, "kernel_size": kernel_size, **defaults, **others}


START = _settings((16, 16), (5, 5))
# Windows that published models use, and some that show one thing.
EXAMPLES: Mapping[str, Settings] = {
    "NAT, first stage": _settings((56, 56), (7, 7)),
    "DiNAT, first stage": _settings((56, 56), (7, 7), dilation=(8, 8)),
    "HDiT at 64 x 64": _settings((64, 64), (7, 7)),
    "GNA on an image: stride 16": _settings((96, 96), (48, 48), stride=(16, 16)),
    "GNA on a video: stride": _settings((16, 24, 32), (8, 12, 16), stride=(4, 4, 8)),
    "1-D, causal, dilated": _settings((48,), (6,), dilation=(3,), is_causal=(True,)),
    "frames: causal in time": _settings((8, 16, 16), (4, 5, 5), is_causal=(True, False, False)),
    "globe: longitude wraps": _settings((18, 36), (5, 9), wrap=(False, True)),
}


def arithmetic() -> str:
    """The part of the program that needs no browser, with its functions in ``globalThis.natten``."""
    shapes = {rank: [patch[3 - rank :] for patch in patches(rank, 1)] for rank in RANKS}
    constants = {"ROWS": ROWS, "COLUMNS": COLUMNS, "PATCHES": shapes}
    constants |= {"LONGEST_BOX": LONGEST_BOX, "FLAT_GAIN": FLAT_GAIN}
    hook = f"globalThis.natten = {{ {', '.join(NAMES)} }};"
    return "\n".join([*_constants(constants), *_texts(ARITHMETIC), hook])


def page(settings: Settings | None = None) -> str:
    """The HTML file. settings: those that it begins with, each name with one entry per axis."""
    examples = [{"name": name, "settings": each} for name, each in EXAMPLES.items()]
    constants = {"START": settings or START, "EXAMPLES": examples}
    program = "\n".join([arithmetic(), *_constants(constants), *_texts(SHOWN_BY)])
    (html,) = _texts(["page.html"])
    (rules,) = _texts(["page.css"])
    return html.replace("/* STYLE */", _colors() + rules).replace("/* PROGRAM */", program)


def _colors() -> str:
    """The palette as CSS variables: the system's scheme, unless the reader chooses one."""

    def scheme(name: str) -> str:
        variables = (f"--{color}: {value};" for color, value in PALETTE[name].items())
        return "{ color-scheme: " + name + "; " + " ".join(variables) + " }"

    dark = scheme("dark")
    automatic = f'@media (prefers-color-scheme: dark) {{ :root:not([data-theme="light"]) {dark} }}'
    return f':root {scheme("light")}\n{automatic}\n:root[data-theme="dark"] {dark}\n'


def _texts(names: Iterable[str]) -> list[str]:
    return [(FOLDER / name).read_text(encoding="utf-8") for name in names]


def _constants(values: Mapping[str, Any]) -> list[str]:
    return [f"const {name} = {json.dumps(value)};" for name, value in values.items()]
