"""natten-mps and what one would use in torch instead of it, for the ``bench`` command."""

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from .. import _framework, functional
from .._device import machine
from .._metal.bench.memory import resident_peak
from .._metal.bench.problems import Named
from .._metal.bench.subject import Call, Forward, Subject


class TorchSubject:
    """A :class:`Subject` on the Apple GPU, or on the CPU where there is none or it is asked for."""

    package = "natten-mps"
    framework = _framework

    def __init__(self, on_cpu: bool) -> None:
        on_gpu = torch.backends.mps.is_available() and not on_cpu
        self.place = torch.device("mps" if on_gpu else "cpu")
        self.title, self.device, self.threads = f"torch {torch.__version__}", self.place.type, torch.get_num_threads()
        native = machine().native
        self.instruction_set = "" if native.missing(self.place) else native.library.instruction_set
        self.stores_logits = on_gpu

    def tensors(self, shapes: Sequence[tuple[int, ...]], dtype: str) -> list[Tensor]:
        torch.manual_seed(0)
        return [torch.randn(shape, dtype=getattr(torch, dtype), device=self.place) for shape in shapes]

    def heads_first(self, tensor: Tensor) -> Tensor:
        return tensor.flatten(1, -3).transpose(1, 2).contiguous()

    def wait(self, results: Any) -> None:
        if self.place.type == "mps":
            torch.mps.synchronize()

    def on_device(self) -> AbstractContextManager[None]:
        return torch.no_grad()

    def attend(self, query: Tensor, key: Tensor, value: Tensor, window: dict[str, Any], backend: str) -> Tensor:
        return functional.neighborhood_attention(query, key, value, **window, backend=backend)

    def dense(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        grouped = query.shape[1] != key.shape[1]
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=grouped)

    def training(self, forward: Forward, inputs: Sequence[Tensor], flow: Tensor) -> Call:
        leaves = [each.detach().requires_grad_() for each in inputs]

        def call() -> Any:
            with torch.enable_grad():
                return torch.autograd.grad(forward(*leaves), leaves, flow)

        return call

    def others(self, named: Named) -> dict[str, Callable[[Sequence[Tensor], Call], Forward]]:
        found: dict[str, Callable[[Sequence[Tensor], Call], Forward]] = {"flex_attention": _flex}
        if upstream := _upstream_version():
            found[f"natten {upstream}"] = lambda inputs, mask: _upstream(named)
        return found

    def peak_bytes(self, call: Call) -> int | None:
        if self.place.type == "cpu":
            return resident_peak(call)
        # Torch keeps what Metal's buffers it has freed: after a call it holds as much as the call needed at once.
        torch.mps.synchronize()
        torch.mps.empty_cache()
        before = torch.mps.driver_allocated_memory()
        call()
        torch.mps.synchronize()
        return max(0, torch.mps.driver_allocated_memory() - before)

    def difference(self, found: Tensor, wanted: Tensor) -> float:
        return float((found - wanted).abs().max().float() / wanted.abs().max().float().clamp(min=1e-6))

    def copy(self, elements: int) -> Call:
        (source,) = self.tensors([(elements,)], "float32")
        target = torch.empty_like(source)
        return lambda: target.copy_(source)


def _flex(inputs: Sequence[Tensor], mask: Call) -> Forward:
    """Compiled already, with a block mask made beforehand.

    The mask is looked up in a table, which favors flex_attention: arithmetic on the indices takes a third longer.
    """
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    torch.compiler.reset()  # a compiled function is compiled anew for a few shapes only
    seen, (query, key, value) = mask(), inputs[:3]
    tokens, grouped = seen.shape[0], query.shape[1] != key.shape[1]
    block_mask = create_block_mask(lambda b, h, q, k: seen[q, k], None, None, tokens, tokens, device=str(seen.device))
    compiled = torch.compile(flex_attention, dynamic=False)

    def forward(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out: Tensor = compiled(query, key, value, block_mask=block_mask, enable_gqa=grouped)
        return out

    forward(query, key, value)
    return forward


def _upstream_version() -> str:
    """The version of NATTEN itself if it is installed, not of this package in its place; '' if it is not."""
    try:
        found = version("natten")
    except PackageNotFoundError:
        return ""
    loaded = sys.modules.get("natten")
    return "" if loaded is not None and loaded.__name__.startswith("natten_mps") else found


def _upstream(named: Named) -> Forward:
    """NATTEN's op, which has heads last."""
    import natten  # type: ignore[import-not-found,unused-ignore]

    op = getattr(natten, f"na{len(named.shape)}d")

    def forward(*heads_first: Tensor) -> Tensor:
        out: Tensor = op(*(each.transpose(1, 2).unflatten(1, named.shape) for each in heads_first), **named.window)
        return out.flatten(1, -3).transpose(1, 2)

    return forward


def subject(on_cpu: bool) -> Subject:
    """The subject of this process."""
    return TorchSubject(on_cpu)
