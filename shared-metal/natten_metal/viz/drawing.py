"""Squares, lines and words, before they are a file: one drawing becomes an SVG, or a PNG by matplotlib."""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape

# Colors by what they mean, light and dark; the pairs that a picture has to tell apart differ in lightness too, and none
# of them is red beside green.
PALETTE: Mapping[str, Mapping[str, str]] = {
    "light": {
        "page": "#fbfbf9",
        "panel": "#ffffff",
        "line": "#d5d9df",
        "ink": "#24292f",
        "muted": "#57606a",
        "accent": "#0b5cad",
        "empty": "#e9ecf0",
        "group": "#aab3bf",
        "seen": "#3d8fd1",
        "faint": "#a9cdec",
        "query": "#d55e00",
        "full": "#7fd0b5",
        "masked": "#f4d06f",
        "hatch": "#9a7400",
        "hidden": "#cc79a7",
        "wrong": "#b00020",
        "wrong-page": "#fdecee",
    },
    "dark": {
        "page": "#14161a",
        "panel": "#1d2026",
        "line": "#3a404a",
        "ink": "#eceef2",
        "muted": "#a3acb8",
        "accent": "#7cb8f2",
        "empty": "#2b3038",
        "group": "#59626f",
        "seen": "#56b4e9",
        "faint": "#2d5c7a",
        "query": "#ff8a3c",
        "full": "#1f7a60",
        "masked": "#8a6a10",
        "hatch": "#f4d06f",
        "hidden": "#b05f8c",
        "wrong": "#ff8f9c",
        "wrong-page": "#3a1d22",
    },
}
INK = PALETTE["light"]
MONOSPACE, SANS = "ui-monospace,Menlo,monospace", "-apple-system,Helvetica,Arial,sans-serif"
# Kinds of words: size in pixels, weight, whether monospace, color.
WORDS = {
    "title": (13, 700, True, INK["ink"]),
    "caption": (12, 400, False, INK["muted"]),
    "label": (10, 400, False, INK["muted"]),
    "number": (12, 700, False, INK["ink"]),
}


@dataclass(frozen=True, slots=True)
class Square:
    """A filled rectangle, perhaps with an outline inside of it; fill "" for none."""

    x: float
    y: float
    width: float
    height: float
    fill: str = ""
    outline: str = ""
    thick: float = 0
    round: float = 0


@dataclass(frozen=True, slots=True)
class Line:
    x: float
    y: float
    to_x: float
    to_y: float
    color: str
    thick: float = 1


@dataclass(frozen=True, slots=True)
class Words:
    """A line of text on the base line ``y``; kind: one of :data:`WORDS`; anchor: start, middle or end."""

    x: float
    y: float
    text: str
    kind: str
    anchor: str = "start"


@dataclass(slots=True)
class Drawing:
    """Shapes in the order in which they are painted, on white; sizes in pixels."""

    width: float
    height: float
    shapes: list[Square | Line | Words] = field(default_factory=list)


def svg(drawing: Drawing) -> str:
    """The drawing as the text of an SVG file."""
    styles = "".join(
        f".{kind}{{font:{weight} {size}px {MONOSPACE if mono else SANS};fill:{color}}}"
        for kind, (size, weight, mono, color) in WORDS.items()
    )
    size = f'width="{drawing.width:g}" height="{drawing.height:g}" viewBox="0 0 {drawing.width:g} {drawing.height:g}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size}>'
    white = '<rect width="100%" height="100%" fill="white"/>'
    return "\n".join([head, f"<style>{styles}</style>", white, *map(_element, drawing.shapes), "</svg>\n"])


def _element(shape: Square | Line | Words) -> str:
    match shape:
        case Words(x, y, text, kind, anchor):
            ends = "" if anchor == "start" else f' text-anchor="{anchor}"'
            return f'<text x="{x:g}" y="{y:g}" class="{kind}"{ends}>{escape(text, quote=False)}</text>'
        case Line(x, y, to_x, to_y, color, thick):
            ends = f'x1="{x:g}" y1="{y:g}" x2="{to_x:g}" y2="{to_y:g}"'
            return f'<line {ends} stroke="{color}" stroke-width="{thick:g}"/>'
        case Square(x, y, width, height, fill, outline, thick, corner):
            inset = thick / 2
            place = f'x="{x + inset:g}" y="{y + inset:g}" width="{width - thick:g}" height="{height - thick:g}"'
            rounded = f' rx="{corner:g}"' if corner else ""
            edge = f' stroke="{outline}" stroke-width="{thick:g}"' if outline else ""
            return f'<rect {place}{rounded} fill="{fill or "none"}"{edge}/>'


def png(drawing: Drawing, scale: int = 2) -> bytes:
    """The drawing as a PNG file of ``scale`` pixels for each of its own, words above all else; needs matplotlib."""
    from matplotlib.collections import PolyCollection
    from matplotlib.figure import Figure

    inch = 72  # a pixel of the drawing is a point, so that sizes of text and lines are the same
    figure = Figure(figsize=(drawing.width / inch, drawing.height / inch), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, drawing.width), ylim=(drawing.height, 0))
    axes.axis("off")
    anchors = {"start": "left", "middle": "center", "end": "right"}
    outlines: list[tuple[list[tuple[float, float]], str, str, float]] = []
    for shape in drawing.shapes:
        match shape:
            case Words(x, y, text, kind, anchor):
                size, weight, mono, color = WORDS[kind]
                words = axes.text(x, y, text, ha=anchors[anchor], va="baseline", color=color, parse_math=False)
                words.set(fontsize=size, fontweight=weight, family="monospace" if mono else "sans-serif")
            case Line(x, y, to_x, to_y, color, thick):
                outlines.append(([(x, y), (to_x, to_y)], "none", color, thick))
            case Square():
                outlines.append((_corners(shape), shape.fill or "none", shape.outline or "none", shape.thick))
    # All at once: an object for each square would take minutes for a large picture.
    points, fills, edges, widths = zip(*outlines, strict=True)
    axes.add_collection(PolyCollection(points, facecolors=fills, edgecolors=edges, linewidths=widths))
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=inch * scale)
    return file.getvalue()


def _corners(square: Square) -> list[tuple[float, float]]:
    """The outline of a square: eight points, a rounded corner is cut off."""
    inset, cut = square.thick / 2, square.round / 2
    left, top = square.x + inset, square.y + inset
    right, bottom = square.x + square.width - inset, square.y + square.height - inset
    return [
        *((left + cut, top), (right - cut, top), (right, top + cut), (right, bottom - cut)),
        *((right - cut, bottom), (left + cut, bottom), (left, bottom - cut), (left, top + cut)),
    ]
