"""The picture that the demo writes: images side by side, and one attention window enlarged.

    header
    [ image ]            [ image ]            [ image ]           the window drawn to scale around a pixel
    [ window ] caption   [ window ] caption   [ window ] caption  the same window enlarged

The window's outline lies around its pixels and hides none of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..problem.window import window as window_of

if TYPE_CHECKING:
    from PIL import Image

    from .denoise import Array

BACKGROUND = (250, 250, 247)
INK = (28, 30, 36)
FAINT = (110, 114, 124)
ACCENT = (255, 0, 144)

MARGIN = 32
GAP = 28
HEADER = 46
# A panel is at least this wide, so that the enlarged window and its caption fit side by side.
CELL = 460
INSET = 231
STROKE = 3


@dataclass(frozen=True, slots=True)
class Panel:
    """One image ``[height, width, 3]`` in [0, 1], its title, and lines of small print under the title."""

    image: "Array"
    title: str
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """Positions in the picture, in its pixels.

    size: of the picture. scale: picture pixels per image pixel. zoom: the same in the enlarged window. images, insets:
    top left corners, one for each panel.
    """

    size: tuple[int, int]
    scale: int
    zoom: int
    images: tuple[tuple[int, int], ...]
    insets: tuple[tuple[int, int], ...]


def layout(width: int, height: int, window: int, panels: int) -> Layout:
    """Lay out ``panels`` images of ``width`` x ``height`` pixels and their enlarged windows."""
    scale = max(1, round(CELL / width))
    zoom = max(1, round(INSET / window))
    cell = max(width * scale, CELL, window * zoom + INSET)
    top = MARGIN + HEADER
    below = top + height * scale + GAP
    lefts = [MARGIN + index * (cell + GAP) for index in range(panels)]
    return Layout(
        size=(2 * MARGIN + panels * cell + (panels - 1) * GAP, below + window * zoom + MARGIN),
        scale=scale,
        zoom=zoom,
        images=tuple((left, top) for left in lefts),
        insets=tuple((left, below) for left in lefts),
    )


def window_box(pixel: tuple[int, int], shape: Sequence[int], window: int) -> tuple[int, int, int, int]:
    """``(left, top, right, bottom)``, ends excluded, of the window of ``pixel`` (row, column)."""
    top, bottom = window_of(pixel[0], shape[0], window, 1, False)
    left, right = window_of(pixel[1], shape[1], window, 1, False)
    return left, top, right, bottom


def busiest_pixel(image: "Array", window: int) -> tuple[int, int]:
    """(row, column) of the pixel whose window has the largest contrast (standard deviation of the grey level).

    Only pixels whose windows are adjacent or overlap by half are compared.
    """
    import numpy as np

    grey = image.mean(-1)
    windows = np.lib.stride_tricks.sliding_window_view(grey, (window, window))
    step = max(1, window // 2)
    contrast = windows[::step, ::step].std((-2, -1))
    row, column = np.unravel_index(int(contrast.argmax()), contrast.shape)
    return int(row) * step + window // 2, int(column) * step + window // 2


def _pillow(image: "Array") -> "Image.Image":
    import numpy as np
    from PIL import Image

    return Image.fromarray(np.rint(image.clip(0, 1) * 255).astype(np.uint8), "RGB")


def _frame(draw: Any, left: int, top: int, right: int, bottom: int, stroke: int) -> None:
    """Outline around the box (ends excluded), just outside of it, so that it covers none of its pixels."""
    draw.rectangle((left - stroke, top - stroke, right + stroke - 1, bottom + stroke - 1), outline=ACCENT, width=stroke)


def draw_picture(header: str, panels: Sequence[Panel], pixel: tuple[int, int], window: int) -> "Image.Image":
    """The panels side by side, with the ``window`` of ``pixel`` (row, column) drawn on each and enlarged."""
    from PIL import Image, ImageDraw, ImageFont

    height, width, _ = panels[0].image.shape
    placed = layout(width, height, window, len(panels))
    left, top, right, bottom = window_box(pixel, (height, width), window)
    picture = Image.new("RGB", placed.size, BACKGROUND)
    draw = ImageDraw.Draw(picture)
    large, small = ImageFont.load_default(26), ImageFont.load_default(17)
    draw.text((MARGIN, MARGIN - 6), header, INK, large)
    for panel, (x, y), (inset_x, inset_y) in zip(panels, placed.images, placed.insets, strict=True):
        whole = _pillow(panel.image)
        scale, zoom = placed.scale, placed.zoom
        picture.paste(whole.resize((width * scale, height * scale), Image.Resampling.NEAREST), (x, y))
        _frame(draw, x + left * scale, y + top * scale, x + right * scale, y + bottom * scale, STROKE)

        side = window * zoom
        part = whole.crop((left, top, right, bottom)).resize((side, side), Image.Resampling.NEAREST)
        picture.paste(part, (inset_x, inset_y))
        _frame(draw, inset_x, inset_y, inset_x + side, inset_y + side, STROKE)
        mark_x, mark_y = inset_x + (pixel[1] - left) * zoom, inset_y + (pixel[0] - top) * zoom
        _frame(draw, mark_x, mark_y, mark_x + zoom, mark_y + zoom, 2)

        text_x = inset_x + side + 20
        draw.text((text_x, inset_y - 6), panel.title, INK, large)
        for index, line in enumerate(panel.lines):
            draw.text((text_x, inset_y + 36 + 25 * index), line, FAINT, small)
    return picture
