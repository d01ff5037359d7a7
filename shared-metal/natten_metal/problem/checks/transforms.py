"""Transforms that the kernels do not support, and what to use instead."""

from typing import NoReturn

from ..ops import FUSED


def reject_second_derivative(name: str) -> NoReturn:
    """The fused kernels have first derivatives only, in reverse mode."""
    raise NotImplementedError(f"{name}: second derivatives are not implemented; {_which_have_them(name)}")


def reject_forward_mode(name: str) -> NoReturn:
    """The fused kernels have first derivatives only, in reverse mode."""
    raise NotImplementedError(f"{name}: forward-mode derivatives are not implemented; {_which_have_them(name)}")


def _which_have_them(name: str) -> str:
    has_split_ops = name in FUSED.faces[1:]
    return 'use backend="dense"' + (f", or {name}_qk, a softmax and {name}_av" if has_split_ops else "")


NO_VMAP = (
    "mx.vmap over fast_metal kernels is not implemented, because MLX cannot map kernels given as text; "
    'use backend="pure", or make the mapped axis part of the batch'
)


def reject_vmap(name: str) -> NoReturn:
    """MLX has no vmap rule for kernels given as text, and accepts none."""
    raise NotImplementedError(f"{name}: {NO_VMAP}")


def reject_batched(name: str) -> NoReturn:
    """torch's older vmap: no public function unwraps its tensors."""
    raise NotImplementedError(
        f"{name}: torch.autograd.grad(is_grads_batched=True) and torch.autograd.functional.jacobian(vectorize=True) "
        "use torch's older vmap, which cannot look into this package's ops; use torch.func.jacrev, torch.vmap over the "
        'function that torch.func.vjp returns, or backend="dense"'
    )


def reject_recorder(face: str) -> NoReturn:
    """A recorder that knows only torch's own operations."""
    raise NotImplementedError(
        f"{face}: torch.jit.trace and torch.onnx.export cannot record this package's ops; call them inside "
        "`with natten_mps.export_mode():`, which makes these ops plain operations"
    )


def reject_shapeless() -> NoReturn:
    """NotImplementedError for a request to export for all sizes."""
    raise NotImplementedError(
        "export_function: shapeless=True is not implemented: neighborhood attention is traced for one size; "
        "export one function per size"
    )
