"""The rules of tensors: their dtype, rank and shape, and how those of one call must agree."""

from typing import Any, NoReturn

from ..ops import KEY_MASK
from ..problem import DTYPES, RANKS, Problem, TensorSpec
from .window import check_rpb_stride


def require_dtype(face: str, name: str, dtype: str) -> None:
    """Attention takes floating-point tensors, and a mask of bools."""
    if name == KEY_MASK.name:
        if dtype != "bool":
            raise TypeError(f"{face}: {name} must be bool; got {dtype}")
    elif dtype not in DTYPES:
        raise TypeError(f"{face}: {name} must be {', '.join(DTYPES[:-1])} or {DTYPES[-1]}; got {dtype}")


def tensor_rank(face: str, name: str, spec: TensorSpec, rank: int | None) -> int:
    """The number of axes of a heads-last tensor ``[batch, *shape, heads, dim]``."""
    found = len(spec.shape) - 3
    if rank is None and found not in RANKS:
        raise ValueError(
            f"{face}: {name} must be [batch, *shape, heads, dim] with 1, 2 or 3 axes in shape; got {spec.shape}"
        )
    if rank is not None and found != rank:
        axes = ", ".join("XYZ"[:rank]) if rank > 1 else "L"
        raise ValueError(f"{face}: {name} must be [batch, {axes}, heads, dim] ({rank + 3}-D); got {spec.shape}")
    return found


def same(face: str, what: str, values: dict[str, Any], error: type[Exception] = ValueError) -> None:
    """Raise ``error`` unless the values, given by tensor name, are equal; what: shape, dtype, ..."""
    # A compiler's symbolic sizes can be compared but not hashed.
    first, *others = values.values()
    if any(other != first for other in others):
        names, found = list(values), [str(value) for value in values.values()]
        raise error(f"{face}: {listed(names)} must share one {what}; got {listed(found)}")


def listed(words: list[str]) -> str:
    """'a, b and c'."""
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def no_zero(face: str, sizes: dict[str, Any]) -> None:
    """Sizes that must not be zero, given by name."""
    for what, size in sizes.items():
        if size == 0 or (isinstance(size, tuple) and 0 in size):
            raise ValueError(f"{face}: {what} must not be zero; got {size}")


def check_heads(face: str, heads: int, kv_heads: int) -> None:
    """Each key/value head serves equally many query heads."""
    if heads % kv_heads:
        raise ValueError(f"{face}: query heads must be a multiple of key/value heads; got {heads} and {kv_heads}")


def check_rpb(face: str, rpb: TensorSpec, heads: int, kernel_size: tuple[int, ...], stride: tuple[int, ...]) -> None:
    """The shape of a relative positional bias."""
    wanted = (heads, *(2 * w - 1 for w in kernel_size))
    if rpb.shape != wanted:
        raise ValueError(f"{face}: rpb must be [heads, 2 * kernel_size - 1 per axis] = {wanted}; got {rpb.shape}")
    check_rpb_stride(face, "rpb", stride)


def check_additional(face: str, keys: TensorSpec | None, values: TensorSpec | None, problem: Problem) -> int:
    """How many additional keys there are; keys and values come together."""
    if keys is None and values is None:
        return 0
    if keys is None or values is None:
        missing = "additional_keys" if keys is None else "additional_values"
        raise ValueError(f"{face}: additional_keys and additional_values come together; {missing} is missing")
    p = problem
    for name, spec, dim in (
        ("additional_keys", keys, p.head_dim),
        ("additional_values", values, p.head_dim_v),
    ):
        found = spec.shape
        if len(found) != 4 or (found[0], *found[2:]) != (p.batch, p.kv_heads, dim):
            raise ValueError(
                f"{face}: {name} must be [batch, any number, kv heads, dim] = "
                f"({p.batch}, any, {p.kv_heads}, {dim}); got {found}"
            )
    if keys.shape[1] != values.shape[1]:
        raise ValueError(
            f"{face}: additional_keys and additional_values must share one length; "
            f"got {keys.shape[1]} and {values.shape[1]}"
        )
    return keys.shape[1]


def check_key_mask(face: str, mask: TensorSpec, key: TensorSpec) -> None:
    """ValueError unless a key mask has an entry for every key of every batch item."""
    wanted = key.shape[:-2]
    if mask.shape != wanted:
        raise ValueError(f"{face}: key_mask must be [batch, *key shape] = {wanted}; got {mask.shape}")
    same(face, "device", {"key": key.device, "key_mask": mask.device})


def agree(face: str, given: dict[str, TensorSpec], rpb: TensorSpec | None) -> None:
    """Tensors of one call share dtype, device and batch size; rpb has a dtype of its own and no batch."""
    same(face, "dtype", {name: spec.dtype for name, spec in given.items()}, TypeError)
    devices = {name: spec.device for name, spec in given.items()}
    same(face, "device", devices if rpb is None else devices | {"rpb": rpb.device})
    same(face, "batch size", {name: spec.shape[0] for name, spec in given.items() if spec.shape})


# --- tensors of a kind that no backend reads ----------------------------------------------------------------


def reject_wrapper(face: str, name: str, kind: str, advice: str) -> NoReturn:
    """A tensor of a wrapper class that no backend can look into."""
    raise NotImplementedError(f"{face}: {name} must be a plain tensor; got a {kind}. {advice}")


def reject_layout(face: str, name: str, layout: str) -> NoReturn:
    """A sparse tensor."""
    raise NotImplementedError(f"{face}: {name} must be a dense tensor; got layout {layout}. Use .to_dense()")


def reject_nested(face: str, name: str, rank: int | None, packs: bool) -> NoReturn:
    """A nested tensor. rank: of the face, if it has one; packs: whether the face takes packed sequences."""
    op = "na1d_varlen, na2d_varlen and na3d_varlen take" if rank is None else f"na{rank}d_varlen takes"
    if packs:
        op = "with seqlens_Q and seqlens_KV it takes packed sequences, and na1d_varlen"
    raise NotImplementedError(
        f"{face}: {name} must be a dense tensor; got a nested one. {op} lists of tensors: list({name}.unbind())"
    )


def reject_freed(face: str, name: str, elements: int) -> NoReturn:
    """ValueError: a tensor whose memory was freed."""
    raise ValueError(f"{face}: {name} has {elements} elements and no memory; was it freed?")
