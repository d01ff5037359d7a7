"""What one call costs in addition to its work: na2d on 8x8 tokens, compared with the framework's own fused attention.

In both packages, on the CPU and one thread: forward alone, and forward with gradients. All are called in short turns,
so that other work on the machine affects all alike. Prints the median of the turns in microseconds, the smallest one,
and the ratio to the framework's own.

usage: python benchmarks/overhead.py [mps] [mlx] [--turns N] [--calls N]
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

Call = Callable[[], Any]
SHAPE, WINDOW, DIM = (1, 8, 8, 2, 16), 3, 16


def torch_calls() -> tuple[str, dict[str, tuple[Call, Call]]]:
    """A title, and pairs of this package's call and the framework's. Torch's attention has heads before tokens."""
    import torch

    import natten_mps

    torch.set_num_threads(1)
    given = [torch.randn(SHAPE) for _ in range(4)]
    flat = [tensor.flatten(1, 2).transpose(1, 2).contiguous() for tensor in given]
    attend, full = natten_mps.na2d, torch.nn.functional.scaled_dot_product_attention
    leaves, flat_leaves = ([t.clone().requires_grad_() for t in each[:3]] for each in (given, flat))
    return f"torch {torch.__version__}, {backend_of(natten_mps, given)}", {
        "forward": (lambda: attend(*given[:3], WINDOW), lambda: full(*flat[:3])),
        "forward, backward": (
            lambda: torch.autograd.grad(attend(*leaves, WINDOW), leaves, given[3]),
            lambda: torch.autograd.grad(full(*flat_leaves), flat_leaves, flat[3]),
        ),
    }


def mlx_calls() -> tuple[str, dict[str, tuple[Call, Call]]]:
    """As :func:`torch_calls`. A call in MLX only builds the graph, which is timed alone and evaluated."""
    import mlx.core as mx

    import natten_mlx

    mx.set_default_device(mx.cpu)
    given = [mx.random.normal(SHAPE) for _ in range(3)]
    flat = [mx.contiguous(array.flatten(1, 2).swapaxes(1, 2)) for array in given]
    mx.eval(given, flat)

    def own(*arrays: Any) -> Any:
        return natten_mlx.na2d(*arrays, WINDOW)

    def full(*arrays: Any) -> Any:
        return mx.fast.scaled_dot_product_attention(*arrays, scale=DIM**-0.5)

    gradients = [mx.grad(lambda *a, f=f: f(*a).sum(), argnums=(0, 1, 2)) for f in (own, full)]
    return f"mlx {mx.__version__}, {backend_of(natten_mlx, given)}", {
        "graph": (lambda: own(*given), lambda: full(*flat)),
        "graph, evaluated": (lambda: mx.eval(own(*given)), lambda: mx.eval(full(*flat))),
        "graph of both": (lambda: gradients[0](*given), lambda: gradients[1](*flat)),
        "both, evaluated": (lambda: mx.eval(gradients[0](*given)), lambda: mx.eval(gradients[1](*flat))),
    }


def backend_of(package: Any, tensors: list[Any]) -> str:
    """The backend that the package plans."""
    text: str = package.explain("na2d", *tensors[:3], kernel_size=WINDOW)
    return text.partition("backend: ")[2].partition(" ")[0]


def microseconds(call: Call, count: int) -> float:
    """The time of one call, the mean of ``count``."""
    began = time.perf_counter()
    for _ in range(count):
        call()
    return 1e6 * (time.perf_counter() - began) / count


def measure(compared: dict[str, tuple[Call, Call]], turns: int, count: int) -> dict[str, tuple[list[float], ...]]:
    """The times of each pair of calls, one of each a turn."""
    found: dict[str, tuple[list[float], ...]] = {name: ([], []) for name in compared}
    for _ in range(turns):
        for name, pair in compared.items():
            for times, call in zip(found[name], pair, strict=True):
                times.append(microseconds(call, count))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", nargs="*", metavar="mps|mlx", default=["mps", "mlx"])
    parser.add_argument("--turns", type=int, default=40)
    parser.add_argument("--calls", type=int, default=60, help="of one turn")
    arguments = parser.parse_args()
    print(f"{'':<22}{'own':>10}{'smallest':>10}{'framework':>11}{'smallest':>10}{'ratio':>8}")
    for package in arguments.packages:
        what, compared = {"mps": torch_calls, "mlx": mlx_calls}[package]()
        print(what)
        measure(compared, 2, arguments.calls)  # what is made once is made
        for name, (own, framework) in measure(compared, arguments.turns, arguments.calls).items():
            medians = statistics.median(own), statistics.median(framework)
            times = f"{medians[0]:>10.1f}{min(own):>10.1f}{medians[1]:>11.1f}{min(framework):>10.1f}"
            print(f"  {name:<20}{times}{medians[0] / medians[1]:>8.2f}")


if __name__ == "__main__":
    main()
