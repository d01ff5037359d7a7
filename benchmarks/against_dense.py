"""natten-mps's pure backend, compared with dense attention with a mask in one run, in turns.

    python benchmarks/against_dense.py            # float32, two threads, medians

Dense attention is ``torch.nn.functional.scaled_dot_product_attention`` with the neighborhood as a
boolean mask that is built before the clock starts. Times are wall-clock medians.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
from problems import CPU_TABLE, Timed
from torch import Tensor
from tqdm import tqdm

import natten_mps
from natten_mps._metal.problem.faces import fused
from natten_mps._metal.problem.mask import neighborhood_mask
from natten_mps._tensors import TorchTables, spec


def tensors(problem: Timed) -> list[Tensor]:
    """Seeded query, key and value ``[1, *shape, heads, dim]`` that require gradients."""
    torch.manual_seed(0)
    shape = (problem.batch, *problem.shape, problem.heads, problem.dim)
    return [torch.randn(shape).requires_grad_() for _ in range(3)]


def contenders(problem: Timed, inputs: list[Tensor], backend: str) -> dict[str, Callable[[], Tensor]]:
    """The two forwards, each from heads-last tensors to heads-last output."""
    options = {"kernel_size": problem.window, "dilation": problem.dilation, "is_causal": problem.causal}
    specs = [spec("bench", name, t) for name, t in zip(("query", "key", "value"), inputs, strict=True)]
    checked = fused("neighborhood_attention", *specs, stride=1, scale=None, **options)
    mask = neighborhood_mask(checked, TorchTables(inputs[0].device))

    def ours() -> Tensor:
        return natten_mps.neighborhood_attention(*inputs, **options, backend=backend)

    def dense() -> Tensor:
        heads_first = [t.flatten(1, -3).transpose(1, 2) for t in inputs]
        out = torch.nn.functional.scaled_dot_product_attention(*heads_first, attn_mask=mask)
        return out.transpose(1, 2).reshape(inputs[0].shape)

    return {"natten-mps": ours, "dense": dense}


def training(forward: Callable[[], Tensor], inputs: list[Tensor]) -> Callable[[], object]:
    """Forward and backward as one call."""
    return lambda: torch.autograd.grad(forward().sum(), inputs)


def inference(forward: Callable[[], Tensor]) -> Callable[[], object]:
    """Forward without a graph."""

    def run() -> Tensor:
        with torch.no_grad():
            return forward()

    return run


def medians(calls: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Median milliseconds of each call, taken in turn until ``seconds`` have gone by (at least 5 rounds)."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    began = time.perf_counter()
    while min(map(len, times.values())) < 5 or time.perf_counter() - began < seconds:
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return {name: 1e3 * statistics.median(taken) for name, taken in times.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default 2)")
    parser.add_argument("--seconds", type=float, default=2.0, help="time per measurement (default 2)")
    parser.add_argument("--backend", default="pure", help="natten-mps's backend (default pure)")
    parser.add_argument("--at-least", type=int, default=0, help="exit 1 unless this many forward rows are won")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    lines, won = [], 0
    for problem in tqdm(CPU_TABLE, desc="problems", disable=None):
        inputs = tensors(problem)
        forwards = contenders(problem, inputs, arguments.backend)
        error = (forwards["natten-mps"]() - forwards["dense"]()).abs().max().item()
        if not error < 1e-4:
            sys.exit(f"{problem.name}: the two outputs differ by {error}")
        fwd = medians({name: inference(call) for name, call in forwards.items()}, arguments.seconds)
        both = medians({name: training(call, inputs) for name, call in forwards.items()}, arguments.seconds)
        won += fwd["natten-mps"] < fwd["dense"]
        cells = [f"{t['natten-mps']:.2f} | {t['dense']:.2f} | {t['dense'] / t['natten-mps']:.1f}x" for t in (fwd, both)]
        lines.append(f"| {problem.name} | {' | '.join(cells)} |")
    print(f"torch {torch.__version__}, {arguments.threads} threads, float32, ms (medians), backend {arguments.backend}")
    print("| problem (B1 H4) | forward | dense | faster | forward+backward | dense | faster |")
    print("|---|---|---|---|---|---|---|")
    print("\n".join(lines))
    print(f"forward faster than dense on {won} of {len(CPU_TABLE)}")
    return 0 if won >= arguments.at_least else 1


if __name__ == "__main__":
    sys.exit(main())
