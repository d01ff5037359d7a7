"""The modules of both packages: a mixin beside the framework's own ``Module`` class."""

from typing import Any

from ..problem import checks, faces
from ..problem.checks import modules as rules
from ..problem.checks import shards
from ..problem.ops import FUSED
from . import attention, dense, varlen
from .framework import Framework
from .key_value_cache import KeyValueCache
from .operations import Tensor


class NeighborhoodAttention:
    """What a module of any rank does around the functional op.

    A package's class brings ``_framework``, ``layers``, ``_drops`` and ``_new_rpb``; its subclasses name
    their rank. Programs may change the attributes that are set here (heads, projections).
    """

    layers: Any  # the Python module with Linear and Dropout
    rank: int
    training: Any
    backend: str | None = None  # a default for modules that were pickled before it existed, like the next one
    shared: Any = None  # what attends instead of the fused op, where processes share the tokens
    proj: Any

    @property
    def _sizes_name(self) -> str:
        """What ``forward`` calls the items' sizes."""
        return "seq_lens" if self.rank == 1 else "spatial_sizes"

    @staticmethod
    def _framework() -> Framework:
        """The package's framework. A function: torch 2.9 cannot trace a Python module in a class attribute."""
        raise NotImplementedError

    @property
    def wrap(self) -> Any:
        """Whether windows pass over the end of each axis; False if none does, or if the module was pickled without it.

        A property: MLX stores a tuple in a module only under a name that its class does not have.
        """
        return getattr(self, "_wraps", False)

    def _drops(self, dropout: Any) -> bool:
        """Whether the layer that the module has as ``attn_drop`` changes anything in training."""
        raise NotImplementedError

    def _new_rpb(self, shape: tuple[int, ...]) -> Any:
        """A new relative positional bias, a parameter, of standard deviation 0.02."""
        raise NotImplementedError

    def _build(
        self,
        embed_dim: Any,
        num_heads: Any,
        num_kv_heads: Any,
        window: tuple[Any, ...],
        qk_scale: Any,
        qkv_bias: Any,
        drops: tuple[Any, Any],
        rel_pos_bias: Any,
        wrap: Any,
        backend: Any,
    ) -> None:
        """The constructor. window: kernel_size, stride, dilation and is_causal; drops: attn_drop and proj_drop."""
        super().__init__()  # the framework's
        face = type(self).__name__
        given = rules.constructor(
            face,
            self.rank,
            embed_dim,
            num_heads,
            num_kv_heads,
            window,
            qk_scale,
            qkv_bias,
            drops,
            rel_pos_bias,
        )
        wraps = rules.wraps(face, wrap, given.window[3])
        if any(wraps):
            self._wraps = wraps
        self._framework().BACKENDS.resolve(face, backend)
        self.backend = backend
        self.embed_dim, self.num_heads, self.num_kv_heads = given.embed_dim, given.num_heads, given.num_kv_heads
        self.head_dim, self.scale = given.embed_dim // given.num_heads, given.scale
        self.kernel_size, self.stride, self.dilation, self.is_causal = given.window
        width = given.embed_dim
        if given.num_kv_heads == given.num_heads:
            self.qkv = self.layers.Linear(width, 3 * width, bias=given.qkv_bias)
        else:
            self.q_proj = self.layers.Linear(width, width, bias=given.qkv_bias)
            self.kv_proj = self.layers.Linear(width, 2 * given.num_kv_heads * self.head_dim, bias=given.qkv_bias)
        rpb_shape = (given.num_heads, *(2 * w - 1 for w in self.kernel_size))
        self.rpb = self._new_rpb(rpb_shape) if given.rel_pos_bias else None
        self.attn_drop = self.layers.Dropout(given.attn_drop)
        self.proj = self.layers.Linear(width, width)
        self.proj_drop = self.layers.Dropout(given.proj_drop)

    def _geometry(self, shape: tuple[int, ...]) -> checks.Window:
        """kernel_size, stride, dilation and is_causal for an input ``[B, *shape, C]``."""
        return self.kernel_size, self.stride, self.dilation, self.is_causal

    def _attend_module(
        self,
        x: Tensor,
        sizes: Any,
        backend: str | None = None,
        cache: Any = None,
        stream: Any = None,
        key_mask: Any = None,
    ) -> Tensor:
        """``x [B, *shape, C]`` -> ``[B, *shape, C]``; sizes as the varlen ops take them, or None."""
        face, fw = type(self).__name__, self._framework()
        if stream is not None:
            with fw.on(fw.stream_of(face, stream)):
                return self._attend_module(x, sizes, backend, cache, None, key_mask)
        rules.check_input(face, fw.spec(face, "input", x), self.rank, self.embed_dim)
        chosen = self.backend if backend is None else backend
        tensors = self._project(x)
        window = self._geometry(tuple(x.shape[1:-1]))
        dropping = self.training and self._drops(self.attn_drop)
        if key_mask is not None:
            self._check_masked(cache, sizes, dropping)
        if self.shared is not None:
            if cache is not None or sizes is not None or dropping:
                shards.reject_module(face)
            given = (*tensors, None, None, self.rpb)
            out = self.shared(FUSED.faces[self.rank], given, window, self.scale, self.wrap, chosen)
        elif cache is not None:
            self._check_cache(cache, sizes, dropping)
            query, key, value = tensors
            cache.append(key, value)
            out = cache.attend(query, self.scale, rpb=self.rpb, backend=chosen)
        elif sizes is not None:
            if dropping:
                rules.reject_dropout(face, self._sizes_name)
            if self.wrap:
                rules.reject_together(face, self._sizes_name, "wrap")
            op = FUSED.faces[self.rank] + "_varlen"
            out = varlen.padded_items(
                fw, op, self._sizes_name, tensors, sizes, window, self.scale, False, chosen, self.rpb
            )
        elif dropping:
            out = self._attend_dropping(tensors, window, chosen)
        else:
            given, piece = (*tensors, None, None, self.rpb), (*faces.WHOLE[:3], self.wrap)
            out = attention.fused(
                fw, FUSED.faces[0], given, window, self.scale, piece, False, chosen, {}, None, key_mask
            )
        return self.proj_drop(self.proj(out.flatten(-2)))

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value ``[B, *shape, heads, head_dim]``, with the heads that the module has now."""
        if hasattr(self, "qkv"):
            query, key, value = self._heads("qkv", self.qkv(x), 3, "num_heads")
            return query, key, value
        key, value = self._heads("kv_proj", self.kv_proj(x), 2, "num_kv_heads")
        return self._heads("q_proj", self.q_proj(x), 1, "num_heads")[0], key, value

    def _heads(self, layer: str, projected: Tensor, parts: int, heads: str) -> list[Tensor]:
        """``[B, *shape, parts * heads * head_dim]`` as one tensor per part. heads: the attribute that counts them."""
        count, width = getattr(self, heads), projected.shape[-1]
        rules.check_projection(type(self).__name__, layer, width, parts, (heads, count), self.head_dim)
        return list(
            self._framework().operations.parts(projected.reshape(*projected.shape[:-1], parts, count, self.head_dim))
        )

    def _attend_dropping(self, tensors: tuple[Tensor, ...], window: checks.Window, backend: str | None) -> Tensor:
        """Attention with dropped weights: the split ops, with all weights of each query stored in between."""
        fw, face, (query, key, value) = self._framework(), FUSED.faces[self.rank], tensors
        piece = (*faces.WHOLE[:3], self.wrap)
        logits = attention.qk(fw, face + "_qk", (query, key, self.rpb), window, self.scale, piece, backend)
        weights = self.attn_drop(dense.softmax(fw.operations, logits))
        return attention.av(fw, face + "_av", (weights, value), window, piece, backend)

    def _check_masked(self, cache: Any, sizes: Any, dropping: bool) -> None:
        """NotImplementedError if something is given that cannot be combined with a key mask."""
        face = type(self).__name__
        if sizes is not None:
            rules.reject_key_mask(face, self._sizes_name, f"mask the padding too, without {self._sizes_name}")
        if cache is not None:
            rules.reject_key_mask(face, "cache", "call the module on the whole sequence, without a cache")
        if dropping:
            rules.reject_key_mask(face, "attn_drop in training", "set attn_drop=0.0")
        if self.shared is not None:
            rules.reject_key_mask(face, "shards", "call the module on the whole input")

    def _check_cache(self, cache: Any, sizes: Any, dropping: bool) -> None:
        """Raise unless ``cache`` is a cache with this module's window, and all else that is given works with one."""
        face = type(self).__name__
        if not isinstance(cache, KeyValueCache):
            checks.reject_type(face, "cache", cache, "a KeyValueCache or None")
        if sizes is not None:
            rules.reject_together(face, self._sizes_name, "cache")
        if dropping:
            rules.reject_dropout(face, "cache")
        own = self.kernel_size, self.stride, self.dilation, self.is_causal
        rules.check_cache_window(face, own, self.wrap, cache.window_arguments(self.rank), cache.wrap(self.rank))

    def _described(self) -> str:
        """What the framework prints of a module besides its name and its layers."""
        return (
            f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, num_kv_heads={self.num_kv_heads}, "
            f"kernel_size={self.kernel_size}, stride={self.stride}, dilation={self.dilation}, "
            f"is_causal={self.is_causal}, rel_pos_bias={self.rpb is not None}"
            + (f", wrap={self.wrap}" if self.wrap else "")
        )
