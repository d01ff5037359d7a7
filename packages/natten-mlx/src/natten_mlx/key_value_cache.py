"""Decoding and streaming: tokens that arrive one after another along a causal axis."""

import mlx.core as mx

from . import _framework
from ._metal.api import key_value_cache as bodies
from ._signatures import Bools, Ints, Result
from ._tensors import StreamOrDevice


class KeyValueCache(bodies.KeyValueCache):
    """The keys and values that later queries can still see, along a causal axis 0 whose tokens arrive in chunks.

    For each chunk, of any length: :meth:`append` its keys and values, then :meth:`attend` with its queries. The outputs
    are those of one causal call on all tokens. Memory depends on the window and on the longest chunk, never on how many
    tokens have arrived. Axes after the first are whole in every chunk (``na3d``: the frames of a video).

    Args:
        kernel_size, stride, dilation: as in :func:`neighborhood_attention`; stride must be 1 on axis 0.
        is_causal: per axis, True on axis 0; None: only on axis 0.
        wrap: per axis, as in :func:`neighborhood_attention`; never on axis 0.

    Raises:
        TypeError, ValueError: illegal window arguments, or a window that cannot be streamed.

    Example:
        >>> cache = natten_mlx.KeyValueCache(kernel_size=256)
        >>> for query, key, value in chunks:                     # [B, new, H, D]
        ...     cache.append(key, value)
        ...     out = cache.attend(query)                        # [B, new, H, D]

    Source: our own; the window is :func:`na1d`'s with ``is_causal``.
    """

    _framework = staticmethod(lambda: _framework)

    def __init__(
        self,
        kernel_size: Ints,
        stride: Ints = 1,
        dilation: Ints = 1,
        is_causal: Bools | None = None,
        wrap: Bools = False,
    ) -> None:
        self._build(kernel_size, stride, dilation, is_causal, wrap)

    def attend(
        self,
        query: mx.array,
        scale: float | None = None,
        *,
        additional_keys: mx.array | None = None,
        additional_values: mx.array | None = None,
        rpb: mx.array | None = None,
        return_lse: bool = False,
        backend: str | None = None,
        stream: StreamOrDevice = None,
    ) -> Result:
        """Attention of the newest tokens to what they see among all tokens so far.

        Args:
            query: ``[B, n, ..., H, D]``, the last n tokens of the newest chunk; gradients flow to it, but not to keys
                and values.
            scale, additional_keys, additional_values, rpb, return_lse, backend, stream: as in
                :func:`neighborhood_attention`.

        Returns:
            ``[B, n, ..., H, D_v]``; with ``return_lse`` also lse ``[B, n, ..., H]``, float32.

        Raises:
            ValueError: more queries than the newest chunk has tokens, or sizes that do not fit its keys.
            TypeError, NotImplementedError: as :func:`neighborhood_attention`.
        """
        found: Result = self._attend(
            query, scale, (additional_keys, additional_values), rpb, return_lse, backend, stream
        )
        return found
