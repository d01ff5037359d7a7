"""The classifier of digits, over either framework's layers, which torch and MLX call alike."""

from collections.abc import Callable
from typing import Any

from . import train

Tensor = Any


def classifier(
    nn: Any,
    attention: Callable[[int, int, int], Any],
    silu: Callable[[Tensor], Tensor],
    position: Tensor,
    sequence: Callable[[list[Any]], Any],
    method: str,
) -> Any:
    """A model of patches ``[B, 4, 4, 9]`` -> logits ``[B, 10]``; :mod:`.train` says how.

    nn: the framework's module of layers. position: a parameter ``[4, 4, WIDTH]``. sequence: the container in which a
    module keeps a list of modules. method: the framework's name for a module's forward method.
    """

    class Block(nn.Module):
        """Neighborhood attention and a perceptron, each after a norm and around a residual connection."""

        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(train.WIDTH), nn.LayerNorm(train.WIDTH)
            self.attention = attention(train.WIDTH, train.HEADS, train.WINDOW)
            self.expand, self.contract = nn.Linear(train.WIDTH, train.HIDDEN), nn.Linear(train.HIDDEN, train.WIDTH)

        def compute(self, x: Tensor) -> Tensor:
            """``[B, 4, 4, C]`` -> the same."""
            x = x + self.attention(self.norm1(x))
            return x + self.contract(silu(self.expand(self.norm2(x))))

    class Classifier(nn.Module):
        """The model."""

        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(train.PATCH**2, train.WIDTH)
            self.position = position
            self.blocks = sequence([Block() for _ in range(train.BLOCKS)])
            self.norm = nn.LayerNorm(train.WIDTH)
            self.head = nn.Linear(train.GRID**2 * train.WIDTH, train.CLASSES)

        def compute(self, patches: Tensor) -> Tensor:
            x = self.embed(patches) + self.position
            for block in self.blocks:
                x = block(x)
            return self.head(self.norm(x).flatten(1))

    for each in (Block, Classifier):
        setattr(each, method, each.compute)
    return Classifier()
