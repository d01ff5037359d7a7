"""The overhead of one call of natten_mlx: na1d on a tiny input against MLX's own fused attention.

Both run on the same stream in short turns, so that other load on the machine affects both alike. Prints the median of
the rounds in microseconds: building the graph alone, and building it and waiting for the result.

usage: python benchmarks/overhead.py [--rounds N] [--calls N]
"""

import argparse
import statistics
import time
from collections.abc import Callable

import mlx.core as mx

import natten_mlx

Call = Callable[[], mx.array]
TOKENS, HEADS, DIM, WINDOW = 16, 2, 16, 3
TURN = 50  # calls


def calls() -> dict[str, Call]:
    """The calls to compare; MLX's attention expects heads before tokens."""
    query = mx.random.normal((1, TOKENS, HEADS, DIM))
    swapped = mx.contiguous(query.swapaxes(1, 2))
    mx.eval(query, swapped)
    return {
        "natten_mlx.na1d": lambda: natten_mlx.na1d(query, query, query, WINDOW),
        "mx.fast.scaled_dot_product_attention": lambda: mx.fast.scaled_dot_product_attention(
            swapped, swapped, swapped, scale=DIM**-0.5
        ),
    }


def microseconds(call: Call, count: int, evaluate: bool) -> float:
    """Seconds per call, on average over ``count`` calls."""
    began = time.perf_counter()
    for _ in range(count):
        made = call()
        if evaluate:
            mx.eval(made)
    return 1e6 * (time.perf_counter() - began) / count


def measure(compared: dict[str, Call], rounds: int, count: int, evaluate: bool) -> dict[str, float]:
    """Medians by name over ``rounds`` rounds of ``count`` calls, in turns of :data:`TURN`."""
    found: dict[str, list[float]] = {name: [] for name in compared}
    for _ in range(rounds):
        turns: dict[str, list[float]] = {name: [] for name in compared}
        for _ in range(max(count // TURN, 1)):
            for name, call in compared.items():
                turns[name].append(microseconds(call, TURN, evaluate))
        for name, times in turns.items():
            found[name].append(statistics.fmean(times))
    return {name: statistics.median(times) for name, times in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=2000)
    arguments = parser.parse_args()
    compared = calls()
    print(f"mlx {mx.__version__}, {mx.default_device()}, path: {path()}")
    for call in compared.values():
        mx.eval(call())
    for what, evaluate in (("graph build", False), ("build + eval", True)):
        medians = measure(compared, arguments.rounds, arguments.calls, evaluate)
        own, theirs = medians.values()
        for name, median in medians.items():
            print(f"{what:<14}{name:<40}{median:8.1f} us")
        print(f"{what:<14}{'ratio':<40}{own / theirs:8.2f}")


def path() -> str:
    """The path that natten_mlx takes."""
    query = mx.zeros((1, TOKENS, HEADS, DIM))
    text = natten_mlx.explain("na1d", query, query, query, kernel_size=WINDOW)
    return text.partition("path: ")[2].partition(" ")[0]


if __name__ == "__main__":
    main()
