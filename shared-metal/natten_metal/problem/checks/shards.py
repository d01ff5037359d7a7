"""The rules of a problem that several processes share, each with a shard of it.

What one process rejects, every process raises: the checks here read what all of them have exchanged.
"""

from collections.abc import Sequence
from typing import Any, NoReturn

from .arguments import is_int, reject_type, shown


def cut_axes(face: str, axis: Any, rank: int, grid: Sequence[int]) -> tuple[int, ...]:
    """The axes that are cut, one for each entry of ``grid``, which counts the processes along each of them."""
    axes = (axis,) if is_int(axis) else axis
    if not isinstance(axes, Sequence) or not all(map(is_int, axes)):
        reject_type(face, "axis", axis, "an int or a sequence of ints")
    found = tuple(int(each) for each in axes)
    if not 1 <= len(found) <= 2 or len(set(found)) < len(found) or not all(0 <= each < rank for each in found):
        raise ValueError(f"{face}: axis must be one or two different axes of 0..{rank - 1}; got {shown(axis)}")
    if len(found) != len(grid):
        raise ValueError(
            f"{face}: axis must name one axis for each dimension of the processes' grid; got axis {shown(axis)} "
            f"and processes {tuple(grid)}"
        )
    return found


def reject_grid(face: str, given: str, wanted: str) -> NoReturn:
    """ValueError: the processes do not form the grid that ``axis`` needs."""
    raise ValueError(f"{face}: {wanted}; got {given}")


def reject_group(face: str, group: Any, wanted: str) -> NoReturn:
    """TypeError: ``group`` is not one of the framework's."""
    reject_type(face, "group", group, wanted)


def reject_placements(face: str, rule: str) -> NoReturn:
    """ValueError: the shards of distributed tensors are not those of one problem."""
    raise ValueError(f"{face}: {rule}")


def no_group(face: str, how: str) -> NoReturn:
    raise ValueError(f"{face}: there are no processes to share the problem with; {how}")


def same_call(face: str, texts: Sequence[str]) -> NoReturn:
    """ValueError: processes called with different arguments. texts: the call of each."""
    other = next(process for process, text in enumerate(texts) if text != texts[0])
    raise ValueError(
        f"{face}: every process must make the same call, with shards that differ only along the cut axes; "
        f"process 0 called with {texts[0]}; process {other} with {texts[other]}"
    )


def same_parameters(face: str, counts: Sequence[Sequence[int]]) -> None:
    """ValueError: the modules of the processes differ. counts: parameters and their numbers in all, of each process."""
    for process, (parameters, numbers) in enumerate(counts):
        if [parameters, numbers] != list(counts[0]):
            raise ValueError(
                f"{face}: every process must pass the same module; process 0 has {counts[0][0]} parameters with "
                f"{counts[0][1]} numbers, process {process} has {parameters} with {numbers}"
            )


def failed_elsewhere(face: str, process: int, text: str) -> NoReturn:
    """ValueError: another process rejected its arguments."""
    raise ValueError(f"{face}: process {process} could not take part: {text}")


def bounds_of(
    face: str, axes: Sequence[int], grid: Sequence[int], lengths: Sequence[Sequence[Sequence[int]]]
) -> list[tuple[int, ...]]:
    """Where the shards begin along each cut axis, and its length.

    lengths: of each process, those of query, key and value along each of ``axes``.
    """
    for process, (query, key, value) in enumerate(lengths):
        for axis, q, k, v in zip(axes, query, key, value, strict=True):
            if not q == k == v:
                raise ValueError(
                    f"{face}: query, key and value of a process must be shards of the same tokens; process {process} "
                    f"has {q}, {k} and {v} tokens along axis {axis}"
                )
            if q == 0:
                raise ValueError(f"{face}: every process must hold tokens; process {process} has 0 along axis {axis}")
    found = []
    for at, (axis, along) in enumerate(zip(axes, grid, strict=True)):
        stride = grid[1] if len(grid) == 2 and at == 0 else 1
        bounds = [0]
        for coordinate in range(along):
            row = [process for process in range(len(lengths)) if process // stride % along == coordinate]
            length = lengths[row[0]][0][at]
            for process in row:
                if lengths[process][0][at] != length:
                    raise ValueError(
                        f"{face}: processes at the same coordinate along axis {axis} must hold equally many tokens; "
                        f"process {row[0]} has {length}, process {process} has {lengths[process][0][at]}"
                    )
            bounds.append(bounds[-1] + length)
        found.append(tuple(bounds))
    return found


def reject_module(face: str) -> NoReturn:
    """NotImplementedError: a module on shards with an argument that it takes only with whole inputs."""
    raise NotImplementedError(
        f"{face}: a module whose tokens are shared among processes takes no cache, no item sizes and no attn_drop "
        "in training"
    )
