"""What compiles and launches Metal kernels for torch. Its launcher (:mod:`.metal`) is imported when first needed."""

from typing import Any

import torch

from .._metal.caches import Cache


class MetalHost:
    """What compiles and launches: torch's MPS backend, or a stand-in for it. It keeps what it compiled."""

    def __init__(self) -> None:
        self.kernels = Cache("Metal kernels", 1024)
        self.params = Cache("Metal parameters", 512)

    def missing(self, device: torch.device) -> str | None:
        """Why kernels cannot run on tensors of ``device``; None if they can."""
        raise NotImplementedError

    def compile_shader(self, source: str) -> Any:
        """A library whose attributes are its kernels."""
        raise NotImplementedError


class MpsHost(MetalHost):
    """The Apple GPU, as torch sees it."""

    def missing(self, device: torch.device) -> str | None:
        if device.type != "mps":
            return f"Metal kernels run on mps tensors; these are on {device.type}"
        if not hasattr(torch.mps, "compile_shader"):
            return f"torch {torch.__version__} has no torch.mps.compile_shader; 2.9 or newer has"
        return None

    def compile_shader(self, source: str) -> Any:
        return torch.mps.compile_shader(source)
