"""Call forms of NATTEN's generations, translated into today's.

A module of a generation holds faces made here from :mod:`.forms`: each binds its arguments as upstream did, and passes
them to an adapter of the package. Upstream's split ops are heads-first, ``[B, H, *shape, D]``, and do not scale; the
fused ones are heads-last.
"""

import logging
import math
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..plan.backends import log_once
from ..problem.ops import AV, FULL, QK
from ..problem.problem import RANKS
from .forms import ADDED as ADDED
from .forms import FORMS, Form, Forms


@dataclass(frozen=True, slots=True)
class Generation:
    """Releases that share their call forms. since: the first of them; last: what the module's ``__version__`` is.

    releases and text: for the module's docstring.
    """

    since: tuple[int, int, int]
    last: str
    releases: str
    text: str


# By the name of the module, oldest first.
GENERATIONS = {
    "v0141": Generation(
        (0, 14, 1),
        "0.14.4",
        "0.14.1 to 0.14.4",
        "Split ops only, heads-first: ``natten{1,2}dqkrpb(query, key, rpb, dilation)`` and "
        "``natten{1,2}dav(attn, value, dilation)``; the window's size follows from rpb or the weights. "
        "Modules take kernel_size before num_heads, always have an rpb, and with ``dilation=None`` dilate "
        "as far as the input allows.",
    ),
    "v0145": Generation((0, 14, 5), "0.14.5", "0.14.5", "As 0.14.6, but ``natten{1,2}dav(attn, value, dilation)``."),
    "v014": Generation(
        (0, 14, 6),
        "0.14.6",
        "0.14.6",
        "Split ops only, heads-first: ``natten{1,2}dqkrpb(query, key, rpb, kernel_size, dilation)``, "
        "``natten{1,2}dqk``, ``natten{1,2}dav(attn, value, kernel_size, dilation)``. Modules pad inputs shorter than "
        "their window.",
    ),
    "v015": Generation(
        (0, 15, 0),
        "0.15.1",
        "0.15",
        "Adds volumes (their depth has arguments of its own), the names ``na{1,2,3}d_{qk,qk_with_bias,av}`` and "
        "additional keys and values. ``na1d``, ``na2d`` and ``na3d`` are here because 0.3 had them; upstream had none "
        "yet.",
    ),
    "v017": Generation(
        (0, 17, 0),
        "0.17.5",
        "0.17",
        "One argument for a window, causal axes, and the fused ops ``na{1,2,3}d``, which are heads-last, and where "
        "dilation follows kernel_size. The relative positional bias is called ``rpb``; the fused ops train it too.",
    ),
    "v020": Generation(
        (0, 20, 0),
        "0.20.1",
        "0.20 to 0.21.1",
        "Fused ops with stride; ``merge_attentions`` returns only the output. ``na{1,2,3}d_{qk,av}`` and the "
        "``natten*`` ops are here, heads-first as in 0.17, though upstream dropped them.",
    ),
    "v021": Generation(
        (0, 21, 5),
        "0.21.7",
        "0.21.5 and later",
        "The log-sum-exp from every op; causal and packed ``attention``. Every older name that means nothing else here "
        "is here too: the split ops, heads-first, and the switches of 0.17.",
    ),
}
SINCE = {name: its.since for name, its in GENERATIONS.items()}
LAST = {name: its.last for name, its in GENERATIONS.items()}
# Other names of classes.
RENAMED_CLASSES = {"v0141": {"NeighborhoodAttention": "NeighborhoodAttention2D"}}
SKIPPED: dict[tuple[int, ...], str] = {
    (0, 16): "0.16 was never released",
    (0, 18): "0.18 was never released",
    (0, 19): "0.19 was never released",
}


def generation_of(version: str) -> str:
    """The generation that a version belongs to: ``'0.17.5'`` -> ``'v017'``; ``'0.14'`` is its last release.

    TypeError unless it is a string; ValueError if it is not a version, or one that was never released.
    """
    if not isinstance(version, str):
        raise TypeError(f"for_version: version must be a string like '0.17.5'; got {version!r}")
    parts = version.removeprefix("v").split("+")[0].split(".")
    if not 2 <= len(parts) <= 3 or not all(part.isdigit() for part in parts):
        raise ValueError(f"for_version: version must be like '0.17.5'; got {version!r}")
    numbers = tuple(int(part) for part in parts)
    if numbers[:2] in SKIPPED:
        raise ValueError(f"for_version: {SKIPPED[numbers[:2]]}; got {version!r}")
    if numbers == (0, 14, 0):
        log_once(
            "for_version: NATTEN 0.14.0 was never released; natten-mps and natten-mlx 0.3 took it for 0.14.6",
            logging.WARNING,
        )
        return "v014"
    # A minor version alone means its last release.
    wanted = numbers if len(numbers) == 3 else (*numbers, math.inf)
    older = [name for name, since in SINCE.items() if since <= wanted]
    if not older:
        raise ValueError(f"for_version: the oldest version is 0.14.1; got {version!r}")
    return older[-1]


