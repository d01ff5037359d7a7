"""How far a stack of layers sees: with dilation, four layers of 3 x 3 windows reach across a picture.

    python examples/receptive_field_torch.py

Draws the gradient of one output with respect to the input: which tokens it depends on, and how much. Three stacks of
four layers: windows of 3 x 3; of 9 x 9; of 3 x 3 with dilation 1, 2, 4 and 8 (DiNAT).
"""

import argparse

import numpy as np
import torch
from PIL import Image
from torch import nn

from natten_mps import NeighborhoodAttention2D

SIDE, WIDTH, SCALE = 48, 16, 6
STACKS = {"3 x 3": [(3, 1)] * 4, "9 x 9": [(9, 1)] * 4, "3 x 3, dilated": [(3, 1), (3, 2), (3, 4), (3, 8)]}


def influence(layers: list[tuple[int, int]], token: tuple[int, int]) -> np.ndarray:
    """``[SIDE, SIDE]``: the norm of the gradient of one output token with respect to each input token."""
    torch.manual_seed(0)
    stack = nn.Sequential(*[NeighborhoodAttention2D(WIDTH, 2, size, dilation=dilation) for size, dilation in layers])
    x = torch.randn(1, SIDE, SIDE, WIDTH, requires_grad=True)
    (gradient,) = torch.autograd.grad(stack(x)[0, token[0], token[1]].sum(), x)
    return gradient[0].norm(dim=-1).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="receptive_field.png")
    out = parser.parse_args().out
    token, panels = (24, 24), []
    for name, layers in STACKS.items():
        seen = influence(layers, token)
        rows, columns = np.nonzero(seen)
        reach = max(abs(rows - token[0]).max(), abs(columns - token[1]).max())
        keys = sum(size * size for size, _ in layers)
        print(f"{name}: sees {reach} tokens far, with {keys} keys a query")
        brightness = np.where(seen > 0, 0.25 + 0.75 * (seen / seen.max()) ** 0.25, 0.0)
        colors = brightness[..., None] * np.array([110, 170, 255])
        colors[token] = (255, 200, 60)
        panels.append(np.pad(colors.repeat(SCALE, 0).repeat(SCALE, 1), ((8, 8), (8, 8), (0, 0)), constant_values=255))
    Image.fromarray(np.concatenate(panels, 1).astype(np.uint8)).save(out)


if __name__ == "__main__":
    main()
