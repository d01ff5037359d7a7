"""Compiles every kernel that run.py launches for an NVIDIA GPU: Metal text -> PTX -> machine code.

    python benchmarks/gpu/build.py FOLDER [--variant flip] [--variant "bricks 1"] [--problem NAME] [--arch sm_90]

Needs clang 19 and ptxas on the PATH, no GPU. Writes one file per kernel and register cap, and manifest.json:
what ptxas says of each.
"""

import argparse
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jobs import REGISTER_CAPS, ROOT, TIMED, instances, jobs
from natten_metal.source import Instance, library

sys.path.insert(0, str(ROOT / "tests-parity"))

from metal_emulator.to_ptx import assemble, entry_name, to_ptx  # noqa: E402


def build(folder: Path, instance: Instance, caps: tuple[int, ...], arch: str) -> dict[str, Any]:
    """Assemble one kernel once per cap; what the manifest says of each."""
    ptx = to_ptx(library((instance,)), arch=arch)
    made = {}
    for cap in caps:
        cubin = assemble(ptx, arch=arch, max_registers=cap or None)
        file = f"{instance.name}_r{cap}.cubin"
        (folder / file).write_bytes(cubin.code)
        figures = {name: value for name, value in asdict(cubin).items() if name != "code"}
        made[str(cap)] = {"file": file, "entry": entry_name(instance.name), **figures}
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--variant", action="append", default=[], help="besides the planner's choice; repeatable")
    parser.add_argument("--problem", action="append", help="a name of jobs.py; default: all")
    parser.add_argument("--arch", default="sm_90")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    chosen = [job for job in jobs(("plan", *options.variant)) if not options.problem or job.problem in options.problem]
    # Only what is timed is built with a register cap too.
    timed = set(instances([job for job in chosen if job.problem in TIMED]))
    todo = instances(chosen)

    def one(instance: Instance) -> dict[str, Any]:
        made = build(options.folder, instance, REGISTER_CAPS if instance in timed else (0,), options.arch)
        for cap, figures in made.items():
            print(instance.name, f"cap {cap}", {k: v for k, v in figures.items() if isinstance(v, int)}, flush=True)
        return made

    with ThreadPoolExecutor(2) as pool:
        manifest = dict(zip([i.name for i in todo], pool.map(one, todo), strict=True))
    (options.folder / "manifest.json").write_text(json.dumps(manifest, indent=1))
    print(len(manifest), "kernels")


if __name__ == "__main__":
    main()