def docstring(generation: str) -> str:
    """The docstring of a generation's module."""
    its = GENERATIONS[generation]
    return f"NATTEN {its.releases}: names, argument orders, layouts and modules.\n\n{textwrap.fill(its.text, 115)}\n"


def forms(generation: str, added: bool = True) -> Forms:
    """The call forms of a generation: upstream's, and if ``added`` what natten-mps and natten-mlx 0.3 had there."""
    return (ADDED[generation] if added else {}) | FORMS[generation]


# --- faces -----------------------------------------------------------------------------------------


def face(name: str, form: Form, module: str, run: Callable[[str, Form, dict[str, Any]], Any]) -> Callable[..., Any]:
    """The function ``name`` of ``module``: binds its arguments by ``form``, then ``run(name, form, given)``."""

    def bound(*args: Any, **kwargs: Any) -> Any:
        return run(name, form, form.bind(name, args, kwargs))

    bound.__name__ = bound.__qualname__ = name
    bound.__module__ = module
    bound.__signature__ = form.signature  # type: ignore[attr-defined]
    bound.form = form  # type: ignore[attr-defined]
    bound.__doc__ = f"NATTEN's ``{name}{form.signature}``. {_LAYOUT[form.kind]}"
    return bound


_LAYOUT = {
    QK.name: "Heads-first, unscaled; ``[B, H, *shape, slots]``, after which additional keys follow.",
    AV.name: "Heads-first; attn ``[B, H, *shape, slots]`` -> ``[B, H, *shape, D_v]``.",
    "fused": "Heads-last: ``[B, *shape, H, D]`` -> ``[B, *shape, H, D_v]``.",
    FULL.name: "Heads-last: ``[B, S, H, D]`` -> ``[B, S, H, D_v]``.",
    "merge": "Attention over the union of the parts' keys.",
}


def module_class(name: str, form: Form, module: str, base: Any, methods: dict[str, Any]) -> type:
    """The class ``name`` of ``module``: ``base`` with a generation's constructor and ``methods``."""

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        given = form.bind(name, args, kwargs)
        if not form.rank:
            self.rank = module_rank(name, given["na_dim"])
        base.__init__(self, **module_arguments(name, form, given))
        self.late_dilation = form.defaults.get("dilation", 1) is given["dilation"] is None

    text = f"NATTEN's ``{name}{form.signature}``; state dict as :class:`{base.__name__}`."
    own = {"__init__": __init__, "__module__": module, "__doc__": text, "__signature__": form.signature, "form": form}
    made: type = type(name, (base,), own | methods)
    return made


def module_rank(name: str, na_dim: Any) -> int:
    """``na_dim`` as a rank; ValueError unless it is one."""
    if type(na_dim) is not int or na_dim not in RANKS:
        raise ValueError(f"{name}: na_dim must be one of {', '.join(map(str, RANKS))}; got {na_dim!r}")
    return na_dim


def module_arguments(name: str, form: Form, given: dict[str, Any]) -> dict[str, Any]:
    """The arguments of today's constructor."""
    dim = given.get("embed_dim", given.get("dim"))
    kernel_size, dilation = legacy_window(name, form, given)
    if given.get("use_experimental_ops"):
        _ignore(name, "use_experimental_ops")
    # The first generation's modules always had an rpb; 0.14.5 and 0.15 called its switch 'bias'.
    always = "dim" in given and "rel_pos_bias" not in given
    made = {
        "embed_dim": dim,
        "num_heads": given["num_heads"],
        "kernel_size": kernel_size,
        "dilation": 1 if dilation is None else dilation,
        "rel_pos_bias": given.get("rel_pos_bias", given.get("bias", always)),
    }
    same = ("stride", "is_causal", "qkv_bias", "qk_scale", "attn_drop", "proj_drop")
    made |= {argument: given[argument] for argument in same if argument in given}
    # Public models pass False for None, as upstream's `qk_scale or ...` took it.
    return made | ({"qk_scale": None} if made["qk_scale"] is False else {})


# --- arguments -------------------------------------------------------------------------------------


def legacy_window(name: str, form: Form, given: dict[str, Any]) -> tuple[Any, Any]:
    """kernel_size and dilation as today's ops take them; dilation None where upstream worked it out later."""
    if "kernel_size" not in given:
        return _inferred_kernel_size(name, form, given), given["dilation"]
    kernel_size, dilation = given["kernel_size"], given["dilation"]
    if "kernel_size_d" in given:
        depth, depth_dilation = given["kernel_size_d"], given["dilation_d"]
        # None is the modules' default: the same as on the other axes.
        kernel_size = (kernel_size if depth is None else depth, kernel_size, kernel_size)
        dilation = (dilation if depth_dilation is None else depth_dilation, dilation, dilation)
    return kernel_size, dilation


