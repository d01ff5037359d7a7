"""What a plan needs to know about the machine, as plain data."""

from collections.abc import Mapping
from typing import NamedTuple


class Device(NamedTuple):
    """Where tensors are computed, and which backends cannot run there.

    kind: 'cpu' or 'gpu'. missing: (backend, reason) pairs; a backend not named there is available.
    float64: whether the device computes in float64. smallest: elements of the smallest tensor that a Metal
    kernel can be given as device memory. longest: the most elements that a tensor's dimension may have; None if only
    memory limits it. no_matrix_units: why kernels cannot use the GPU's matrix units, in one sentence; '' if
    they can (:mod:`.matrix_units`).
    """

    kind: str
    name: str
    missing: tuple[tuple[str, str], ...] = ()
    float64: bool = True
    smallest: int = 1
    longest: int | None = None
    no_matrix_units: str = "nobody has looked for matrix units"

    def reason_missing(self, backend: str) -> str | None:
        """Why ``backend`` cannot run here; None if it can."""
        return next((reason for name, reason in self.missing if name == backend), None)


def missing_backends(reasons: Mapping[str, str | None]) -> tuple[tuple[str, str], ...]:
    """:attr:`Device.missing` from each backend's reason, which is None if it is available."""
    return tuple((backend, reason) for backend, reason in reasons.items() if reason is not None)
