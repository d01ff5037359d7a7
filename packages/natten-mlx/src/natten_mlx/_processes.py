"""Processes of ``mx.distributed``, as :class:`natten_metal.api.shards.Transport` describes them.

In MLX's ring a process reaches only its neighbours, so messages pass from neighbour to neighbour, the shorter way
around; MLX's other backends send the same messages. MLX is lazy, and messages evaluated in an arbitrary order could be
taken for others of the same neighbour: they are therefore evaluated in the order of the program, on the one stream that
MLX has for communication. A process waits for its own keys before it sends them; everything else stays lazy.
"""

import math
import os
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

from ._metal.problem.checks import arguments
from ._metal.problem.checks import shards as rules
from ._metal.problem.shards import rounds


class Processes:
    """A group of ``mx.distributed``.

    A process that dies is a RuntimeError in its neighbours, from MLX's ring, when they evaluate; in the others as soon
    as those end. MLX has no time limit for one that is alive but does not answer: after ``timeout`` seconds this
    process says so and exits, and with it all others.
    """

    def __init__(self, face: str, group: Any, grid: Any, timeout: Any) -> None:
        if group is not None and not isinstance(group, mx.distributed.Group):
            rules.reject_group(face, group, "a group of mx.distributed or None")
        self.group = mx.distributed.init() if group is None else group
        self.index, self.count, self.face = self.group.rank(), self.group.size(), face
        self.timeout = arguments.number(face, "timeout", timeout)
        self.grid = (self.count,) if grid is None else tuple(arguments.count(face, "grid", each) for each in grid)
        if math.prod(self.grid) != self.count:
            rules.reject_grid(
                face, f"grid {self.grid} and {self.count}", "grid must have as many cells as there are processes"
            )
        self._sent: list[mx.array] = []
        self.start: Callable[[mx.array], None] = mx.async_eval

    def gather(self, numbers: Sequence[int]) -> list[list[int]]:
        if self.count == 1:
            return [list(numbers)]
        here = mx.array(list(numbers), dtype=mx.int64)
        watch = threading.Timer(self.timeout, self._give_up)
        watch.start()
        try:
            rows = mx.distributed.all_gather(here, group=self.group)
            found: list[list[int]] = rows.reshape(self.count, -1).tolist()  # type: ignore[assignment]
        finally:
            watch.cancel()
        return found

    def _give_up(self) -> None:
        """End the process: the main thread waits in MLX, and nothing else can interrupt it."""
        print(
            f"{self.face}: process {self.index} of {self.count} waited {self.timeout:g} s for the others to make the "
            "same call, and ends",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)

    def post(
        self, ends: Sequence[tuple[int, int]], sizes: Sequence[int], outgoing: dict[int, mx.array], like: mx.array
    ) -> Callable[[], dict[int, mx.array]]:
        held = dict(zip(outgoing, _evaluated(list(outgoing.values())), strict=True))
        bytes_of = [size * like.dtype.size for size in sizes]
        for each in rounds(self.count, ends):
            leaving = each.moving.get(self.index, ())
            coming = each.moving.get((self.index - each.step) % self.count, ())
            # A send waits for its receive: of two neighbours at least one receives first.
            if self.index % 2 == 0:
                self._send([held.pop(index) for index in leaving], each.step)
            arrived = self._receive([bytes_of[index] for index in coming], each.step)
            if self.index % 2:
                self._send([held.pop(index) for index in leaving], each.step)
            held |= dict(zip(coming, arrived, strict=True))
        return lambda: {index: flat.view(like.dtype) for index, flat in held.items()}

    def _send(self, parts: list[mx.array], step: int) -> None:
        if not parts:
            return
        payload = parts[0] if len(parts) == 1 else mx.concatenate(parts)
        self._sent.append(mx.distributed.send(payload, (self.index + step) % self.count, group=self.group))
        self.start(self._sent[-1])

    def _receive(self, sizes: list[int], step: int) -> list[mx.array]:
        if not sizes:
            return []
        neighbour = (self.index - step) % self.count
        whole = mx.distributed.recv((sum(sizes),), mx.uint8, neighbour, group=self.group)
        self.start(whole)
        ends = [sum(sizes[: at + 1]) for at in range(len(sizes) - 1)]
        return list(mx.split(whole, ends)) if ends else [whole]

    def total(self, tensors: tuple[mx.array, ...]) -> tuple[mx.array, ...]:
        found = []
        for tensor, flat in zip(tensors, _evaluated([each.reshape(-1) for each in tensors]), strict=True):
            summed = mx.distributed.all_sum(flat.view(tensor.dtype), group=self.group)
            self.start(summed)
            found.append(summed.reshape(tensor.shape))
        return tuple(found)

    def within_derivative(self) -> None:
        """From now on wait for each message: within a derivative, MLX starts nothing that is not waited for."""
        self.start = mx.eval

    def after_sends(self, results: tuple[mx.array, ...]) -> tuple[mx.array, ...]:
        """``results``, made to depend on the messages, so that a process has them only after its messages were sent."""
        sends, self._sent = self._sent, []
        return tuple(mx.depends(list(results), sends)) if sends else results


def _evaluated(arrays: list[mx.array]) -> list[mx.array]:
    """The values of vectors, as bytes that MLX's transformations do not follow."""
    raw = [mx.contiguous(array.view(mx.uint8)) for array in arrays]
    mx.eval(raw)
    return [mx.array(memoryview(each)) for each in raw]  # type: ignore[arg-type]
