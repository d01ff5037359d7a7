"""Runs the Metal kernels on an NVIDIA GPU: checks every result against float64 and times every launch.

    python benchmarks/gpu/run.py KERNELS.zip RESULT.tsv [--variant plan] [--problem NAME] [--small] [--cap 0]

KERNELS.zip is build.py's. Needs torch with CUDA, and ptxas on the PATH. Times are medians of CUDA-graph replays.
Exit status 1 if a result is wrong, or not the same when it is computed again.
"""

import argparse
import ctypes
import json
import math
import os
import sys
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from dense import dense, small
from jobs import PROBLEMS, REGISTER_CAPS, ROOT, UNTIMED, Job, chosen, instances
from torch import Tensor

from natten_metal.metal.op_launches import PARAMS, Launch, stride_block

sys.path.insert(0, str(ROOT / "tests-parity"))

from metal_emulator.to_ptx import Cubin, assemble, entry_name

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# Largest |x - reference| / max |reference|. The tests have tighter bounds; these catch a broken build.
BOUNDS = {"float32": 2e-5, "float16": 4e-3, "bfloat16": 3e-2}
COLUMNS = (
    "problem",
    "dtype",
    "direction",
    "variant",
    "cap",
    "template",
    "microseconds",
    "bricks",
    "ns_per_brick",
    "error",
    "repeats",
    "registers",
    "stack_bytes",
    "spill_bytes",
    "shared_bytes",
    "kernel",
)
REPLAY_SECONDS, LAUNCH_SECONDS = 0.08, 0.004


class Arguments(ctypes.Structure):
    """The arguments that entry points of to_ptx take by value."""

    _fields_ = (("buffers", ctypes.c_void_p * 31), ("grid", ctypes.c_uint * 3))


class Driver:
    """Loads assembled kernels and launches them on torch's current stream."""

    def __init__(self) -> None:
        self.cuda = ctypes.CDLL("libcuda.so.1")
        torch.zeros(1, device="cuda")  # creates the context that the driver calls use
        self.functions: dict[tuple[str, int], ctypes.c_void_p] = {}

    def check(self, code: int) -> None:
        if code:
            raise RuntimeError(f"CUDA driver error {code}")

    def load(self, name: str, cap: int, code: bytes) -> None:
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        self.check(self.cuda.cuModuleLoadData(ctypes.byref(module), code))
        self.check(self.cuda.cuModuleGetFunction(ctypes.byref(function), module, entry_name(name).encode()))
        self.functions[name, cap] = function

    def launcher(self, launch: Launch, cap: int, buffers: list[Tensor]) -> Callable[[], None]:
        arguments = Arguments()
        for index, tensor in enumerate(buffers):
            arguments.buffers[index] = tensor.data_ptr()
        pointer = (ctypes.c_void_p * 1)(ctypes.addressof(arguments))
        function = self.functions[launch.instance.name, cap]

        def run(kept: tuple[object, ...] = (arguments, buffers)) -> None:
            stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
            self.check(self.cuda.cuLaunchKernel(function, *launch.grid, launch.threads, 1, 1, 0, stream, pointer, None))

        return run


def buffers_of(launch: Launch, known: dict[str, Tensor]) -> list[Tensor]:
    """Binds a launch's tensors, allocates its outputs filled with NaN, and fills in strides, as a host does."""
    bound = {argument: known[name] for argument, name in launch.inputs}
    for output in launch.outputs:
        made = torch.full(output.shape, math.nan, dtype=DTYPES[output.dtype], device="cuda")
        bound[output.argument] = known[output.name] = made
    params = list(launch.params)
    for argument, block in launch.stride_params.items():
        if argument in bound:
            strides = tuple(bound[argument].stride())
            if launch.instance.of_additional and argument in ("key_grad", "value_grad"):
                strides = strides[1:]  # the parts are the outermost dimension
            values = stride_block(strides, channels=argument != "lse")
            params[PARAMS[block][0] : PARAMS[block][0] + len(values)] = values
    bound["prm"] = torch.tensor(params, dtype=torch.int64, device="cuda")
    return [bound[argument.name] for argument in launch.instance.arguments]


