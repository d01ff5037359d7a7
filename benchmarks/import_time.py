"""What importing a package costs without its framework: ``import natten_mps`` or ``natten_mlx``, and its ``na2d``.

Each import is timed in a new process, which has imported the framework and numpy and turned the garbage collector off.
Bytecode is cached, as after an installation by pip, whatever PYTHONDONTWRITEBYTECODE says. Trees are timed in turns.
Prints the smallest and the median time of each in milliseconds, and how many modules were imported. A tree is a
checkout of this repository, so that a second worktree compares two commits:

    git worktree add --detach ../before COMMIT
    python benchmarks/import_time.py . ../before
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
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


def measure(tree: Path, package: str, bytecode: str) -> tuple[float, int]:
    """Milliseconds and modules of one import in a new process. bytecode: the folder of its cache."""
    source = tree.resolve() / "packages" / f"natten-{package}" / "src"
    code = TIMED.format(framework=FRAMEWORKS[package], package=package)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = bytecode
    command = [sys.executable, "-c", code, str(source)]
    words = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.split()
    return float(words[0]), int(words[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trees", nargs="*", type=Path, metavar="TREE", default=[Path(__file__).parent.parent])
    parser.add_argument("--packages", nargs="+", choices=FRAMEWORKS, default=list(FRAMEWORKS))
    parser.add_argument("--turns", type=int, default=7)
    arguments = parser.parse_args()
    print(f"{'':<12}{'smallest':>10}{'median':>10}{'modules':>9}  tree")
    with tempfile.TemporaryDirectory() as bytecode:
        for package in arguments.packages:
            report(package, arguments.trees, arguments.turns, bytecode)


def report(package: str, trees: list[Path], turns: int, bytecode: str) -> None:
    """Print a line for each tree."""
    for tree in trees:
        measure(tree, package, bytecode)  # compiles the bytecode
    found = [[measure(tree, package, bytecode) for tree in trees] for _ in range(turns)]
    for tree, own in zip(trees, zip(*found, strict=True), strict=True):
        times = [time for time, _ in own]
        print(f"natten-{package:<5}{min(times):>10.1f}{statistics.median(times):>10.1f}{own[0][1]:>9}  {tree}")


if __name__ == "__main__":
    main()
