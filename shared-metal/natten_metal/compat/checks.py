"""Upstream's helpers that need no framework: checks of arguments and shapes, tuples, environment, logs.

They return and reject the same as upstream's, except where this package's rules are wider (a window of 1 is legal), and
with this package's error texts. A tensor is anything with a ``shape``.
"""

import logging
import os
from collections.abc import Sequence
from enum import Enum, IntEnum
from typing import Any

from ..plan.backends import log

Ints = tuple[int, ...]
Bools = tuple[bool, ...]


class KernelSchedule(Enum):
    """Upstream's schedules of its Hopper kernels."""

    NonPersistent = 0
    WarpSpecializedCooperative = 1
    WarpSpecializedPingpong = 2


_SCHEDULES = {
    "non": KernelSchedule.NonPersistent,
    "coop": KernelSchedule.WarpSpecializedCooperative,
    "pp": KernelSchedule.WarpSpecializedPingpong,
}


# --- tuples ----------------------------------------------------------------------------------------


def create_dim_from_int(na_dim: int, value: int) -> Ints:
    """``value`` on each of ``na_dim`` axes."""
    return (value,) * na_dim


def create_causal_arg_from_bool(na_dim: int, value: bool) -> Bools:
    """``value`` on each of ``na_dim`` axes."""
    return (value,) * na_dim


