"""Compare what the demos of both packages computed, in 8-bit levels.

A level is one step of an 8-bit channel. Integer arrays hold levels; floating-point arrays hold
intensities with 1.0 as white, so that one level is 1/255.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

WHITE = 255.0
# Both packages compute the same sums in float32 in different orders; a tenth of a level is invisible.
DEFAULT_BOUND = 0.1


def load_levels(path: Path) -> NDArray[np.float64]:
    """The array in `path` as float64, in 8-bit levels. ValueError for anything but finite numbers."""
    array = np.load(path, allow_pickle=False)
    if array.size == 0 or not np.isfinite(array).all():
        raise ValueError(f"{path}: expected finite numbers, got shape {array.shape}, dtype {array.dtype}")
    scale = WHITE if np.issubdtype(array.dtype, np.floating) else 1.0
    return array.astype(np.float64) * scale


def max_difference(first: Path, second: Path) -> float:
    """The largest absolute difference of both arrays, in 8-bit levels. ValueError if their shapes differ."""
    a, b = load_levels(first), load_levels(second)
    if a.shape != b.shape:
        raise ValueError(f"the shapes differ: {a.shape} in {first}, {b.shape} in {second}")
    return float(np.abs(a - b).max())


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path, help=".npy file of one demo")
    parser.add_argument("second", type=Path, help=".npy file of the other demo")
    parser.add_argument(
        "--bound",
        type=float,
        default=DEFAULT_BOUND,
        help="largest difference that passes, in 8-bit levels (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    try:
        difference = max_difference(options.first, options.second)
    except (OSError, ValueError) as error:
        print(f"compare_demo: {error}", file=sys.stderr)
        return 2
    agrees = difference <= options.bound
    verdict = "agree" if agrees else "DISAGREE"
    print(
        f"{options.first.stem} and {options.second.stem} {verdict}: "
        f"largest difference {difference:.3g} 8-bit levels, bound {options.bound:g}"
    )
    return 0 if agrees else 1


if __name__ == "__main__":
    sys.exit(main())
