"""What compiles and launches Metal kernels for MLX. Its launcher (:mod:`.fast_metal`) is imported when first needed."""

from typing import Any

import mlx.core as mx

from .._metal.caches import Cache

# Elements of the smallest array that MLX hands to a kernel as device memory; smaller ones become constants.
SMALLEST = 8


class MetalHost:
    """What compiles and launches: MLX's Metal back-end, or a stand-in for it. It keeps the kernels that ran."""

    def __init__(self) -> None:
        self.kernels = Cache("Metal kernels", 1024)
        self.params = Cache("Metal parameters", 512)

    def missing(self, stream: mx.Stream) -> str | None:
        """Why kernels cannot run on ``stream``; None if they can."""
        raise NotImplementedError

    def metal_kernel(
        self,
        name: str,
        input_names: list[str],
        output_names: list[str],
        source: str,
        header: str,
        ensure_row_contiguous: bool,
    ) -> Any:
        """A callable that launches the kernel, as ``mx.fast.metal_kernel`` gives it."""
        raise NotImplementedError


class MlxHost(MetalHost):
    """The Apple GPU, as MLX sees it."""

    def missing(self, stream: mx.Stream) -> str | None:
        if not mx.metal.is_available():
            return "this build of MLX has no Metal back-end"
        if stream.device != mx.gpu:
            return "Metal kernels run on a GPU stream; this one is on the CPU"
        return None

    def metal_kernel(
        self,
        name: str,
        input_names: list[str],
        output_names: list[str],
        source: str,
        header: str,
        ensure_row_contiguous: bool,
    ) -> Any:
        return mx.fast.metal_kernel(
            name=name,
            input_names=input_names,
            output_names=output_names,
            source=source,
            header=header,
            ensure_row_contiguous=ensure_row_contiguous,
        )
