"""The problems that the benchmarks share, as plain data."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Timed:
    """One neighborhood attention problem to time: float32, by default batch 1 and 4 heads."""

    shape: tuple[int, ...]
    window: int
    dim: int = 32
    dilation: int = 1
    causal: bool = False
    heads: int = 4
    batch: int = 1

    @property
    def name(self) -> str:
        """A row's label: rank, shape, window and what is special."""
        parts = [f"{len(self.shape)}-D {'x'.join(map(str, self.shape))}", f"K{self.window}", f"D{self.dim}"]
        parts += [f"dilation {self.dilation}"] if self.dilation > 1 else []
        return " ".join(parts + (["causal"] if self.causal else []))


# Small and large windows of every rank, at sizes where dense attention with a mask is the natural alternative.
CPU_TABLE = (
    Timed((256,), 7),
    Timed((1024,), 7),
    Timed((4096,), 127, dim=64),
    Timed((32, 32), 7),
    Timed((32, 32), 7, causal=True),
    Timed((64, 64), 7),
    Timed((56, 56), 7, dilation=4),
    Timed((64, 64), 13, dim=64),
    Timed((16, 16, 16), 3),
    Timed((16, 16, 16), 5),
)
