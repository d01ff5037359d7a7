"""Upstream's helpers that concern torch itself: devices, dtypes, buffers, counters."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from .. import _framework, functional, varlen
from .._metal.compat.build import tensor_helpers
from .._metal.compat.checks import get_device_cc
from .._metal.compat.flops import COUNTS, HANDLES
from .._metal.compat.inner import FUNCTIONS
from .._metal.compat.tensors import named
from .._metal.problem.ops import QK
from ._flops import WHOLE_WINDOWS

HELPERS = tensor_helpers(_framework, varlen.generate_varlen_parameters)

# --- devices and dtypes ----------------------------------------------------------------------------


def is_cuda(device: torch.device) -> bool:
    """Whether a device is a CUDA one; none of this package's kernels run there."""
    return device.type == "cuda" and torch.version.hip is None


def is_rocm(device: torch.device) -> bool:
    """Whether a device is a ROCm one; none of this package's kernels run there."""
    return device.type == "cuda" and torch.version.hip is not None


def is_cpu(device: torch.device) -> bool:
    """Whether a device is the CPU."""
    return device.type == "cpu"


def is_fp8(dtype: torch.dtype) -> bool:
    """Whether a dtype has 8 bits; no op here takes one."""
    return dtype in (torch.float8_e4m3fn, torch.float8_e5m2)


def is_half(dtype: torch.dtype) -> bool:
    """Whether a dtype is float16 or bfloat16."""
    return dtype in (torch.float16, torch.bfloat16)


def is_full(dtype: torch.dtype) -> bool:
    """Whether a dtype is float32."""
    return dtype == torch.float32


def is_torch_compiling() -> bool:
    """Whether torch.compile is tracing."""
    return torch.compiler.is_compiling()


# --- buffers ---------------------------------------------------------------------------------------


def make_attn_tensor_from_input(input_tensor: Tensor, attention_dim: int) -> Tensor:
    """An uninitialised tensor of weights: the input's shape with ``attention_dim`` in place of the last."""
    return input_tensor.new_empty((*input_tensor.shape[:-1], attention_dim), requires_grad=input_tensor.requires_grad)


def _flat(tensor: Tensor) -> Tensor:
    """``[batch, heads, *shape, dim]`` -> a view ``[batch, heads, tokens, dim]``."""
    return tensor.view(*tensor.shape[:2], -1, tensor.shape[-1])


def qk_cross_forward(query: Tensor, key: Tensor, out: Tensor) -> None:
    """Logits of every query and key, heads-first, written into ``out [batch, heads, *shape, keys]``."""
    _flat(out).copy_(_flat(query) @ _flat(key).mT)


def qk_cross_backward(query: Tensor, d_attn: Tensor, key: Tensor, d_query: Tensor, d_key: Tensor) -> None:
    """Gradients of :func:`qk_cross_forward`, written into d_query and d_key."""
    _flat(d_query).copy_(_flat(d_attn) @ _flat(key))
    _flat(d_key).copy_(_flat(d_attn).mT @ _flat(query))


def av_cross_forward(attn: Tensor, value: Tensor, output: Tensor) -> None:
    """Weights times every value, heads-first, written into ``output``."""
    _flat(output).copy_(_flat(attn) @ _flat(value))


def av_cross_backward(d_out: Tensor, value: Tensor, attn: Tensor, d_attn: Tensor, d_value: Tensor) -> None:
    """Gradients of :func:`av_cross_forward`, written into d_attn and d_value."""
    _flat(d_attn).copy_(_flat(d_out) @ _flat(value).mT)
    _flat(d_value).copy_(_flat(attn).mT @ _flat(d_out))


def additional_sdpa(
    query: Tensor, key: Tensor, value: Tensor, scale: float | None = None, attn_kwargs: dict[str, Any] | None = None
) -> tuple[Tensor, Tensor]:
    """Every query ``[B, *shape, H, D]`` on keys ``[B, S, H, D]``: out ``[B, tokens, H, D]``, lse ``[B, H, tokens]``."""
    out, lse = functional.attention(
        query.flatten(1, -3), key, value, scale=(attn_kwargs or {}).get("scale", scale), return_lse=True
    )
    return out, lse.mT


def merge_two(output_fna: Tensor, output_sdpa: Tensor, lse_fna: Tensor, lse_sdpa: Tensor) -> Tensor:
    """0.17's merge of the fused op's result, heads-last, with :func:`additional_sdpa`'s, whose lse is heads-first."""
    shape = output_sdpa.shape
    parts = [output_fna.reshape(shape), output_sdpa]
    merged, _ = functional.merge_attentions(parts, [lse_fna.reshape(shape[:-1]), lse_sdpa.mT])
    return merged.reshape(output_fna.shape)


def maybe_torch_compile(*args: Any, **kwargs: Any) -> Any:
    """A decorator that returns a function unchanged: upstream compiles where its CUDA kernels run."""
    return lambda function: function


def merge_attentions_fn(outputs: list[Tensor], lse_tensors: list[Tensor]) -> Tensor:
    """The merged output, without its lse."""
    return functional.merge_attentions(outputs, lse_tensors)[0]


# --- counters --------------------------------------------------------------------------------------


def add_natten_handle(flop_ctr: Any) -> Any:
    """fvcore's counter with a handle for each of upstream's autograd functions, under which the ops are traced."""
    handles = {}
    for forms in FUNCTIONS.values():
        for name, form in forms.items():
            handle = COUNTS["fna_generic_flops"]
            if form.kind != "fused":
                stem = f"qk_{form.rank}d_rpb_flop" if form.kind == QK.name else f"av_{form.rank}d_flop"
                handle = HANDLES[stem]
            handles[f"prim::PythonOp.{name}"] = handle
    return flop_ctr.set_op_handle(**handles)


def get_flops(model: Any, input: Any, disable_warnings: bool = False) -> int:  # noqa: A002 - upstream's name
    """Multiply-accumulates of a model on an input (several in a tuple): matrix products, convolutions and attention.

    Counted by torch's own counter in one forward pass, not by fvcore, which cannot look into custom ops. As upstream
    counts, a causal axis is one like any other.
    """
    given = input if isinstance(input, tuple) else (input,)
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=WHOLE_WINDOWS) as counter:
        model(*given)
    return int(counter.get_total_flops()) // 2


DEVICE = named(get_device_cc, is_cuda, is_rocm, is_cpu)
DTYPE = named(is_fp8, is_half, is_full)
TENSOR = named(make_attn_tensor_from_input)
OPS = named(
    qk_cross_forward, qk_cross_backward, av_cross_forward, av_cross_backward, additional_sdpa, maybe_torch_compile
) | {"merge_attentions": merge_two}
ATTN_MERGE = named(maybe_torch_compile, merge_attentions_fn) | {"merge_attentions_compile": merge_attentions_fn}
ENVIRONMENT = named(is_torch_compiling) | {"DISABLE_TORCH_OPS": False}
FLOPS = named(add_natten_handle, get_flops)
