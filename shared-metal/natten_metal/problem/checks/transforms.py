"""What the kernels do not do under a framework's transforms, and what does it in their place."""

from typing import NoReturn

from ..ops import FUSED


def reject_second_derivative(name: str) -> NoReturn:
    """The fused kernels differentiate once, in reverse."""
    raise NotImplementedError(f"{name}: second derivatives are not implemented; {_which_have_them(name)}")


def reject_forward_mode(name: str) -> NoReturn:
    """The fused kernels differentiate once, in reverse."""
    raise NotImplementedError(f"{name}: forward-mode derivatives are not implemented; {_which_have_them(name)}")


def _which_have_them(name: str) -> str:
    has_split_ops = name in FUSED.faces[1:]
    return 'use backend="dense"' + (f", or {name}_qk, a softmax and {name}_av" if has_split_ops else "")


NO_VMAP = (
    "mx.vmap over fast_metal kernels is not implemented, for MLX maps no kernel that it was given as text; "
    'use backend="pure", or make the mapped axis part of the batch'
)


def reject_vmap(name: str) -> NoReturn:
    """MLX maps every operation of a function, and has no rule for these kernels, nor takes one from us."""
    raise NotImplementedError(f"{name}: {NO_VMAP}")


def reject_batched(name: str) -> NoReturn:
    """torch's older vmap, whose tensors nothing public looks into."""
    raise NotImplementedError(
        f"{name}: torch.autograd.grad(is_grads_batched=True) and torch.autograd.functional.jacobian(vectorize=True) "
        "map by an older vmap of torch's, which cannot look into this package's ops; use torch.func.jacrev, or "
        'torch.vmap over the function of torch.func.vjp, which can, or backend="dense"'
    )


def reject_recorder(face: str) -> NoReturn:
    """A recorder that knows torch's own operations alone."""
    raise NotImplementedError(
        f"{face}: torch.jit.trace and torch.onnx.export cannot record this package's ops; call them inside of "
        "`with natten_mps.export_mode():`, which makes these ops plain operations"
    )


def reject_shapeless() -> NoReturn:
    """A program for tensors of any size."""
    raise NotImplementedError(
        "export_function: shapeless=True is not implemented: neighborhood attention is traced for one size; "
        "export one function per size"
    )
