"""Neighborhood attention over arrays that do not fit in memory."""

from typing import Any

import torch

from . import _config
from ._metal.plan.backend import NATIVE
from ._metal.slabs import tiled as bodies
from ._signatures import Bools, Ints
from ._slab_host import SlabHost

# An array of numpy, a tensor on the CPU, or the path of a .npy file.
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
    device: torch.device | str | None = None,
) -> Any:
    """Neighborhood attention over arrays larger than memory: slabs are read, computed and written one after another.

    The arrays lie in memory or in files: ``numpy.memmap``, paths of .npy files, arrays of numpy, or tensors on the CPU.
    A slab is a range of batch items and queries, with the keys that these attend to. Arrays that lie in their files in
    C's order are read from there slab by slab; others through the memory that they have. Forward only; the results are
    those of one call of :func:`neighborhood_attention`, to rounding.

        tiled("q.npy", "k.npy", "v.npy", kernel_size=13, out="out.npy", memory="2 GB")

    An interrupted call goes on where it was, when it is made again: a slab counts as done once it is on the disk and
    the journal beside ``out`` (``out.npy.journal``) says so. The journal is there until the call is finished, and only
    if all results lie in files. It knows inputs by path, size and time of their files, or by their content.

    Args:
        query: ``[B, *shape, H, D]``, shape of 1, 2 or 3 axes; float16, float32 or float64, or bfloat16 as a tensor or
            as an array of ml_dtypes.
        key, value: ``[B, *shape, H_kv, D]`` and ``[B, *shape, H_kv, D_v]``, of the query's dtype.
        kernel_size, stride, dilation, is_causal, scale: as in :func:`neighborhood_attention`.
        additional_keys, additional_values: ``[B, S, H_kv, D]`` and ``[B, S, H_kv, D_v]``.
        rpb: relative positional bias ``[H, 2 * kernel_size - 1 per axis]``, stride 1 only.
        out: where the output ``[B, *shape, H, D_v]`` of the query's dtype goes: the path of a .npy file, which is made
            or replaced, or a writable array or tensor.
        lse: where the log-sum-exp ``[B, *shape, H]`` goes, float32 (float64 for float64): as ``out``; None: nowhere.
        memory: bytes that a slab may hold at once: its inputs, results and intermediate tensors. An int, or a text
            such as '300 MB' (of 10**6 bytes) or '2 GiB' (of 2**30). Arrays that are in memory anyway, Python and the
            framework itself come on top.
        progress: whether to show a bar on stderr, which needs tqdm; None shows it on a terminal, if tqdm is there.
        backend: 'metal', 'native', 'pure', 'dense' or 'auto'; None follows :func:`use_backend`.
        device: where slabs are computed; None: on the Apple GPU if there is one and the backend is not 'native', or
            else on the CPU.

    Returns:
        ``out`` as it was given, or a read-only map of the file of a path; with ``lse`` the two of them.

    Raises:
        TypeError, ValueError, NotImplementedError: as :func:`neighborhood_attention`.
        TypeError: a file of bfloat16, which numpy does not have; a result of another dtype.
        ValueError: memory in which not one query fits (the message says what is needed), a result of another shape or
            read-only or in the file of an input, a journal of another call, a file that is cut short.
        OSError: files that cannot be read or written.

    Source: none but the window itself (:func:`key_range`): our own.
    """
    tensors, window = (
        (query, key, value, additional_keys, additional_values, rpb),
        (kernel_size, stride, dilation, is_causal),
    )
    return bodies.tiled(
        SlabHost(_device(device, backend)), tensors, window, scale, (out, lse), memory, progress, backend
    )


def _device(device: torch.device | str | None, backend: str | None) -> torch.device:
    if device is None:
        on_gpu = _config.has_mps() and _config.BACKENDS.resolve(bodies.FACE, backend) != NATIVE.name
        device = "mps" if on_gpu else "cpu"
    return torch.device(device)
