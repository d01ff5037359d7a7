"""Compare two runs of `demo train` with one seed, and draw both loss curves into one picture.

The packages round differently, and training amplifies differences: the first steps must agree closely, the end only in
how well the digits are read.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from natten_mps._metal.tools.curves import draw_curves
from natten_mps._metal.tools.train import Record, curve_of

FIRST = 30
# The loss starts at 2.5. On one CPU the runs differ by 1e-6; the bound leaves room for a GPU's exp and order of sums.
DEFAULT_BOUND = 1e-3
ACCURACY_BOUND = 0.01


def load_record(path: Path) -> Record:
    """The record that `demo train --record` wrote. ValueError for anything else."""
    try:
        record = Record(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: not a record of a training: {error}") from None
    if not record.losses or not np.isfinite(record.losses).all():
        raise ValueError(f"{path}: expected finite losses")
    return record


def differences(a: Record, b: Record) -> tuple[float, float, int]:
    """Largest difference of the losses in the first 30 steps and in all steps, and the number of digits classified
    differently.

    ValueError if the runs differ in steps or seed.
    """
    for name, x, y in (
        ("steps", len(a.losses), len(b.losses)),
        ("seed", a.seed, b.seed),
        ("held-out images", len(a.predictions), len(b.predictions)),
    ):
        if x != y:
            raise ValueError(f"different {name}: {x} of {a.package}, {y} of {b.package}")
    apart = np.abs(np.subtract(a.losses, b.losses))
    return float(apart[:FIRST].max()), float(apart.max()), int(np.not_equal(a.predictions, b.predictions).sum())


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path, help="JSON file of one training")
    parser.add_argument("second", type=Path, help="JSON file of the other training")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="where the picture goes, PNG")
    parser.add_argument(
        "--bound",
        type=float,
        default=DEFAULT_BOUND,
        help=f"largest difference of the losses in the first {FIRST} steps that passes (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    try:
        records = [load_record(path) for path in (options.first, options.second)]
        early, largest, misread = differences(*records)
        curves = [curve_of(record) for record in records]
        draw_curves("The same training in both packages: loss by step", curves).save(options.out, format="PNG")
    except (OSError, ValueError) as error:
        print(f"compare_training: {error}", file=sys.stderr)
        return 2
    a, b = records
    agrees = early <= options.bound and abs(a.after - b.after) <= ACCURACY_BOUND
    print(
        f"{a.package} and {b.package} {'agree' if agrees else 'DISAGREE'}: "
        f"losses differ by at most {early:.3g} in the first {FIRST} steps (bound {options.bound:g}), "
        f"by {largest:.3g} in all {len(a.losses)}\n"
        f"accuracy {a.after:.2%} and {b.after:.2%} (bound {ACCURACY_BOUND:.0%} apart); "
        f"{misread} of {len(a.predictions)} digits were read differently\n"
        f"wrote {options.out}"
    )
    return 0 if agrees else 1


if __name__ == "__main__":
    sys.exit(main())
