"""The work of well-known problems, as a committed table: ``python -m metal.work_table --write`` rebuilds it.

Run it in ``tests-parity``. executed counts the bricks of 8x8 pairs of one launch, useful is pairs / 64, and ratio is
their quotient, 1 for a kernel that computes only what the windows hold. run and flat are the ratios of the two ways to
cut a box into bricks, in its rows or across them, each with the best patch for it; bricks says which the launch has.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections import Counter
from pathlib import Path
from typing import Any

from natten_mps._metal.metal.op_launches import backward, forward
from natten_mps._metal.metal.tiles import patches
from natten_mps._metal.problem.interval import row_interval
from natten_mps._metal.problem.mask import pairs
from natten_mps._metal.problem.problem import Axis, Problem
from natten_mps._metal.problem.window import group_length

TABLE = Path(__file__).parent / "work.tsv"
COLUMNS = (
    *("problem", "kernel", "patch", "heads", "simdgroups", "reads", "bricks"),
    *("executed", "full", "useful", "ratio", "run", "flat"),
)


def problem(shape: tuple[int, ...], window: Any, dim: int, heads: int, **given: Any) -> Problem:
    """A float16 problem; one number stands for all axes."""

    def per_axis(value: Any) -> tuple[Any, ...]:
        return value if isinstance(value, tuple) else (value,) * len(shape)

    s, d, causal = (per_axis(given.pop(name, default)) for name, default in (("s", 1), ("d", 1), ("causal", False)))
    batch, kv_heads = given.pop("batch", 1), given.pop("kv_heads", heads)
    assert not given
    return Problem(
        "na", batch, shape, shape, heads, kv_heads, dim, dim, per_axis(window), s, d, causal, dim**-0.5, "float16"
    )


NAMED = {
    "NAT-T 56x56 K7": problem((56, 56), 7, 32, 2, batch=16),
    "DiNAT 56x56 K7 d8": problem((56, 56), 7, 32, 2, batch=16, d=8),
    "HDiT 128x128 K7": problem((128, 128), 7, 64, 8),
    "64x64 K13": problem((64, 64), 13, 64, 16),
    "FLUX 256x256 K80": problem((256, 256), 80, 128, 24),
    "FLUX 256x256 K80 s16": problem((256, 256), 80, 128, 24, s=16),
    "Hunyuan 30x48x80 K18x24x24": problem((30, 48, 80), (18, 24, 24), 128, 24),
    "Hunyuan 30x48x80 K18x24x24 s16x8x8": problem((30, 48, 80), (18, 24, 24), 128, 24, s=(16, 8, 8)),
    "Aurora 8x90x180 K2x12x6": problem((8, 90, 180), (2, 12, 6), 64, 8),
    "All-in-one 8192 K5": problem((8192,), 5, 32, 4),
    "LLM 32768 K1024 causal": problem((32768,), 1024, 128, 32, causal=True),
    "LLM 32768 K1024 causal, 8 kv heads": problem((32768,), 1024, 128, 32, causal=True, kv_heads=8),
    "16x24x24 K7x9x9": problem((16, 24, 24), (7, 9, 9), 64, 4),
    "128x128 K41": problem((128, 128), 41, 64, 4),
    "32x32x32 K3": problem((32, 32, 32), 3, 32, 4),
    "16x16x16 K3": problem((16, 16, 16), 3, 32, 4),
    "NAT-T 56x56 K7, 8 heads on 1": problem((56, 56), 7, 32, 8, kv_heads=1),
}


def useful(one: Problem) -> float:
    """How many bricks would hold all pairs of all heads and batch items without gaps."""
    return one.batch * one.heads * pairs(one) / 64


def box_lengths(axis: Axis, transposed: bool, extent: int) -> Counter[int]:
    """How many patches of ``extent`` rows on an axis have boxes of each length."""
    found: Counter[int] = Counter()
    for group in range(axis.dilation):
        queries, keys = (group_length(length, group, axis.dilation) for length in (axis.queries, axis.keys))
        rows, columns = (keys, queries) if transposed else (queries, keys)
        for first in range(0, rows, extent):
            low, _ = row_interval(axis, transposed, first, columns)
            _, high = row_interval(axis, transposed, min(first + extent, rows) - 1, columns)
            found[max(min(high, columns) - low, 0)] += 1
    return found


def best_bricks(one: Problem, transposed: bool, flat: bool) -> int:
    """Bricks of 8 columns of a patch's box, in its rows or across them; with the best patch for that."""
    choices = []
    for heads in (1,) if transposed else [h for h in (1, 2, 4, 8) if one.group_heads % h == 0]:
        for patch in patches(one.rank, heads):
            extents = patch[3 - one.rank :]
            lengths = [box_lengths(a, transposed, e).items() for a, e in zip(one.axes, extents, strict=True)]
            boxes = [list(zip(*box, strict=True)) for box in itertools.product(*lengths)]
            count = sum(
                math.prod(times) * (-(-math.prod(size) // 8) if flat else math.prod(size[:-1]) * -(-size[-1] // 8))
                for size, times in boxes
            )
            choices.append(count * one.group_heads // heads)
    return min(choices) * one.batch * one.kv_heads


def rows() -> list[tuple[str, ...]]:
    """The table without its header: the three walks of each problem."""
    found = []
    for name, one in NAMED.items():
        launches = [launch for launch in (*forward(one), *backward(one, False)) if launch.bricks]
        for launch in launches:
            i = launch.instance
            patch, reads = "x".join(map(str, i.patch[3 - one.rank :])), "staged" if i.stage else "direct"
            counts = [launch.bricks, *(best_bricks(one, i.record.transposed, flat) for flat in (False, True))]
            found.append(
                (
                    name,
                    i.template,
                    patch,
                    str(i.heads),
                    str(i.simdgroups),
                    reads,
                    "flat" if i.flat else "run",
                    str(launch.bricks),
                    str(launch.full),
                    f"{useful(one):g}",
                    *(f"{count / useful(one):.4f}" for count in counts),
                )
            )
    return found


def text() -> str:
    """The whole table, tab-separated."""
    return "\n".join("\t".join(row) for row in [COLUMNS, *rows()]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="replace the committed table")
    if parser.parse_args().write:
        TABLE.write_text(text(), encoding="ascii")
    print(text(), end="")


if __name__ == "__main__":
    main()
