"""The classifier of digits in either framework: mixins beside the framework's own ``Module`` class.

nn: the framework's module of layers, which torch and MLX call alike.
"""

from collections.abc import Callable
from typing import Any

from .train import CLASSES, GRID, HEADS, HIDDEN, PATCH, WIDTH, WINDOW

Tensor = Any


class Block:
    """Neighborhood attention and a perceptron, each after a norm and around a residual connection."""

    def _build(self, nn: Any, attention: Callable[[int, int, int], Any]) -> None:
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = attention(WIDTH, HEADS, WINDOW)
        self.expand, self.contract = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)

    def _compute(self, x: Tensor, silu: Callable[[Tensor], Tensor]) -> Tensor:
        """``[B, 4, 4, C]`` -> the same."""
        x = x + self.attention(self.norm1(x))
        return x + self.contract(silu(self.expand(self.norm2(x))))


class Classifier:
    """Patches ``[B, 4, 4, 9]`` -> logits ``[B, 10]``; :mod:`.train` says how."""

    def _build(self, nn: Any, position: Tensor, blocks: Any) -> None:
        self.embed = nn.Linear(PATCH**2, WIDTH)
        self.position, self.blocks = position, blocks
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(GRID**2 * WIDTH, CLASSES)

    def _compute(self, patches: Tensor) -> Tensor:
        x = self.embed(patches) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).flatten(1))
