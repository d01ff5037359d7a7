"""What importing a package costs, its framework aside: ``import natten_mps`` or ``natten_mlx``, and its ``na2d``.

Each import is a new process, which has imported the framework and numpy and turned the garbage collector off. Trees are
taken by turns. Prints the smallest and the median time of each in milliseconds, and how many modules were imported. A
tree is a checkout of this repository, so that a second worktree compares two commits:

    git worktree add --detach ../before COMMIT
    python benchmarks/import_time.py . ../before
"""

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

FRAMEWORKS = {"mps": "torch", "mlx": "mlx.core"}
# The finders of editable installs would lead to the installed tree.
TIMED = """
import gc, sys, time
import numpy, {framework}
sys.meta_path[:] = [f for f in sys.meta_path if not type(f).__module__.startswith("_editable")]
sys.path.insert(0, sys.argv[1])
gc.disable()
known, began = len(sys.modules), time.perf_counter()
import natten_{package}
natten_{package}.na2d
print(1e3 * (time.perf_counter() - began), len(sys.modules) - known)
assert natten_{package}.__file__.startswith(sys.argv[1]), natten_{package}.__file__
"""


def measure(tree: Path, package: str) -> tuple[float, int]:
    """Milliseconds and modules of one import in a new process."""
    source = tree.resolve() / "packages" / f"natten-{package}" / "src"
    code = TIMED.format(framework=FRAMEWORKS[package], package=package)
    words = subprocess.run(
        [sys.executable, "-c", code, str(source)], check=True, capture_output=True, text=True
    ).stdout.split()
    return float(words[0]), int(words[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trees", nargs="*", type=Path, metavar="TREE", default=[Path(__file__).parent.parent])
    parser.add_argument("--packages", nargs="+", choices=FRAMEWORKS, default=list(FRAMEWORKS))
    parser.add_argument("--turns", type=int, default=7)
    arguments = parser.parse_args()
    print(f"{'':<12}{'smallest':>10}{'median':>10}{'modules':>9}  tree")
    for package in arguments.packages:
        for tree in arguments.trees:
            measure(tree, package)  # compiles what has changed
        turns = [[measure(tree, package) for tree in arguments.trees] for _ in range(arguments.turns)]
        for tree, found in zip(arguments.trees, zip(*turns, strict=True), strict=True):
            times = [time for time, _ in found]
            print(f"natten-{package:<5}{min(times):>10.1f}{statistics.median(times):>10.1f}{found[0][1]:>9}  {tree}")


if __name__ == "__main__":
    main()
