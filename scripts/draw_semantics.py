"""Draw docs/semantics.svg: which keys each query attends to, for the arguments that shape a window.

    python scripts/draw_semantics.py [--out docs/semantics.svg]

Every cell comes from the package's own mask, so the picture cannot disagree with the code.
"""

import argparse
from pathlib import Path

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
    legend = "rows: queries   columns: keys   dark: the query's own position   light blue: the keys it attends to"
    body.append(f'<text x="20" y="{height - 14}" class="caption">{legend}</text>')
    style = (
        f".title{{font:600 13px ui-monospace,Menlo,monospace;fill:{INK}}}"
        ".caption{font:12px -apple-system,Helvetica,Arial,sans-serif;fill:#57606a}"
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
    return "\n".join(
        [head, f"<style>{style}</style>", '<rect width="100%" height="100%" fill="white"/>', *body, "</svg>"]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "semantics.svg")
    out = parser.parse_args().out
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(picture() + "\n")
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
