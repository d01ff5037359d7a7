"""Batches of items of different sizes, compared with a loop over the items, forward and backward, in both packages.

    python benchmarks/varlen.py [--rounds N]

Each row is measured in a process of its own, which has its own peak of resident memory. Padded batches are compared
with a loop that cuts each item out and pads its result; lists with a loop over the same list; packed sequences with a
loop over a split. Times are the smallest of a few rounds.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

HEADS, DIM, WINDOW = 4, 32, 7
LENGTHS = {
    "256 distinct, 20..1000": lambda: random.Random(0).sample(range(20, 1001), 256),
    "2048, 8..40": lambda: random.Random(0).choices(range(8, 41), k=2048),
}
FORMS = ("padded", "listed", "packed")


def torch_case(form: str, lengths: list[int], own: bool) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Forward alone, and with gradients. own: the package's varlen; otherwise the loop."""
    import torch
    from torch.nn.functional import pad

    import natten_mps as na

    longest = max(lengths)
    shape = {"padded": (len(lengths), longest), "packed": (1, sum(lengths)), "listed": (sum(lengths),)}[form]
    whole = [torch.randn(*shape, HEADS, DIM) for _ in range(3)]

    def call(q: Any, k: Any, v: Any) -> Any:
        if form == "packed":
            if own:
                return na.attention(q, k, v, seqlens_Q=lengths, seqlens_KV=lengths)
            parts = zip(*(t.split(lengths, 1) for t in (q, k, v)), strict=True)
            return torch.cat([na.attention(*part) for part in parts], 1)
        if form == "listed":
            if own:
                return torch.cat(na.na1d_varlen(q, k, v, None, WINDOW))
            return torch.cat([na.na1d(*(t[None] for t in part), WINDOW)[0] for part in zip(q, k, v, strict=True)])
        if own:
            return na.na1d_varlen(q, k, v, lengths, WINDOW)
        items = [na.na1d(*(t[i : i + 1, :n] for t in (q, k, v)), WINDOW) for i, n in enumerate(lengths)]
        return torch.cat([pad(item, (0, 0, 0, 0, 0, longest - item.shape[1])) for item in items])

    def leaves(learns: bool) -> list[Any]:
        if form == "listed":
            return [[p.detach().requires_grad_(learns) for p in t.split(lengths)] for t in whole]
        return [t.detach().requires_grad_(learns) for t in whole]

    def forward() -> None:
        with torch.no_grad():
            call(*leaves(False))

    def both() -> None:
        call(*leaves(True)).sum().backward()

    return forward, both


def mlx_case(form: str, lengths: list[int], own: bool) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """The same in MLX, on the CPU."""
    import mlx.core as mx

    import natten_mlx as na

    mx.set_default_device(mx.cpu)
    longest = max(lengths)
    ends = [sum(lengths[: i + 1]) for i in range(len(lengths) - 1)]
    shape = {"padded": (len(lengths), longest), "packed": (1, sum(lengths)), "listed": (sum(lengths),)}[form]
    whole = [mx.random.normal((*shape, HEADS, DIM)) for _ in range(3)]
    given = [mx.split(t, ends) for t in whole] if form == "listed" else whole
    mx.eval(given)

    def call(q: Any, k: Any, v: Any) -> Any:
        if form == "packed":
            if own:
                return na.attention(q, k, v, seqlens_Q=lengths, seqlens_KV=lengths)
            parts = zip(*(mx.split(t, ends, 1) for t in (q, k, v)), strict=True)
            return mx.concatenate([na.attention(*part) for part in parts], 1)
        if form == "listed":
            if own:
                return mx.concatenate(na.na1d_varlen(q, k, v, None, WINDOW))
            items = [na.na1d(*(t[None] for t in part), WINDOW)[0] for part in zip(q, k, v, strict=True)]
            return mx.concatenate(items)
        if own:
            return na.na1d_varlen(q, k, v, lengths, WINDOW)
        items = [na.na1d(*(t[i : i + 1, :n] for t in (q, k, v)), WINDOW) for i, n in enumerate(lengths)]
        return mx.concatenate([mx.pad(o, [(0, 0), (0, longest - o.shape[1]), (0, 0), (0, 0)]) for o in items])

    gradient = mx.value_and_grad(lambda given: call(*given).sum())
    return lambda: mx.eval(call(*given)), lambda: mx.eval(gradient(given))


CASES = {"natten-mps": torch_case, "natten-mlx": mlx_case}


def measure(package: str, form: str, lengths: str, own: bool, rounds: int) -> dict[str, float]:
    """Milliseconds of a forward, and of forward and backward; the growth of peak memory in MiB."""
    forward, both = CASES[package](form, LENGTHS[lengths](), own)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = []
    for function in (forward, both):
        best = float("inf")
        # The gradient of a slice is as large as the batch, so the loop over a padded batch takes a minute.
        slow = function is both and form == "padded" and not own
        for _ in range(1 if slow else rounds):
            start = time.perf_counter()
            function()
            best = min(best, time.perf_counter() - start)
        times.append(best * 1e3)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {"forward": times[0], "both": times[1], "peak": grown}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="")
    parser.add_argument("--row", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.row:
        package, form, lengths, own = arguments.row
        print(json.dumps(measure(package, form, lengths, own == "varlen", arguments.rounds)))
        return
    print("package\tform\titems\tforward ms: varlen\tloop\tforward+backward ms: varlen\tloop\tpeak MiB: varlen\tloop")
    for lengths in LENGTHS:
        for package in CASES:
            for form in FORMS:
                if arguments.only not in f"{package} {form} {lengths}":
                    continue
                found = []
                for own in ("varlen", "loop"):
                    command = [sys.executable, __file__, "--rounds", str(arguments.rounds)]
                    command += ["--row", package, form, lengths, own]
                    found.append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
                pairs = [f"{each[what]:.0f}" for what in ("forward", "both", "peak") for each in found]
                print(package, form, lengths, *pairs, sep="\t", flush=True)


if __name__ == "__main__":
    main()