def ceil_div_int(x: int, y: int) -> int:
    """``x / y`` rounded up."""
    return -(-x // y)


def ceil_div_tuple(X: Sequence[int], Y: Sequence[int]) -> Ints:
    """Quotients rounded up, element by element; ValueError unless the lengths are equal."""
    return tuple(ceil_div_int(x, y) for x, y in zip(X, Y, strict=True))


def mul_tuple(X: Sequence[int], Y: Sequence[int]) -> Ints:
    """Products, element by element; ValueError unless the lengths are equal."""
    return tuple(x * y for x, y in zip(X, Y, strict=True))


def sub_tuple(X: Sequence[int], Y: Sequence[int]) -> Ints:
    """Differences, element by element; ValueError unless the lengths are equal."""
    return tuple(x - y for x, y in zip(X, Y, strict=True))


# --- arguments -------------------------------------------------------------------------------------


def _per_axis(name: str, na_dim: int, given: Any, kind: type, least: int | None, default: Any = None) -> Any:
    """One value per axis, of ``kind`` and at least ``least``; ValueError otherwise, as upstream."""
    if given is None and default is not None:
        given = default
    values = (given,) * na_dim if type(given) is kind else given
    legal = isinstance(values, Sequence) and len(values) == na_dim and all(type(each) is kind for each in values)
    if not legal or (least is not None and min(values) < least):
        rule = f" >= {least}" if least is not None else ""
        raise ValueError(f"{name} must be one {kind.__name__}{rule} or {na_dim} of them; got {given!r}")
    return tuple(values)


def check_kernel_size_arg(na_dim: int, kernel_size: Any) -> Ints:
    """kernel_size on each axis; ValueError unless ints >= 1."""
    found: Ints = _per_axis("kernel_size", na_dim, kernel_size, int, 1)
    return found


def check_input_size_arg(na_dim: int, input_size: Any) -> Ints:
    """The length of each axis; ValueError unless ints >= 1."""
    found: Ints = _per_axis("input_size", na_dim, input_size, int, 1)
    return found


def check_stride_arg(na_dim: int, stride: Any) -> Ints:
    """stride on each axis, None is 1; ValueError unless ints >= 1."""
    found: Ints = _per_axis("stride", na_dim, stride, int, 1, 1)
    return found


def check_dilation_arg(na_dim: int, dilation: Any) -> Ints:
    """dilation on each axis, None is 1; ValueError unless ints >= 1."""
    found: Ints = _per_axis("dilation", na_dim, dilation, int, 1, 1)
    return found


def check_causal_arg(na_dim: int, is_causal: Any) -> Bools:
    """is_causal on each axis, None is False; ValueError unless bools."""
    found: Bools = _per_axis("is_causal", na_dim, False if is_causal is None else is_causal, bool, None)
    return found


def check_all_args(na_dim: int, kernel_size: Any, stride: Any, dilation: Any, is_causal: Any) -> tuple[Any, ...]:
    """kernel_size, stride, dilation and is_causal on each axis; ValueError for invalid ones."""
    return (
        check_kernel_size_arg(na_dim, kernel_size),
        check_stride_arg(na_dim, stride),
        check_dilation_arg(na_dim, dilation),
        check_causal_arg(na_dim, is_causal),
    )


def check_all_args_without_stride(na_dim: int, kernel_size: Any, dilation: Any, is_causal: Any) -> tuple[Any, ...]:
    """The same for 0.17: kernel_size, dilation and is_causal."""
    checked = check_all_args(na_dim, kernel_size, 1, dilation, is_causal)
    return checked[0], *checked[2:]


def check_tile_shape(tile_shape: Any) -> Ints:
    """A tile's shape; ValueError unless at most three ints."""
    if not isinstance(tile_shape, Sequence) or len(tile_shape) > 3 or not all(type(each) is int for each in tile_shape):
        raise ValueError(f"tile_shape must be at most 3 ints; got {tile_shape!r}")
    return tuple(tile_shape)


def check_tiling_config(na_dim: int, tiling_config: Any) -> tuple[Ints, Ints]:
    """0.17's pair of query and key/value tile shapes, ``na_dim`` ints each; ValueError otherwise."""
    if not isinstance(tiling_config, tuple) or len(tiling_config) != 2:
        raise ValueError(f"tiling_config must be two tile shapes; got {tiling_config!r}")
    query, key = (_per_axis("tiling_config", na_dim, shape, int, 1) for shape in tiling_config)
    return query, key


def check_backward_tiling_config(na_dim: int, tiling_config: Any) -> tuple[Ints, Ints, Ints, bool]:
    """0.17's query and key/value tile shapes, key/value splits, and a flag; ValueError otherwise."""
    if not isinstance(tiling_config, tuple) or len(tiling_config) != 4 or type(tiling_config[3]) is not bool:
        raise ValueError(f"tiling_config must be two tile shapes, splits and a bool; got {tiling_config!r}")
    query, key, splits = (_per_axis("tiling_config", na_dim, shape, int, 1) for shape in tiling_config[:3])
    return query, key, splits, tiling_config[3]


def check_kernel_schedule(kernel_schedule: Any) -> KernelSchedule | None:
    """A schedule by name ('non', 'coop', 'pp'), itself, or None; ValueError for anything else."""
    if kernel_schedule is None or isinstance(kernel_schedule, KernelSchedule):
        return kernel_schedule
    if kernel_schedule not in _SCHEDULES:
        raise ValueError(f"kernel_schedule must be one of {', '.join(_SCHEDULES)}; got {kernel_schedule!r}")
    return _SCHEDULES[kernel_schedule]


def get_num_na_weights(kernel_size: Any) -> int:
    """Slots of a window: the product of its sizes, or the int itself."""
    if isinstance(kernel_size, int):
        return kernel_size
    product = 1
    for size in kernel_size:
        product *= size
    return product


# --- shapes ----------------------------------------------------------------------------------------


def check_args_against_input(
    input_tensor: Any, kernel_size: Ints, stride: Ints, dilation: Ints, is_causal: Bools
) -> None:
    """ValueError unless the dilated window fits ``[B, *shape, H, D]`` and stride is at most the window."""
    shape = tuple(input_tensor.shape[1:-2])
    for axis, (length, w, s, d) in enumerate(zip(shape, kernel_size, stride, dilation, strict=True)):
        if w * d > length:
            raise ValueError(
                f"kernel_size * dilation must fit the input; axis {axis} has {w} * {d} = {w * d} > {length}"
            )
        if s > w:
            raise ValueError(f"stride must be at most kernel_size; axis {axis} has {s} > {w}")


def is_self_attention(
    input_tensor: Any, kernel_size: Ints, is_causal: Bools, has_additional_attention: bool = True
) -> bool:
    """Whether the windows cover everything, so that full attention gives the same result."""
    shape = tuple(input_tensor.shape[1:-2])
    if len(shape) == 1 and not has_additional_attention:
        return kernel_size[0] == shape[0]
    return tuple(kernel_size) == shape and not any(is_causal)


def check_additional_keys(input_tensor: Any, additional_keys: Any) -> int:
    """The number of additional keys ``[batch, heads, number, dim]``; ValueError unless the rest matches the input.
    None: 0.
    """
    if additional_keys is None:
        return 0
    shape, wanted = tuple(additional_keys.shape), tuple(input_tensor.shape)
    if len(shape) != 4 or (*shape[:2], shape[3]) != (*wanted[:2], wanted[-1]):
        raise ValueError(
            f"additional_keys must be [batch, heads, any number, dim] = ({wanted[0]}, {wanted[1]}, any, {wanted[-1]}); "
            f"got {shape}"
        )
    return int(shape[2])


def check_additional_values(attn_tensor: Any, additional_values: Any, value: Any, expected_attn_weights: int) -> int:
    """How many there are; ValueError unless attn has the window's weights and one for each of them. None: 0."""
    number = 0
    if additional_values is not None:
        number = check_additional_keys(value, additional_values)
    found = int(attn_tensor.shape[-1])
    if found != expected_attn_weights + number:
        raise ValueError(
            f"attn must have {expected_attn_weights} + {number} weights of window and additional values; got {found}"
        )
    return number


# --- devices, environment, logs --------------------------------------------------------------------------


def get_device_cc(device: Any = None, *, device_index: Any = None) -> int:
    """Compute capability of a CUDA device as ``10 * major + minor``; 0 here, where there is no CUDA."""
    return 0


class LogLevel(IntEnum):
    """Upstream's names of logging's levels."""

    Default = logging.INFO
    Debug = logging.DEBUG
    Info = logging.INFO
    Warning = logging.WARNING
    Error = logging.ERROR
    Critical = logging.CRITICAL


def get_logger(name: str) -> logging.Logger:
    """logging's logger of that name."""
    return logging.getLogger(name)


def log_or_raise_error(msg: str, raise_error: bool = False, exception: Any = RuntimeError) -> None:
    """Raise ``exception(msg)``, or log it."""
    if raise_error:
        raise exception(msg)
    log.debug(msg)


def parse_env_flag(env_var: str, default: bool) -> bool:
    """An environment variable's '0' or '1'; the default for anything else."""
    return {"0": False, "1": True}.get(os.environ.get(env_var, ""), default)


def parse_env_int(env_var: str, default: int) -> int:
    """An environment variable's integer; the default for anything else."""
    try:
        return int(os.environ.get(env_var, ""))
    except ValueError:
        return default


def parse_env_str(env_var: str, default: str) -> str:
    """An environment variable's text, or the default."""
    return os.environ.get(env_var, str(default))


TUPLES = {
    each.__name__: each
    for each in (create_dim_from_int, create_causal_arg_from_bool, ceil_div_int, ceil_div_tuple, mul_tuple, sub_tuple)
}
ARGUMENTS = {
    each.__name__: each
    for each in (
        check_kernel_size_arg,
        check_input_size_arg,
        check_stride_arg,
        check_dilation_arg,
        check_causal_arg,
        check_tile_shape,
        check_tiling_config,
        check_backward_tiling_config,
        check_kernel_schedule,
        get_num_na_weights,
        check_args_against_input,
        is_self_attention,
        log_or_raise_error,
    )
}
ADDITIONAL = {each.__name__: each for each in (check_additional_keys, check_additional_values)}
ENVIRONMENT = {each.__name__: each for each in (parse_env_flag, parse_env_int, parse_env_str)}
LOG = {"get_logger": get_logger, "LogLevel": LogLevel, "NattenLogger": get_logger}
