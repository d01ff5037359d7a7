"""Neighborhood attention over arrays that do not fit in memory.

The arrays lie in memory or in files: ``numpy.memmap``, paths of .npy files, numpy arrays, or MLX arrays. A slab is a
range of batch items and queries, with the keys that these attend to. Arrays stored in files in C's order are read from
there slab by slab; all others through their memory.

An interrupted call resumes when it is made again: a slab counts as done once it is on the disk and the journal beside
``out`` (``out.npy.journal``) says so. The journal exists until the call is finished, and only if all results are in
files. It recognises inputs by the path, size and modification time of their files, or by their content.
"""

from typing import Any

from ._metal.slabs import tiled as bodies
from ._signatures import Bools, Ints
from ._slab_adapter import on_stream
from ._tensors import StreamOrDevice, stream_of

# A numpy or MLX array, or the path of a .npy file.
Array = Any


def tiled(
    query: Array,
    key: Array,
    value: Array,
    kernel_size: Ints,
    stride: Ints = 1,
    dilation: Ints = 1,
    is_causal: Bools = False,
    scale: float | None = None,
    *,
    additional_keys: Array | None = None,
    additional_values: Array | None = None,
    rpb: Array | None = None,
    out: Array,
    lse: Array | None = None,
    memory: int | str = "1 GB",
    progress: bool | None = None,
    backend: str | None = None,
    stream: StreamOrDevice = None,
) -> Any:
    """Neighborhood attention over arrays larger than memory, slab by slab; forward only.

        tiled("q.npy", "k.npy", "v.npy", kernel_size=13, out="out.npy", memory="2 GB")

    Args:
        query: ``[B, *shape, H, D]``, 1 to 3 axes; float16, float32, float64; bfloat16 as a tensor or of ml_dtypes.
        key, value: ``[B, *shape, H_kv, D]`` and ``[B, *shape, H_kv, D_v]``, of the query's dtype.
        kernel_size, stride, dilation, is_causal, scale, additional_keys, additional_values, rpb: as in
            :func:`neighborhood_attention`.
        out: where the output ``[B, *shape, H, D_v]`` of the query's dtype goes: the path of a .npy file, which is
            created or replaced, or a writable numpy array.
        lse: where the log-sum-exp ``[B, *shape, H]`` goes, float32 (float64 for float64): as ``out``; None: nowhere.
        memory: bytes that a slab may hold at once: its inputs, results and intermediate tensors. An int, or a text
            such as '300 MB' (of 10**6 bytes) or '2 GiB' (of 2**30). Arrays that are in memory anyway, Python and the
            framework itself come on top.
        progress: whether to show a bar on stderr, which needs tqdm; None shows it on a terminal, if tqdm is installed.
        backend: 'nanobind', 'fast_metal' (or 'metal'), 'pure', 'dense' or 'auto'; None follows :func:`use_backend`.
        stream: where slabs are computed: a stream, a device, or None for the default. float64 runs on a CPU stream.

    Returns:
        ``out`` as it was given, or a read-only map of the file of a path; with ``lse`` the two of them.

    Raises:
        TypeError, ValueError, NotImplementedError: as :func:`neighborhood_attention`, and for ``out`` and ``lse``.
        ValueError: memory in which not one query fits (the message says what is needed), a journal of another call, a
            truncated file. OSError: files that cannot be read or written.

    Source: our own; the window is that of :func:`neighborhood_attention`.
    """
    return bodies.tiled(
        on_stream(stream_of(bodies.FACE, stream)),
        (query, key, value, additional_keys, additional_values, rpb),
        (kernel_size, stride, dilation, is_causal),
        scale,
        (out, lse),
        memory,
        progress,
        backend,
    )