def _inferred_kernel_size(name: str, form: Form, given: dict[str, Any]) -> int:
    """The window's size from rpb ``[H, 2 * w - 1, ...]`` or the weights ``[..., w ** rank]``."""
    if form.kind == QK.name:
        if given["rpb"] is None:
            raise TypeError(f"{name}: rpb must be a tensor, because the window's size follows from it; got None")
        return (int(given["rpb"].shape[-1]) + 1) // 2
    slots = int(given["attn"].shape[-1])
    size = round(slots ** (1 / form.rank))
    if size**form.rank != slots:
        raise ValueError(f"{name}: attn must have kernel_size ** {form.rank} slots; got {slots}")
    return size


def pads(form: Form) -> bool:
    """Whether a generation's modules add zeros to inputs shorter than the window: up to 0.15."""
    return "dim" in form.names and "is_causal" not in form.names


def latest_dilation(shape: tuple[int, ...], kernel_size: tuple[int, ...]) -> int:
    """What 0.14.1 to 0.14.4 took for ``dilation=None``: the widest that fits the shortest axis."""
    return max(min(shape) // kernel_size[0], 1)


def padding(shape: tuple[int, ...], kernel_size: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[int, ...]:
    """Tokens of zeros that modules up to 0.15 add at the end of each axis shorter than its window."""
    return tuple(max(0, w * d - length) for length, w, d in zip(shape, kernel_size, dilation, strict=True))


def heads_first_rank(name: str, rank: int, tensors: dict[str, Any]) -> None:
    """ValueError unless every tensor is ``[batch, heads, *shape, dim]``, as upstream's split ops take them."""
    axes = ", ".join("XYZ"[:rank]) if rank > 1 else "L"
    for which, tensor in tensors.items():
        shape = tuple(getattr(tensor, "shape", ()))
        if hasattr(tensor, "shape") and len(shape) != rank + 3:
            raise ValueError(f"{name}: {which} must be [batch, heads, {axes}, dim] ({rank + 3}-D); got {shape}")


def additional(name: str, which: str, tensor: Any, wanted: tuple[int, int, int]) -> None:
    """ValueError unless additional tensors of the split ops are ``[batch, heads, any number, dim]``."""
    batch, heads, dim = wanted
    shape = tuple(tensor.shape)
    if len(shape) != 4 or (*shape[:2], shape[3]) != wanted:
        raise ValueError(
            f"{name}: {which} must be [batch, heads, any number, dim] = ({batch}, {heads}, any, {dim}); got {shape}"
        )


def window_slots(name: str, attn: Any, additional: int, kernel_size: Any, rank: int) -> int:
    """The window's own slots of ``attn [..., slots + additional]``; ValueError if attn has another number."""
    sizes = tuple(kernel_size) if hasattr(kernel_size, "__iter__") else (kernel_size,) * rank
    slots, found = math.prod(sizes), int(attn.shape[-1])
    if found != slots + additional:
        raise ValueError(
            f"{name}: attn must have prod(kernel_size) + additional values = {slots} + {additional} slots; got {found}"
        )
    return slots


# Arguments of upstream's fused ops that today's ops have as well.
_SHARED = frozenset(
    {
        "query",
        "key",
        "value",
        "kernel_size",
        "stride",
        "dilation",
        "is_causal",
        "scale",
        "rpb",
        "additional_keys",
        "additional_values",
        "backend",
        "return_lse",
        "seqlens_Q",
        "seqlens_KV",
        "cumulative_seqlen_Q",
        "cumulative_seqlen_KV",
        "max_seqlen_Q",
        "max_seqlen_KV",
    }
)


def _ignore(name: str, argument: str) -> None:
    log_once(f"{name}: '{argument}' tunes upstream's CUDA kernels; accepted and ignored")


def shared_arguments(name: str, form: Form, given: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call that today's op takes; those that tune CUDA kernels are logged and left out."""
    for argument, value in given.items():
        # By identity: a knob may be any object, and all that matters is whether it is the default.
        if argument not in _SHARED and value is not form.defaults[argument]:
            _ignore(name, argument)
    kept = {argument: value for argument, value in given.items() if argument in _SHARED}
    # From 0.20 to 0.21.1, scale had the position that is_causal has had since.
    if form.kind == FULL.name and type(kept.get("is_causal")) is float:
        kept |= {"is_causal": False, "scale": kept["is_causal"]}
    return kept