def seconds(run: Callable[[], None]) -> float:
    """Median time of one launch, from replays of a graph of many."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def timed(what: Callable[[], None]) -> float:
        start.record()
        what()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) * 1e-3

    run()
    once = timed(run)
    many = int(max(1, min(200, LAUNCH_SECONDS / once)))
    stream = torch.cuda.Stream()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(many):
            run()
    graph.replay()
    replays = sorted(timed(graph.replay) / many for _ in range(int(max(5, min(31, REPLAY_SECONDS / (many * once))))))
    return replays[len(replays) // 2]


def inputs_of(job: Job) -> dict[str, Tensor]:
    """Seeded contiguous tensors, by their names in the program. All values are exact in half precision, so float16 and
    float32 share one reference.
    """
    p = job.problem_in_dtype
    rows, keys = (p.batch, *p.query_shape, p.heads), (p.batch, *p.key_shape, p.kv_heads)
    extra = (p.batch, p.additional, p.kv_heads)
    shapes: dict[str, tuple[int, ...]] = {"query": (*rows, p.head_dim), "key": (*keys, p.head_dim)}
    shapes |= {"value": (*keys, p.head_dim_v), "attn": (*rows, p.slots), "logits_grad": (*rows, p.slots)}
    shapes |= {"out_grad": (*rows, p.head_dim_v)}
    names = {"qk": ("query", "key", "logits_grad"), "av": ("attn", "value", "out_grad")}.get(
        p.op, ("query", "key", "value", "out_grad")
    )
    if p.additional:
        shapes |= {"additional_keys": (*extra, p.head_dim), "additional_values": (*extra, p.head_dim_v)}
        names += ("additional_keys", "additional_values")
    torch.manual_seed(0)
    made = {name: torch.randn(shapes[name], device="cuda").half().to(DTYPES[p.dtype]) for name in names}
    if job.has_lse_grad:
        made["lse_grad"] = torch.randn(rows, device="cuda")
    if p.has_rpb:
        made["rpb"] = torch.randn(p.heads, *(2 * w - 1 for w in p.kernel_size), device="cuda")
    return made


def error_of(made: Tensor, wanted: Tensor) -> float:
    """Largest error relative to the largest value. Infinities must match; a NaN never passes."""
    made = made.double().reshape(wanted.shape)
    finite = torch.isfinite(wanted)
    if not bool((torch.isfinite(made) == finite).all()) or bool((made[~finite] != wanted[~finite]).any()):
        return math.inf
    return float((made - wanted)[finite].abs().max() / wanted[finite].abs().max().clamp(min=1e-9))


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal bit by bit."""
    return torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def run(
    job: Job, cap: int, driver: Driver, known: dict[str, Tensor], wanted: dict[str, Tensor]
) -> list[dict[str, Any]]:
    """Run the job's launches in order, adding their results to ``known``; one row for each."""
    rows = []
    for launch in job.launches:
        start = driver.launcher(launch, cap, buffers_of(launch, known))
        start()
        made = [known[output.name].clone() for output in launch.outputs]
        start()
        torch.cuda.synchronize()
        again = [known[output.name] for output in launch.outputs]
        errors = [
            error_of(known[output.name], wanted[output.name]) for output in launch.outputs if output.name in wanted
        ]
        row = dict(zip(COLUMNS, (job.problem, job.dtype, job.direction, job.variant, cap), strict=False))
        row |= {"template": launch.instance.template, "kernel": launch.instance.name, "bricks": launch.bricks}
        row |= {"error": max(errors, default=0.0), "repeats": all(map(same_bits, made, again))}
        if job.problem not in UNTIMED:
            row["microseconds"] = seconds(start) * 1e6
            row["ns_per_brick"] = row["microseconds"] * 1e3 / launch.bricks if launch.bricks else 0.0
        rows.append(row)
    return rows


