"""Parts of numpy's arrays as arrays of MLX, and back."""

from typing import Any

import mlx.core as mx

from . import _framework
from ._metal.slabs.adapter import Adapter


def on_stream(stream: mx.Stream) -> Adapter:
    """Slabs are computed on ``stream``."""

    def copied(part: Any, dtype: str) -> mx.array:
        with mx.stream(stream):
            made = mx.array(part, dtype=getattr(mx, "uint16" if dtype == "bfloat16" else dtype))
            made = made.view(getattr(mx, dtype))
            mx.eval(made)
        return made

    def evaluated(tensor: mx.array) -> Any:
        import numpy

        with mx.stream(stream):
            plain = mx.contiguous(tensor.view(mx.uint16) if tensor.dtype == mx.bfloat16 else tensor)
            mx.eval(plain)
        return numpy.array(plain, copy=False)

    def frozen(face: str, name: str, tensor: mx.array) -> Any:
        content = evaluated(tensor)
        content.flags.writeable = False
        return content

    return Adapter(
        framework=_framework,
        stream=stream,
        reads_in_place=False,
        writes_in_place=True,
        values=frozen,
        tensor=copied,
        array=evaluated,
        release=mx.clear_cache,
    )
