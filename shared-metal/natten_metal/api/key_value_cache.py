"""Keys and values of the tokens so far, for a causal axis whose tokens arrive one after another.

A query of a causal window sees at most the ``(kernel_size - 1) * dilation`` tokens before it, so nothing older is
kept. The tokens lie in one buffer, always contiguous, so that a call reads a view of it::

    . . . . . . . a b c d e f g h i j k . . . .      a-h: within reach of the next query, i-k: the newest chunk
    |<-------------- capacity --------------->|

When the next chunk does not fit, the tokens within reach move to the front; with room for as many tokens again, no
token moves more than once. A buffer that grew for a long chunk is replaced by a smaller one at the next move.

A call is a piece of the axis (``full_shape``). Its origin is moved towards the first token by whole dilation groups,
which changes nothing for a causal window; so the calls of a long sequence pose the same few problems, whose plans are
cached.
"""

from typing import Any

from ..problem import checks
from ..problem.checks import cache as rules
from ..problem.ops import FUSED
from . import attention
from .framework import Framework
from .operations import Operations, Tensor


class KeyValueCache:
    """What a cache does in both packages; a package's class has the constructor and brings ``_framework``."""

    @staticmethod
    def _framework() -> Framework:
        """The package's framework."""
        raise NotImplementedError

    def _build(self, kernel_size: Any, stride: Any, dilation: Any, is_causal: Any, wrap: Any) -> None:
        self._given = rules.Window(kernel_size, stride, dilation, is_causal)
        self._wrap = wrap
        rules.check_streams(type(self).__name__, self._given)
        self.reset()

    def reset(self) -> None:
        """Forget all tokens: the next one is the first of a new sequence."""
        self._key: Any = None
        self._value: Any = None
        self._start = self._end = 0  # of the tokens that are kept, in the buffers
        self._tokens = self._newest = 0

    @property
    def tokens(self) -> int:
        """Tokens appended since the beginning of the sequence."""
        return self._tokens

    @property
    def capacity(self) -> int:
        """Tokens that the buffers have room for: at most twice those within a query's reach, or those and one chunk."""
        return 0 if self._key is None else int(self._key.shape[1])

    def window_arguments(self, rank: int) -> checks.Window:
        """kernel_size, stride, dilation and is_causal, one entry per axis each."""
        return self._given.for_rank(type(self).__name__, rank)

    def wrap(self, rank: int) -> Any:
        """Per axis, whether windows pass over its end; False where none does."""
        wraps = checks.bools_per_axis(type(self).__name__, "wrap", self._wrap, rank)
        return wraps if any(wraps) else False

    def append(self, key: Tensor, value: Tensor) -> None:
        """Add the next tokens, any number of them.

        Args:
            key: ``[B, new, ..., H_kv, D]``, whole along every axis but the first.
            value: ``[B, new, ..., H_kv, D_v]``, of the same dtype. Both are copied: no gradient flows to them.

        Raises:
            TypeError: not floating-point tensors, or of another dtype than the earlier tokens.
            ValueError: shapes or devices that do not fit each other or the earlier tokens.
        """
        fw, face = self._framework(), f"{type(self).__name__}.append"
        specs = [fw.spec(face, name, tensor) for name, tensor in (("key", key), ("value", value))]
        before = None if self._key is None else [fw.spec(face, n, t) for n, t in self._buffers()]
        self._window, self._reach = rules.check_chunk(face, self._given, specs, before)
        self._newest = new = key.shape[1]
        if new == 0:
            return
        self._make_room(key, value, new)
        xp = fw.operations
        self._key = _write(xp, self._key, self._end, key)
        self._value = _write(xp, self._value, self._end, value)
        self._end += new
        self._tokens += new

    def _buffers(self) -> tuple[tuple[str, Tensor], tuple[str, Tensor]]:
        return ("key", self._key), ("value", self._value)

    def _make_room(self, key: Tensor, value: Tensor, new: int) -> None:
        """Room for ``new`` tokens after those that they can see."""
        capacity = self._reach + max(self._reach, new)
        if self._key is not None and self._end + new <= self.capacity <= capacity:
            return
        keep = min(self._end - self._start, self._reach)
        first = self._end - keep
        self._key = self._moved(self._key, key, first, capacity)
        self._value = self._moved(self._value, value, first, capacity)
        self._start, self._end = 0, keep

    def _moved(self, buffer: Any, like: Tensor, first: int, capacity: int) -> Tensor:
        """The tokens of ``buffer`` from ``first`` on, at the front of one with that capacity."""
        xp = self._framework().operations
        kept = None if buffer is None else buffer[:, first : self._end]
        if buffer is None or buffer.shape[1] != capacity or self._end - first > first:  # another size, or they overlap
            buffer = xp.zeros((like.shape[0], capacity, *like.shape[2:]), like.dtype, like)
        return buffer if kept is None or kept.shape[1] == 0 else _write(xp, buffer, 0, kept)

    def _attend(
        self,
        query: Tensor,
        scale: Any,
        additional: tuple[Any, Any],
        rpb: Any,
        return_lse: Any,
        backend: Any,
        stream: Any = None,
    ) -> Any:
        """Attention of the newest tokens; ``query`` holds as many of them as it has tokens."""
        fw, face = self._framework(), f"{type(self).__name__}.attend"
        length = rules.check_query(face, fw.spec(face, "query", query), self._newest)
        window, dilation = self._window[0][0], self._window[2][0]
        low = max(self._tokens - length - self._reach, 0)
        origin = low // dilation * dilation
        whole = (max(self._tokens - origin, window * dilation), *self._key.shape[2:-2])
        zeros = (0,) * (len(whole) - 1)
        piece = whole, (self._tokens - length - origin, *zeros), (low - origin, *zeros), self._wrap
        at = self._end - (self._tokens - low)
        key, value = self._key[:, at : self._end], self._value[:, at : self._end]
        tensors = query, key, value, *additional, rpb
        return attention.fused(fw, FUSED.faces[0], tensors, self._window, scale, piece, return_lse, backend, {}, stream)


def _write(xp: Operations, buffer: Tensor, start: int, tensor: Tensor) -> Tensor:
    """``buffer [B, capacity, ...]`` with ``tensor [B, n, ...]`` from ``start`` on, in its memory; no gradient."""
    buffer[:, start : start + tensor.shape[1]] = xp.detach(tensor)
    return buffer
