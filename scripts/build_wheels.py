"""Builds what is published, into dist/: a package's sdist and, from that, as a stranger would, this machine's wheel.

Of natten-mps also the wheel without compiled code, for machines that no other fits. Wheels for Linux get the manylinux
tag that their symbols of glibc allow: to publish, natten-mps is built where glibc is 2.28. (The clang of ziglang,
which could build for an old glibc anywhere, will not do: its __builtin_cpu_supports answers no to every question, and
the kernels would keep to SSE.) On a Mac nothing is repaired: the libraries that a wheel needs are in it or in MLX's own
wheel, which it must find there (`delocate-wheel --exclude libmlx --ignore-missing-dependencies` changes no byte of it;
without the second option it fails, as libmlx is not there to look at).

usage: build_wheels.py [natten-mps | natten-mlx]
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import mlx_releases
from registry import ROOT, uv

PACKAGES = ("natten-mps", "natten-mlx")
DIST = ROOT / "dist"
TOOLS = Path(sys.executable).parent
PINS = ("--build-constraints", ROOT / "requirements" / "build.txt", "--require-hashes", "--python", sys.executable)


def settings(package: str) -> dict[str, str]:
    """What the environment tells the build."""
    if package == "natten-mps":
        return {}
    return {"NATTEN_MLX_RELEASES": str(mlx_releases.lay_out(every="CI" in os.environ))}


def build_wheel(sdist: Path, folder: Path, *options: str, **environment: str) -> Path:
    shown = subprocess.run(
        [os.environ["UV"], "build", "--wheel", "--no-config", *PINS, *options, "--out-dir", folder, sdist],
        cwd=folder,
        env=os.environ | environment,
        check=False,
    )
    if shown.returncode:
        sys.exit(f"build_wheels: no wheel could be built from {sdist.name}")
    (wheel,) = folder.glob("*.whl")
    return wheel


def build(package: str) -> list[Path]:
    with tempfile.TemporaryDirectory() as work:
        folders = [Path(work, name) for name in ("sdist", "native", "repaired", "pure")]
        for folder in folders:
            folder.mkdir()
        sdists, native, repaired, pure = folders
        uv("build", "--sdist", *PINS, "--out-dir", sdists, ROOT / "packages" / package)
        (sdist,) = sdists.glob("*.tar.gz")
        wheel = build_wheel(sdist, native, **settings(package))
        if wheel.name.endswith("-py3-none-any.whl"):
            sys.exit(f"build_wheels: {package} was built without its compiled part; its compiler failed (see above)")
        if sys.platform == "linux":
            command = [TOOLS / "auditwheel", "repair", "--exclude", "libmlx.so", "--wheel-dir", repaired, wheel]
            subprocess.run(command, env=os.environ | {"PATH": f"{TOOLS}:{os.environ['PATH']}"}, check=True)  # patchelf
            (wheel,) = repaired.glob("*.whl")
        made = [sdist, wheel]
        if package == "natten-mps":
            made.append(build_wheel(sdist, pure, "--config-setting", "wheel.cmake=false"))
        DIST.mkdir(exist_ok=True)
        return [Path(shutil.move(file, DIST / file.name)) for file in made]


def main() -> None:
    packages = sys.argv[1:] or PACKAGES
    if not set(packages) <= set(PACKAGES):
        sys.exit(__doc__)
    for package in packages:
        for left in DIST.glob(f"{package.replace('-', '_')}-*"):
            left.unlink()
        for file in build(package):
            print(f"{file.relative_to(ROOT)}: {file.stat().st_size / 1024:.0f} KB")


if __name__ == "__main__":
    main()
