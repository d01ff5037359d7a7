"""Draw what queries attend to, and what kernels read: the pictures of docs/semantics.md and docs/viz.md.

    python scripts/draw_semantics.py

semantics.svg: masks of one axis. windows.svg: windows in a picture, from gradients of calls. bricks.svg: what a patch
and a tile of the Metal kernels read. Every cell comes from the package itself, so the pictures cannot disagree with the
code.
"""

from pathlib import Path
from typing import Any

import torch

import natten_mps
from natten_mps._metal.problem.problem import Axis
from natten_mps._metal.viz import words
from natten_mps._metal.viz.axes import ShownAxis, shown
from natten_mps._metal.viz.drawing import INK, Drawing, Square, Words, svg
from natten_mps._metal.viz.pictures import CELL, MARGIN, Sight, Token, grid, mask, tokens

DOCS = Path(__file__).parents[1] / "docs"
TOP, LENGTH = 58, 16
PANELS = (
    ("kernel_size=5", "shifted at borders, never shrunk", Axis(LENGTH, LENGTH, 5, 1, 1, False)),
    ("kernel_size=4", "even: two to the left, one to the right", Axis(LENGTH, LENGTH, 4, 1, 1, False)),
    ("kernel_size=5, stride=4", "four queries share the leader's window", Axis(LENGTH, LENGTH, 5, 4, 1, False)),
    ("kernel_size=4, dilation=3", "every third token is a neighbor", Axis(LENGTH, LENGTH, 4, 1, 3, False)),
    ("kernel_size=5, is_causal=True", "itself and what lies before", Axis(LENGTH, LENGTH, 5, 1, 1, True)),
    ("kernel_size=6, stride=3, causal", "grouped, and nothing from the future", Axis(LENGTH, LENGTH, 6, 3, 1, True)),
)


def masks() -> Drawing:
    """Two rows of three masks."""
    step_x, step_y = LENGTH * CELL + 72, LENGTH * CELL + TOP + 14
    drawing = Drawing(3 * step_x - 72 + 2 * MARGIN, 2 * step_y + 44)
    for index, (title, caption, axis) in enumerate(PANELS):
        place = MARGIN + index % 3 * step_x, TOP + index // 3 * step_y
        drawing.shapes += mask(title, caption, ShownAxis(axis), place)
    legend = "rows: queries; columns: keys; orange: the query's own position; blue: the keys that it attends to"
    drawing.shapes.append(Words(MARGIN, drawing.height - 14, legend, "caption"))
    return drawing


# --- windows in a picture ----------------------------------------------------------------------------------------

SIDE = 12
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


def windows() -> Drawing:
    """Two rows of four pictures."""
    step_x, step_y = SIDE * CELL + 44, SIDE * CELL + TOP + 14
    drawing = Drawing(4 * step_x - 4, 2 * step_y + 44)
    for index, (title, caption, query, options) in enumerate(WINDOWS):
        finer = 2 if title == "a finer grid" else 1
        seen = attended(query, options, finer)
        hidden = ~options.get("key_mask", torch.ones(1, SIDE, SIDE, dtype=torch.bool))[0]

        def token(row: int, column: int, seen: Any = seen, hidden: Any = hidden) -> Token:
            return Token(bool(seen[row, column]), hidden=bool(hidden[row, column]))

        left, top = MARGIN + index % 4 * step_x, TOP + index // 4 * step_y
        drawing.shapes += grid(title, caption, range(SIDE), range(SIDE), token, (left, top), numbered=False)
        side = (CELL - 2) / finer
        place = left + query[1] * CELL / finer, top + query[0] * CELL / finer
        drawing.shapes.append(Square(*place, side, side, INK["query"], round=2 / finer))
    legend = "a picture of 12 x 12 tokens; orange: a query; blue: the keys that it attends to; pink: hidden keys"
    drawing.shapes.append(Words(MARGIN, drawing.height - 14, legend, "caption"))
    return drawing


def bricks() -> Drawing:
    """What a patch and a tile read: `viz --view work` of one problem, with a given patch."""
    problem = shown((20, 40), kernel_size=(7, 17), wrap=(False, False))
    sight = Sight(problem, (10, 20), patch=(1, 8), tile=(1, 40))
    return tokens(sight, [words.call(problem)], [*words.about(sight), *words.about_kernels(sight)])


def main() -> None:
    for name, drawing in (("semantics.svg", masks()), ("windows.svg", windows()), ("bricks.svg", bricks())):
        (DOCS / name).write_text(svg(drawing))
        print(f"wrote {DOCS / name}")


if __name__ == "__main__":
    main()
