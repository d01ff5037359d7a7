"""The backends, one record each: what a backend launches, and where."""

from enum import Enum
from typing import NamedTuple

# Not a backend but a choice: the first one that can take the problem.
AUTO = "auto"


class Work(Enum):
    """What a backend launches."""

    METAL_KERNELS = "the Metal kernels"
    CPU_KERNELS = "the C++ kernels"
    WALKS = "the framework's operations, tile by tile"
    DENSE_OPERATIONS = "the framework's operations on all keys at once"


class Backend(NamedTuple):
    """One backend.

    name: as in arguments, environment variables and messages. cpu, gpu: what it launches on such a device, if
    anything. tells_limits: whether its host reports how many threads a compiled kernel allows; if not, plans are
    cautious. by_value: whether its host passes small tensors to kernels as constants. maps: whether vmap works on what
    it launches.
    """

    name: str
    cpu: Work | None = None
    gpu: Work | None = None
    tells_limits: bool = False
    by_value: bool = False
    maps: bool = True

    def on(self, kind: str) -> Work | None:
        """What it launches on a device of that kind."""
        return self.cpu if kind == "cpu" else self.gpu


METAL = Backend("metal", gpu=Work.METAL_KERNELS, tells_limits=True)
NATIVE = Backend("native", cpu=Work.CPU_KERNELS)
NANOBIND = Backend("nanobind", cpu=Work.CPU_KERNELS, gpu=Work.METAL_KERNELS)
FAST_METAL = Backend("fast_metal", gpu=Work.METAL_KERNELS, by_value=True, maps=False)
PURE = Backend("pure", cpu=Work.WALKS, gpu=Work.WALKS)
DENSE = Backend("dense", cpu=Work.DENSE_OPERATIONS, gpu=Work.DENSE_OPERATIONS)
BACKENDS = {backend.name: backend for backend in (METAL, NATIVE, NANOBIND, FAST_METAL, PURE, DENSE)}
