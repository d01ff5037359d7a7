"""Both packages on Metal itself: the case table within the bounds of the pure backends, and one package like the other.

`./dev.sh metal suites` runs this file on a Mac; by its name alone pytest does not collect it. As a program it says
whether Metal runs here. `metal/test_on_metal.py` runs the same checks on the emulator.
"""

from __future__ import annotations

import itertools
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import frameworks
import numpy as np
import pytest
import tolerances
from frameworks import Mlx, Path, Torch, run, run_av, run_qk
from metal.table import Entry, chosen, entries

from natten_mps._metal.plan.backend import FAST_METAL, METAL, NANOBIND

RESULTS = pathlib.Path("metal-results")
RUNNERS = {"na": (run, tolerances.fused), "qk": (run_qk, tolerances.split_qk), "av": (run_av, tolerances.split_av)}


class TorchOnMetal(Torch):
    """natten_mps with tensors on the device `mps`."""

    def tensor(self, array: Any, dtype: str = "float64") -> Any:
        return super().tensor(array, dtype).to("mps")

    def numpy(self, tensor: Any) -> Any:
        return super().numpy(tensor.cpu())


class MlxOnMetal(Mlx):
    """natten_mlx on the GPU's stream, which its tests otherwise leave for the CPU's."""


PATHS = (Path(TorchOnMetal(), METAL.name), Path(MlxOnMetal(), FAST_METAL.name), Path(MlxOnMetal(), NANOBIND.name))


@contextmanager
def running(path: Path) -> Iterator[None]:
    """On the path's stream, with the module of its backend, and no other kernels', among those that are watched."""
    kernels = {METAL.name, FAST_METAL.name}
    plain = {name: modules for name, modules in frameworks.BACKEND_MODULES.items() if name not in kernels}
    own = {path.backend: (f"_launch.{path.backend}",)} if path.backend in kernels else {}
    with ExitStack() as stack:
        stack.enter_context(patch.dict(frameworks.BACKEND_MODULES, plain | own, clear=True))
        if isinstance(path.framework, MlxOnMetal):
            import mlx.core as mx

            stack.enter_context(mx.stream(mx.gpu))
        yield


def check(entry: Entry, paths: tuple[Path, ...]) -> None:
    """On every path within the reference's bounds and the same bits on repeat; between two paths within them too."""
    runner, expected = RUNNERS[entry.op]
    wanted, found = expected(entry.case, entry.dtype), {}
    for path in paths:
        with running(path):
            (found[path], dtypes), (again, _) = (runner.__wrapped__(path, entry.case, entry.dtype) for _ in range(2))
        assert {dtypes[name] for name in dtypes if name != "lse"} == {entry.dtype}
        assert all(again[name].tobytes() == values.tobytes() for name, values in found[path].items()), (
            f"{entry}: {path}"
        )
        tolerances.assert_within(found[path], wanted, f"{entry}: {path}")
    for one, other in itertools.combinations(paths, 2):
        for name, bound in wanted.items():
            apart = tolerances.deviation(found[one][name], found[other][name])
            assert apart <= bound.bound, f"{entry}: {name}, {one} and {other}"


def missing(path: Path) -> str | None:
    """Why the path does not run here, found out by running it."""
    try:
        with running(path):
            query = path.framework.tensor(np.zeros((1, 8, 1, 8)), "float32")
            path.framework.numpy(path.framework.face("na1d")(query, query, query, 3, backend=path.backend))
    except (RuntimeError, NotImplementedError, ValueError) as error:
        return str(error).split("\n")[0]
    return None


def parameters() -> list[Any]:
    """The entries that cover every feature; with --all, every entry."""
    return [
        pytest.param(entry, id=str(entry), marks=() if entry in chosen() else pytest.mark.all) for entry in entries()
    ]


@pytest.fixture(scope="module")
def paths() -> tuple[Path, ...]:
    """The paths that run here."""
    found = tuple(path for path in PATHS if missing(path) is None)
    assert found, "Metal does not run here"
    return found


@pytest.mark.parametrize("entry", parameters())
def test_on_metal(entry: Entry, paths: tuple[Path, ...]) -> None:
    check(entry, paths)


def probe() -> None:
    """Lines `metal=yes` or `metal=no`, and `reason=` with what does not run and why, as workflows read them."""
    reasons = {path: missing(path) for path in PATHS}
    print(f"metal={'yes' if None in reasons.values() else 'no'}")
    print("reason=" + "; ".join(f"{path}: {reason}" for path, reason in reasons.items() if reason))


def doctors() -> int:
    """The status of the one that fails, after both have run."""
    status = 0
    for package in ("natten-mps", "natten-mlx"):
        command = [pathlib.Path(sys.executable).with_name(package), "doctor"]
        command += ["--json", RESULTS / f"{package}-doctor.json"]
        ran = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        (RESULTS / f"{package}-doctor.txt").write_text(ran.stdout)
        print(ran.stdout)
        status = status or ran.returncode
    return status


def main() -> int:
    RESULTS.mkdir(exist_ok=True)
    match sys.argv[1:]:
        case ["probe"]:
            probe()
        case ["doctors"]:
            return doctors()
        case ["suites", *options]:
            return pytest.main([__file__, "--junitxml", str(RESULTS / "suites.xml"), *options])
        case _:
            sys.exit("usage: ./dev.sh metal probe, doctors, or suites [pytest args]")
    return 0


if __name__ == "__main__":
    sys.exit(main())
