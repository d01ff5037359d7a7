"""Upsample a coarse map along the edges of a fine picture: queries on a finer grid than the keys.

    python examples/upsample_torch.py

A coarse map of labels (16 x 16) belongs to a fine picture (128 x 128). Each fine pixel is a query and sees the window
of the coarse cell it lies in; it takes the labels of the cells that have its color. That is joint upsampling, as in
feature upsamplers for vision models, here without anything learned.
"""

import argparse

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from natten_mps import na2d

COARSE, TIMES, SCALE = 16, 8, 2
SHARPNESS = 60.0


def scene() -> tuple[torch.Tensor, torch.Tensor]:
    """A picture ``[1, 128, 128, 3]`` of discs on a ground, with some noise, and the label of each pixel."""
    side = COARSE * TIMES
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    labels = torch.zeros(side, side, dtype=torch.long)
    for label, (row, column, radius) in enumerate(((40, 38, 27), (86, 84, 34), (34, 98, 19)), 1):
        labels[(y - row) ** 2 + (x - column) ** 2 < radius**2] = label
    palette = torch.tensor([[0.2, 0.25, 0.3], [0.9, 0.5, 0.2], [0.3, 0.7, 0.5], [0.85, 0.8, 0.4]])
    torch.manual_seed(0)
    return (palette[labels] + 0.03 * torch.randn(side, side, 3))[None], labels


def coarse(fine: torch.Tensor) -> torch.Tensor:
    """``[1, 128, 128, C]`` -> ``[1, 16, 16, C]``: the mean of each cell."""
    return functional.avg_pool2d(fine.movedim(-1, 1), TIMES).movedim(1, -1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="upsample.png")
    out = parser.parse_args().out
    picture, labels = scene()
    known = coarse(functional.one_hot(labels, 4).float()[None])  # [1, 16, 16, 4]

    # 2 q.k - |k|^2 is minus the squared distance of both colors, but for a term that a softmax drops.
    colors = coarse(picture)
    key = torch.cat([colors, (colors**2).sum(-1, keepdim=True)], -1)
    query = torch.cat([2 * picture, -torch.ones_like(picture[..., :1])], -1)
    soft = na2d(query[..., None, :], key[..., None, :], known[..., None, :], kernel_size=5, scale=SHARPNESS)[..., 0, :]

    nearest = known.argmax(-1).repeat_interleave(TIMES, 1).repeat_interleave(TIMES, 2)[0]
    found = soft.argmax(-1)[0]
    wrong = [(each != labels).float().mean() for each in (nearest, found)]
    print(f"wrong pixels: {wrong[0]:.1%} nearest, {wrong[1]:.1%} attended")

    shades = torch.tensor([[0.15, 0.15, 0.2], [0.95, 0.55, 0.25], [0.3, 0.75, 0.55], [0.95, 0.9, 0.45]])
    panels = [picture[0].clamp(0, 1), shades[nearest], shades[found], shades[labels]]
    drawn = [
        np.pad((255 * panel.numpy()).repeat(SCALE, 0).repeat(SCALE, 1), ((6, 6), (6, 6), (0, 0)), constant_values=255)
        for panel in panels
    ]
    Image.fromarray(np.concatenate(drawn, 1).astype(np.uint8)).save(out)


if __name__ == "__main__":
    main()
