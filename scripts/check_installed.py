"""Both packages are imported from this environment's site-packages, with their compiled parts; the gate asks it.

usage: check_installed.py     in the folder that tests will run in
"""

import sys
import sysconfig
from pathlib import Path

sys.path[0] = str(Path.cwd())  # not scripts/: what tests find

import natten_mlx  # noqa: E402
import natten_mps  # noqa: E402

SITE = Path(sysconfig.get_path("purelib")).resolve()

for package in (natten_mps, natten_mlx):
    path = Path(package.__file__).resolve()
    if not path.is_relative_to(SITE):
        sys.exit(f"check_installed: {path} is not in {SITE}")
    compiled = sorted(file.name for file in path.parent.rglob("*") if file.suffix in (".so", ".dylib"))
    if not compiled:
        sys.exit(f"check_installed: {package.__name__} has no compiled part")
    print(f"{package.__name__} {package.__version__} from {path.parent}, with {', '.join(compiled)}")
