"""Compiles every kernel that run.py launches from Metal to PTX, and packs them into one file.

    python benchmarks/gpu/build.py KERNELS.zip [--variant plan] [--problem NAME]

Needs clang 19, no GPU; run.py assembles the PTX where the GPU is.
"""

import argparse
import re
import sys
import zipfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jobs import ROOT, chosen, instances

from natten_metal.metal.source import Instance, library

sys.path.insert(0, str(ROOT / "tests-parity"))

from metal_emulator.to_ptx import to_ptx

SHUFFLE = re.compile(r"^\s*shfl\.sync\.\w+\.b32\s+(%r\d+), [^;]*;\n", re.MULTILINE)


def without_dead_shuffles(ptx: str) -> str:
    """The PTX without shuffles whose results are never read.

    The emulated 8x8 product shuffles both floats of a lane where only one is used. No compiler removes the other
    shuffle: ptxas leaves a branch in its place, 16 of them per product, which fragment the code.
    """
    uses = Counter(re.findall(r"%r\d+\b", ptx))
    return SHUFFLE.sub(lambda shuffle: "" if uses[shuffle[1]] == 1 else shuffle[0], ptx)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", type=Path)
    parser.add_argument("--variant", action="append", default=[], help="a key of jobs.CHANGES; default: plan")
    parser.add_argument("--problem", action="append", default=[], help="of jobs.py, or one of its SETS")
    parser.add_argument("--dtype", action="append", default=[], help="of timed problems; default: jobs.DTYPES")
    parser.add_argument("--arch", default="sm_90")
    options = parser.parse_args()
    todo = instances(chosen(options.problem, options.variant, options.dtype))

    def compiled(instance: Instance) -> str:
        return without_dead_shuffles(to_ptx(library((instance,)), arch=options.arch))

    with ThreadPoolExecutor(2) as pool, zipfile.ZipFile(options.target, "w", zipfile.ZIP_DEFLATED) as kernels:
        for instance, ptx in zip(todo, pool.map(compiled, todo), strict=True):
            kernels.writestr(f"{instance.name}.ptx", ptx)
            print(instance.name, flush=True)
    print(len(todo), "kernels for", options.arch)


if __name__ == "__main__":
    main()
