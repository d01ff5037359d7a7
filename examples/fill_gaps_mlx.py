"""Fill the gaps of a field on a globe: windows wrap around in longitude, keys are masked where data is missing.

    python examples/fill_gaps_mlx.py

More than a quarter of a smooth field is missing (satellites leave such gaps). Every missing point takes the mean of the
points in its window that are known, nearer ones counting more: attention whose logits are minus half the squared
distance, as a relative positional bias. What a masked key holds, NaN here, reaches no result.
"""

import argparse

import mlx.core as mx
import numpy as np
from PIL import Image

from natten_mlx import na2d

LATITUDES, LONGITUDES, WINDOW, SCALE = 60, 120, 9, 4


def field() -> np.ndarray:
    """``[LATITUDES, LONGITUDES]``, periodic in longitude."""
    y, x = np.mgrid[:LATITUDES, :LONGITUDES] * 2 * np.pi / LONGITUDES
    return np.sin(2 * y) + 0.5 * np.cos(3 * x + 2 * y) + 0.3 * np.sin(5 * x)


def gaps() -> np.ndarray:
    """Where the field is known: swaths are missing, and round spots, one of them across the date line."""
    y, x = np.mgrid[:LATITUDES, :LONGITUDES]
    known = (x + y // 2) % 20 >= 5
    for row, column, radius in ((15, 0, 6), (40, 60, 7), (30, 90, 5)):
        away = (x - column + LONGITUDES // 2) % LONGITUDES - LONGITUDES // 2
        known &= (y - row) ** 2 + away**2 > radius**2
    return known


def fill(values: mx.array, known: mx.array) -> tuple[mx.array, mx.array]:
    """One pass: each missing point that sees a known one is filled. Returns the values, and what is known now."""
    offsets = mx.arange(1 - WINDOW, WINDOW)
    rpb = -0.5 * (offsets[:, None] ** 2 + offsets[None] ** 2).astype(mx.float32)[None]
    nothing = mx.zeros((1, LATITUDES, LONGITUDES, 1, 1))  # queries and keys: only the bias decides
    mean, lse = na2d(
        nothing,
        nothing,
        values[None, :, :, None, None],
        kernel_size=WINDOW,
        wrap=(False, True),
        rpb=rpb,
        key_mask=known[None],
        return_lse=True,
    )
    seen = known | (lse[0, :, :, 0] > -mx.inf)
    return mx.where(known, values, mx.where(seen, mean[0, :, :, 0, 0], mx.nan)), seen


def colors(values: np.ndarray) -> np.ndarray:
    """Blue for low, red for high, white for missing."""
    share = np.clip(np.nan_to_num(values) / 1.8, -1, 1)[..., None]
    red, blue, middle = np.array([178, 24, 43]), np.array([33, 102, 172]), np.array([230, 230, 220])
    mixed = middle + np.abs(share) * (np.where(share > 0, red, blue) - middle)
    return np.where(np.isnan(values)[..., None], 255, mixed).repeat(SCALE, 0).repeat(SCALE, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="fill_gaps.png")
    out = parser.parse_args().out
    truth, holds = field(), gaps()
    given = np.where(holds, truth, np.nan).astype(np.float32)
    values, known, passes = mx.array(given), mx.array(holds), 0
    while not known.all().item():
        values, known = fill(values, known)
        passes += 1
    filled = np.array(values)
    error = np.sqrt(np.mean((filled - truth)[~holds] ** 2))
    mean = np.sqrt(np.mean((truth[holds].mean() - truth[~holds]) ** 2))
    print(f"{(~holds).mean():.0%} was missing; filled in {passes} passes")
    print(f"error {error:.3f}; of the mean of what is known: {mean:.3f}")
    panels = [np.pad(colors(each), ((6, 6), (6, 6), (0, 0)), constant_values=255) for each in (truth, given, filled)]
    Image.fromarray(np.concatenate(panels, 1).astype(np.uint8)).save(out)


if __name__ == "__main__":
    main()
