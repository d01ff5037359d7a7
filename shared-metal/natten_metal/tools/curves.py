"""The picture of loss curves: steps on the x axis, the loss on a logarithmic y axis.

Curves that agree overlap, so the first is drawn wide and pale and the next thin on top of it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .picture import ACCENT, BACKGROUND, FAINT, HEADER, INK, MARGIN

if TYPE_CHECKING:
    from PIL import Image

GRID = (226, 226, 220)
# Colour and width of each curve.
STYLES = (((120, 190, 255), 9), (ACCENT, 3))
SIZE = (1100, 620)
LEGEND = 34
# Space for the numbers to the left of the plot and below it.
LEFT, BELOW = 66, 44
# A loss of 0 has no logarithm.
LEAST = 1e-8


@dataclass(frozen=True, slots=True)
class Curve:
    """A label and the loss of every step, finite and not negative."""

    label: str
    losses: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Axes:
    """The position and range of the plot.

    box: left, top, right, bottom in pixels. steps: of the longest curve. low, high: powers of ten.
    """

    box: tuple[int, int, int, int]
    steps: int
    low: int
    high: int

    def point(self, step: int, loss: float) -> tuple[int, int]:
        """The pixel (x, y) of the loss of a step; steps count from 1."""
        left, top, right, bottom = self.box
        across = (step - 1) / max(self.steps - 1, 1)
        up = (math.log10(max(loss, LEAST)) - self.low) / (self.high - self.low)
        return round(left + across * (right - left)), round(bottom - up * (bottom - top))


def axes(curves: Sequence[Curve]) -> Axes:
    """Whole decades around all losses, all steps."""
    losses = [max(loss, LEAST) for curve in curves for loss in curve.losses]
    low = math.floor(math.log10(min(losses)))
    high = max(math.ceil(math.log10(max(losses))), low + 1)
    top = MARGIN + HEADER + LEGEND * len(curves)
    box = (MARGIN + LEFT, top, SIZE[0] - MARGIN, SIZE[1] - MARGIN - BELOW)
    return Axes(box, max(len(curve.losses) for curve in curves), low, high)


def _draw_axes(draw: Any, plot: Axes, font: Any) -> None:
    """A line at every power of ten, and at about every eighth of the steps."""
    left, top, right, bottom = plot.box
    for power in range(plot.low, plot.high + 1):
        y = plot.point(1, 10.0**power)[1]
        draw.line((left, y, right, y), GRID, 1)
        draw.text((left - 12, y), f"{10.0**power:g}", FAINT, font, anchor="rm")
    unit = 10 ** (len(str(plot.steps // 8)) - 1)
    apart = max(1, round(plot.steps / 8 / unit)) * unit
    for step in sorted({1, *range(apart, plot.steps + 1, apart)}):
        x = plot.point(step, 1.0)[0]
        draw.line((x, top, x, bottom), GRID, 1)
        draw.text((x, bottom + 10), f"{step}", FAINT, font, anchor="mt")


def draw_curves(header: str, curves: Sequence[Curve]) -> "Image.Image":
    """One or two loss curves under a header, each with its label."""
    from PIL import Image, ImageDraw, ImageFont

    plot = axes(curves)
    picture = Image.new("RGB", SIZE, BACKGROUND)
    draw = ImageDraw.Draw(picture)
    large, small = ImageFont.load_default(26), ImageFont.load_default(17)
    draw.text((MARGIN, MARGIN - 6), header, INK, large)
    _draw_axes(draw, plot, small)
    for index, (curve, (colour, width)) in enumerate(zip(curves, STYLES[: len(curves)], strict=True)):
        points = [plot.point(step, loss) for step, loss in enumerate(curve.losses, 1)]
        draw.line(points, colour, width, joint="curve")
        y = MARGIN + HEADER + LEGEND * index
        draw.line((MARGIN, y, MARGIN + 48, y), colour, width)
        draw.text((MARGIN + 62, y), curve.label, INK, small, anchor="lm")
    return picture
