from collections.abc import Sequence

import mlx.core


kernels_digest: str = ...

sources_digest: str = ...

def instruction_set() -> str:
    """What the CPU kernels use: 'avx512', 'avx2', 'sse' or 'neon'."""

def threads() -> int:
    """Threads of the CPU kernels' pool."""

def complaint() -> str | None:
    """
    What is wrong with an environment variable of the CPU kernels, or None.
    """

def metadata_key(query: mlx.core.array, key: mlx.core.array, value: mlx.core.array, stream: mlx.core.Stream) -> bytes:
    """The device, dtypes and shapes of a call, as bytes."""

class Kernel:
    """
    One instantiation of a Metal kernel: the entry point's name, the library's text.
    """

    def __init__(self, name: str, source: str) -> None: ...

class Launch:
    """
    One launch. buffers: (the plan's tensor or -1 for the parameters, written); strided: (tensor, first entry of its strides in params, entry of its channels' stride).
    """

    def __init__(self, kernel: Kernel, grid: Sequence[int], threads: int, params: Sequence[int], buffers: Sequence[tuple[int, bool]], strided: Sequence[Sequence[int]]) -> None: ...

    def parameters(self, tensors: Sequence[mlx.core.array]) -> list[int]:
        """
        The parameter array for these arrays, which must have been evaluated: their strides are filled in.
        """

class Plan:
    """What one primitive computes."""

    @property
    def name(self) -> str:
        """What MLX calls the primitive."""

def plan(problem: object, function: str, inputs: Sequence[tuple[str, Sequence[int], mlx.core.Dtype]], outputs: Sequence[tuple[str, Sequence[int], mlx.core.Dtype]], scratch: Sequence[tuple[str, Sequence[int], mlx.core.Dtype]], launches: Sequence[Launch], call: bytes) -> Plan:
    """
    A plan. function: of the C interface; inputs, outputs, scratch: (name, shape, dtype); launches: on a GPU; call: the bytes by which natten_mlx._autodiff finds it, for its derivatives and mapping.
    """

def apply(plan: Plan, inputs: Sequence[mlx.core.array], stream: mlx.core.Stream) -> list[mlx.core.array]:
    """
    The plan's outputs, lazy. inputs: in its order; ValueError if their shapes or dtypes differ.
    """
