"""One launch of a kernel as pure data: its instantiation, grid, parameters, and the tensors that it reads and makes."""

import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ..problem.problem import Problem
from .params import COUNT, PARAMS
from .source import Instance

# Tensors that kernels read as contiguous ones (rpb in float32); all others may have any strides.
CONTIGUOUS = frozenset({"rpb", "out", "lse", "lse_grad"})

# Threads of a simdgroup.
SIMD_WIDTH = 32


class Output(NamedTuple):
    """A tensor that a launch makes: the kernel's argument, its name in the program, shape and dtype."""

    argument: str
    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class Launch:
    """One kernel launch. grid: threadgroups; threads: of one. inputs: (argument, tensor name) pairs.

    params holds everything but the strides; ``bricks`` and ``full`` are the launch's exact work (0 where it
    walks no bricks).
    """

    instance: Instance
    grid: tuple[int, int, int]
    threads: int
    params: tuple[int, ...]
    inputs: tuple[tuple[str, str], ...]
    outputs: tuple[Output, ...]
    bricks: int = 0
    full: int = 0

    @property
    def products(self) -> int:
        """Products of the launch, exactly: 8x8 multiply-accumulates of a simdgroup, or matmul2d."""
        return self.bricks * (self.instance.record.matmuls or self.instance.products)

    @property
    def simdgroups(self) -> int:
        """Simdgroups of a threadgroup."""
        return self.threads // SIMD_WIDTH

    @property
    def stride_params(self) -> dict[str, str]:
        """Argument -> the stride block it fills."""
        return self.instance.stride_params

    def __str__(self) -> str:
        """The launch in words, without its parameters."""
        grid = " x ".join(map(str, self.grid))
        return f"kernel {self.instance.name}: {grid} threadgroups of {self.threads} threads"


def bits_of(scale: float) -> int:
    """The scale as the kernels read it: float32 bits of scale * log2(e)."""
    return int(struct.unpack("<i", struct.pack("<f", scale * math.log2(math.e)))[0])


def strides_of(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Element strides of a contiguous tensor."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def stride_block(strides: tuple[int, ...], channels: bool) -> tuple[int, ...]:
    """Strides of ``[B, *shape, H(, D)]`` in the order of a stride block: batch, head, axes."""
    kept = strides[:-1] if channels else strides
    return (kept[0], kept[-1], *kept[1:-1])


def with_strides(launch: Launch, strides: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """The parameter array of a launch. strides: of the tensors by argument; those not named keep zeros."""
    params = list(launch.params)
    for argument, own in strides.items():
        block = launch.stride_params.get(argument)
        if block is None:
            continue
        if launch.instance.of_additional and argument in ("key_grad", "value_grad"):
            own = own[1:]  # parts are the outermost dimension
        values = stride_block(own, channels=argument != "lse")
        first, _ = PARAMS[block]
        params[first : first + len(values)] = values
    return tuple(params)


def fills_words(launch: Launch) -> bool:
    """Whether the channels of a token fill whole 16-byte words; a host must also know where its tokens start."""
    first, count = PARAMS["kDim"][0], 2
    dims = launch.params[first : first + count]
    padded = (launch.instance.dim, launch.instance.dim_v)
    return launch.instance.record.walks and all(p in (0, dim) for p, dim in zip(padded, dims, strict=True))


def parameters(problem: Problem, values: dict[str, int | Iterable[int]]) -> tuple[int, ...]:
    """The parameter array of a launch on ``problem``, strides left out; ``values`` override the problem's own."""
    p = problem
    params = [0] * COUNT
    fixed: dict[str, int | Iterable[int]] = {
        "kHeads": p.heads,
        "kGroupHeads": p.group_heads,
        "kDim": p.head_dim,
        "kDimV": p.head_dim_v,
        "kScaleBits": bits_of(p.scale),
        "kAdditional": p.additional,
        "kParts": 1,
        "kBatch": p.batch,
        "kQueryShape": p.query_shape,
        "kKeyShape": p.key_shape,
        "kFullShape": p.full_shape,
        "kQueryStart": p.query_start,
        "kKeyStart": p.key_start,
        "kWindow": p.kernel_size,
        "kStride": p.stride,
        "kDilation": p.dilation,
        "kCausal": [int(c) for c in p.is_causal],
        "kRowCount": p.batch * p.queries * p.heads,
    }
    for name, value in (fixed | values).items():
        first, _ = PARAMS[name]
        given = [value] if isinstance(value, int) else list(value)
        params[first : first + len(given)] = given
    return tuple(params)