def assembled(kernels: zipfile.ZipFile, jobs: list[Job], caps: tuple[int, ...], driver: Driver) -> dict[Any, Cubin]:
    """Assemble and load every kernel of the jobs, in parallel; caps on registers for timed kernels only."""
    timed = set(instances([job for job in jobs if job.problem not in UNTIMED]))
    todo = [(i.name, cap) for i in instances(jobs) for cap in (caps if i in timed else (0,))]
    text = {name: kernels.read(f"{name}.ptx").decode() for name, _ in todo}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        cubins = list(pool.map(lambda key: assemble(text[key[0]], max_registers=key[1] or None), todo))
    for key, cubin in zip(todo, cubins, strict=True):
        driver.load(*key, cubin.code)
    return dict(zip(todo, cubins, strict=True))


def shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kernels", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("--variant", action="append", default=[], help="a key of jobs.CHANGES; default: plan")
    parser.add_argument("--problem", action="append", default=[], help="of jobs.py, or one of its SETS")
    parser.add_argument("--dtype", action="append", default=[], help="of timed problems; default: jobs.DTYPES")
    parser.add_argument("--small", action="store_true", help="only the small problems, which are not timed")
    parser.add_argument("--cap", action="append", type=int, default=[], help="registers a thread; 0: no limit")
    options = parser.parse_args()
    began, driver = time.time(), Driver()
    jobs = chosen(["SMALL"] if options.small else options.problem, options.variant, options.dtype)
    caps = tuple(options.cap) or REGISTER_CAPS
    cubins = assembled(zipfile.ZipFile(options.kernels), jobs, caps, driver)
    print(f"{len(cubins)} kernels assembled, {time.time() - began:.0f} s", flush=True)
    rows: list[dict[str, Any]] = []
    wanted: dict[str, Tensor] = {}
    referenced: tuple[str, bool] | None = None  # the problem whose reference `wanted` holds, whether in bfloat16
    for job in sorted(jobs, key=lambda job: (list(PROBLEMS).index(job.problem), job.dtype, job.variant != "plan")):
        inputs = inputs_of(job)
        # The inputs of a problem are the same numbers in float16 and float32, so these share one reference.
        numbers = job.problem, job.dtype == "bfloat16"
        if referenced != numbers:
            plain = job.problem not in UNTIMED and job.problem_in_dtype.op == "na"
            wanted = dense(job.problem_in_dtype, inputs) if plain else small(job, inputs)
        referenced = numbers
        for cap in caps if job.problem not in UNTIMED else (0,):
            known = dict(inputs)
            if job.direction == "backward" and job.problem_in_dtype.op == "na":
                forward = Job(job.problem, job.dtype, "forward", job.variant)
                for launch in forward.launches:
                    driver.launcher(launch, cap, buffers_of(launch, known))()
            for row in run(job, cap, driver, known, wanted):
                cubin = cubins[row["kernel"], cap]
                row |= {name: getattr(cubin, name) for name in COLUMNS if hasattr(cubin, name)}
                rows.append(row)
                print(f"{time.time() - began:5.0f} s", *(shown(row.get(name, "")) for name in COLUMNS), flush=True)
        options.result.write_text(table(rows))
    wrong = [row for row in rows if not (row["error"] <= BOUNDS[row["dtype"]] and row["repeats"])]
    print(f"{len(rows)} launches, {len(wrong)} wrong, on {torch.cuda.get_device_name()}")
    print(json.dumps(wrong, indent=1) if wrong else "every result within its bound, and the same bits again")
    sys.exit(bool(wrong))


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as tab-separated values, the machine in the first line."""
    lines = [
        f"# {torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}",
        "\t".join(COLUMNS),
    ]
    return "\n".join([*lines, *("\t".join(shown(row.get(name, "")) for name in COLUMNS) for row in rows)]) + "\n"


if __name__ == "__main__":
    main()
