"""Draw the keys that a query attends to: docs/semantics.svg, masks of one axis; docs/windows.svg, in a picture.

    python scripts/draw_semantics.py

Every cell comes from the package itself, from its mask or from the gradient of a call, so the pictures cannot disagree
with the code.
"""

from pathlib import Path
from typing import Any

import torch

import natten_mps
from natten_mps._metal.problem.problem import Axis
from natten_mps._metal.problem.window import group_length, window

CELL, GAP, TOP, LENGTH = 14, 72, 58, 16
SEEN, OWN, EMPTY, INK = "#7aa6d6", "#1f4e8c", "#eef1f5", "#24292f"
PANELS = (
    ("kernel_size=5", "shifted at borders, never shrunk", Axis(LENGTH, LENGTH, 5, 1, 1, False)),
    ("kernel_size=4", "even: two to the left, one to the right", Axis(LENGTH, LENGTH, 4, 1, 1, False)),
    ("kernel_size=5, stride=4", "four queries share the leader's window", Axis(LENGTH, LENGTH, 5, 4, 1, False)),
    ("kernel_size=4, dilation=3", "every third token is a neighbor", Axis(LENGTH, LENGTH, 4, 1, 3, False)),
    ("kernel_size=5, is_causal=True", "itself and what lies before", Axis(LENGTH, LENGTH, 5, 1, 1, True)),
    ("kernel_size=6, stride=3, causal", "grouped, and nothing from the future", Axis(LENGTH, LENGTH, 6, 3, 1, True)),
)


def seen_by(axis: Axis, query: int) -> set[int]:
    """The key tokens that ``query`` attends to."""
    group = query % axis.dilation
    length = group_length(axis.keys, group, axis.dilation)
    start, end = window(query // axis.dilation, length, axis.window, axis.stride, axis.causal)
    return {position * axis.dilation + group for position in range(start, end)}


def panel(title: str, caption: str, axis: Axis, left: int, top: int) -> list[str]:
    """One mask with its title: a row per query, a column per key."""
    drawn = [
        f'<text x="{left}" y="{top - 24}" class="title">{title}</text>',
        f'<text x="{left}" y="{top - 9}" class="caption">{caption}</text>',
    ]
    for query in range(axis.queries):
        seen = seen_by(axis, query)
        for key in range(axis.keys):
            color = (OWN if key == query else SEEN) if key in seen else EMPTY
            x, y = left + key * CELL, top + query * CELL
            outline = f' stroke="{OWN}" stroke-width="1.5"' if key == query else ""
            drawn.append(
                f'<rect x="{x}" y="{y}" width="{CELL - 2}" height="{CELL - 2}" rx="2" fill="{color}"{outline}/>'
            )
    return drawn


def picture() -> str:
    """The whole SVG: two rows of three panels and a legend."""
    step_x, step_y = LENGTH * CELL + GAP, LENGTH * CELL + TOP + 14
    width, height = 3 * step_x - GAP + 40, 2 * step_y + 44
    body = []
    for index, (title, caption, axis) in enumerate(PANELS):
        body += panel(title, caption, axis, 20 + index % 3 * step_x, TOP + index // 3 * step_y)
    legend = "rows: queries; columns: keys; dark: the query's own position; light blue: the keys it attends to"
    return framed(body, legend, width, height)


def framed(body: list[str], legend: str, width: int, height: int) -> str:
    """An SVG with what is drawn, and a legend below it."""
    style = (
        f".title{{font:600 13px ui-monospace,Menlo,monospace;fill:{INK}}}"
        ".caption{font:12px -apple-system,Helvetica,Arial,sans-serif;fill:#57606a}"
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
    below = f'<text x="20" y="{height - 14}" class="caption">{legend}</text>'
    white = '<rect width="100%" height="100%" fill="white"/>'
    return "\n".join([head, f"<style>{style}</style>", white, *body, below, "</svg>"])


# --- windows in a picture ----------------------------------------------------------------------------------------

SIDE, HIDDEN = 12, "#f3d3c6"
KEY_MASK = torch.tensor([[(x - 3) ** 2 + (y - 9) ** 2 >= 5 for y in range(SIDE)] for x in range(SIDE)])
WINDOWS: tuple[tuple[str, str, tuple[int, int], dict[str, Any]], ...] = (
    ("kernel_size=5", "the query is in the middle", (6, 6), {}),
    ("kernel_size=5", "at a border: as many keys", (0, 10), {}),
    ("kernel_size=(3, 9)", "a size for each axis", (6, 6), {"kernel_size": (3, 9)}),
    ("dilation=2", "every other token", (6, 6), {"dilation": 2}),
    ("is_causal=(True, False)", "rows above, and its own", (6, 6), {"is_causal": (True, False)}),
    ("wrap=(False, True)", "over the end of an axis", (6, 11), {"wrap": (False, True)}),
    ("key_mask", "hidden keys are left out", (4, 7), {"key_mask": KEY_MASK[None]}),
    ("a finer grid", "2 x 2 queries for each key", (13, 12), {}),
)


def attended(query: tuple[int, int], options: dict[str, Any], finer: int) -> torch.Tensor:
    """``[SIDE, SIDE]`` bool: the values that the output of a query depends on."""
    query_shape = (1, SIDE * finer, SIDE * finer, 1, 1)
    value = torch.zeros(1, SIDE, SIDE, 1, 1, requires_grad=True)
    out = natten_mps.na2d(torch.zeros(query_shape), value.detach(), value, **{"kernel_size": 5, **options})
    return torch.autograd.grad(out[0, query[0], query[1]].sum(), value)[0][0, :, :, 0, 0] != 0


def grid(title: str, caption: str, query: tuple[int, int], options: dict[str, Any], left: int, top: int) -> list[str]:
    """The tokens of a picture: those that one query attends to, and the query."""
    finer = 2 if title == "a finer grid" else 1
    drawn = [
        f'<text x="{left}" y="{top - 24}" class="title">{title}</text>',
        f'<text x="{left}" y="{top - 9}" class="caption">{caption}</text>',
    ]
    seen = attended(query, options, finer)
    for x in range(SIDE):
        for y in range(SIDE):
            color = SEEN if seen[x, y] else EMPTY
            if "key_mask" in options and not KEY_MASK[x, y]:
                color = HIDDEN
            place = f'x="{left + y * CELL}" y="{top + x * CELL}"'
            drawn.append(f'<rect {place} width="{CELL - 2}" height="{CELL - 2}" rx="2" fill="{color}"/>')
    size = CELL // finer
    place = f'x="{left + query[1] * CELL / finer}" y="{top + query[0] * CELL / finer}"'
    drawn.append(f'<rect {place} width="{size - 2 / finer}" height="{size - 2 / finer}" rx="1" fill="{OWN}"/>')
    return drawn


def windows() -> str:
    """The SVG of docs/windows.svg: two rows of four pictures."""
    step_x, step_y = SIDE * CELL + 44, SIDE * CELL + TOP + 14
    body = []
    for index, (title, caption, query, options) in enumerate(WINDOWS):
        body += grid(title, caption, query, options, 20 + index % 4 * step_x, TOP + index // 4 * step_y)
    legend = "a picture of 12 x 12 tokens; dark: a query; light blue: the keys it attends to; red: hidden keys"
    return framed(body, legend, 4 * step_x - 4, 2 * step_y + 44)


def main() -> None:
    docs = Path(__file__).parents[1] / "docs"
    for name, drawn in (("semantics.svg", picture()), ("windows.svg", windows())):
        (docs / name).write_text(drawn + "\n")
        print(f"wrote {docs / name}")


if __name__ == "__main__":
    main()
