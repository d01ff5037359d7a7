"""First calls in fresh processes: what is called, and the processes, each of which tries one case.

A case is a context of the framework (``first_calls_mps``, ``first_calls_mlx``), a call of :data:`CALLS` and a backend.
Its process has imported the framework, but nothing of the package.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterable
from typing import Any

SIZES, HEADS, DIM = (5, 6, 5), 2, 4
THREADS = 8
WIDTH = HEADS * DIM
Tensor = Any
Call = Callable[[Tensor], Tensor]
Case = tuple[str, str, str]


def fused(package: Any, name: str, rank: int, backend: str) -> Call:
    """All options that can be combined, and both outputs."""

    def call(x: Tensor) -> Tensor:
        bias = x.reshape(-1)[: HEADS * 5**rank].reshape(HEADS, *[5] * rank)
        more = x.reshape(1, -1, HEADS, DIM)
        out, lse = getattr(package, name)(
            x,
            x * 2,
            x + 1,
            3,
            is_causal=True,
            rpb=bias,
            additional_keys=more,
            additional_values=more * 3,
            return_lse=True,
            backend=backend,
        )
        return out * lse[..., None]

    return call


def split(package: Any, rank: int, backend: str) -> Call:
    qk, av = f"na{rank}d_qk", f"na{rank}d_av"

    def call(x: Tensor) -> Tensor:
        return getattr(package, av)(getattr(package, qk)(x, x * 2, 3, backend=backend), x, 3, backend=backend)

    return call


def merged(package: Any, backend: str) -> Call:
    def call(x: Tensor) -> Tensor:
        parts = [package.na2d(x, key, x, 3, return_lse=True, backend=backend) for key in (x * 2, x + 1)]
        out, lse = package.merge_attentions([out for out, _ in parts], [lse for _, lse in parts])
        return out * lse[..., None]

    return call


def packed(package: Any, backend: str) -> Call:
    """Two concatenated sequences, with metadata made as in 0.20."""

    def call(x: Tensor) -> Tensor:
        made = package.generate_varlen_parameters(x, x, x, [2, 3], [3, 2])
        names = ("cumulative_seqlen_Q", "cumulative_seqlen_KV", "max_seqlen_Q", "max_seqlen_KV")
        return package.attention(x, x * 2, x + 1, **dict(zip(names, made, strict=True)), backend=backend)

    return call


def by_length(package: Any, backend: str) -> Call:
    return lambda x: package.attention(x, x * 2, x + 1, seqlens_Q=[2, 3], seqlens_KV=[3, 2], backend=backend)


def varlen(package: Any, rank: int, backend: str) -> Call:
    sizes, name = [[4, 5, 3][:rank]] if rank > 1 else [4], f"na{rank}d_varlen"
    return lambda x: getattr(package, name)(x, x * 2, x + 1, sizes, 3, backend=backend)


def module(package: Any, rank: int, backend: str) -> Call:
    made: Call = getattr(package, f"NeighborhoodAttention{rank}D")(WIDTH, HEADS, 3, rel_pos_bias=True, backend=backend)
    return made


def module_of_sizes(package: Any, backend: str) -> Call:
    made = module(package, 2, backend)
    return lambda x: made(x, [[4, 5]])


def knobs(package: Any, backend: str) -> Call:
    """Upstream's name of a backend, and every argument that tunes its kernels."""
    known = importlib.import_module(f"{package.__name__}._metal.plan.backends").UPSTREAM_KNOBS
    tuning = dict.fromkeys(sorted(known), (8, 8))
    package.set_backend(backend)
    return lambda x: package.na2d(x, x * 2, x + 1, 3, backend="cutlass-fna", **tuning)


def chosen_within(package: Any, backend: str) -> Call:
    def call(x: Tensor) -> Tensor:
        with package.use_backend(backend):
            return package.na2d(x, x * 2, x + 1, 3)

    return call


def generation(package: Any, version: str, backend: str) -> Call:
    """An old generation's fused op."""
    package.set_backend(backend)
    natten = package.compat.for_version(version)
    return lambda x: natten.functional.na2d(x, x * 2, x + 1, kernel_size=3, dilation=1)


def generation_module(package: Any, version: str, backend: str) -> Call:
    package.set_backend(backend)
    natten = package.compat.for_version(version)
    made: Call = natten.NeighborhoodAttention2D(WIDTH, HEADS, kernel_size=3)
    return made


def at_once(work: Callable[[], Any]) -> list[Any]:
    """The results of ``work`` in :data:`THREADS` threads that start at the same moment."""
    gate, found = threading.Barrier(THREADS), []

    def run() -> None:
        gate.wait()
        found.append(work())

    threads = [threading.Thread(target=run) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == THREADS
    return found


def _shape(rank: int) -> tuple[int, ...]:
    return (1, *SIZES[:rank], HEADS, DIM)


RANKS = (1, 2, 3)
# The shape of x, and a function that makes the call for (package, backend).
CALLS: dict[str, tuple[tuple[int, ...], Callable[[Any, str], Call]]] = {
    **{f"na{r}d": (_shape(r), lambda p, b, r=r: fused(p, f"na{r}d", r, b)) for r in RANKS},
    "neighborhood_attention": (_shape(2), lambda p, b: fused(p, "neighborhood_attention", 2, b)),
    **{f"na{r}d_qk na{r}d_av": (_shape(r), lambda p, b, r=r: split(p, r, b)) for r in RANKS},
    "attention": (_shape(1), lambda p, b: lambda x: p.attention(x, x * 2, x + 1, True, backend=b)),
    "merge_attentions": (_shape(2), merged),
    "generate_varlen_parameters": (_shape(1), packed),
    "attention by length": (_shape(1), by_length),
    **{f"na{r}d_varlen": (_shape(r), lambda p, b, r=r: varlen(p, r, b)) for r in RANKS},
    **{f"NeighborhoodAttention{r}D": ((1, *SIZES[:r], WIDTH), lambda p, b, r=r: module(p, r, b)) for r in RANKS},
    "NeighborhoodAttention2D of sizes": ((1, *SIZES[:2], WIDTH), module_of_sizes),
    "knobs": (_shape(2), knobs),
    "use_backend": (_shape(2), chosen_within),
    **{
        f"compat {version}": (shape, lambda p, b, v=version: generation(p, v, b))
        for version, shape in (("0.17.5", _shape(2)), ("0.21.0", _shape(2)))
    },
    "compat module": ((1, *SIZES[:2], WIDTH), lambda p, b: generation_module(p, "0.21.0", b)),
}


def outcomes(module: str, cases: Iterable[Case], timeout: float) -> dict[Case, str]:
    """The outcome of each case in its own process, '' or a traceback. The module's ``attempt`` tries a case."""
    cases = list(cases)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("NATTEN")}
    paths = os.pathsep.join([os.path.dirname(__file__), *(path for path in sys.path if path)])
    done = subprocess.run(
        [sys.executable, __file__, module],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        timeout=timeout,
        env=kept | {"PYTHONPATH": paths},
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(cases, json.loads(done.stdout.splitlines()[-1]), strict=True))


def _try(module: str, case: Case, sender: Any) -> None:
    """Try a case in its own process, so that nothing is left over from another one."""
    tables = importlib.import_module(module)
    try:
        assert tables.PACKAGE not in sys.modules
        tables.attempt(*case)
        sender.send("")
    except BaseException:  # noqa: BLE001 - passed on, whatever it is
        sender.send(traceback.format_exc())


def _main(module: str) -> None:
    importlib.import_module(module)  # the framework, once for all cases where processes can be forked
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    found = []
    for case in json.load(sys.stdin):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_try, args=(module, case, sender))
        process.start()
        sender.close()
        try:
            found.append(receiver.recv())
        except EOFError:
            found.append("it ended without an answer")
        process.join()
        if process.exitcode:
            found[-1] += f"exit code {process.exitcode}"
    print(f"\n{json.dumps(found)}")


if __name__ == "__main__":
    _main(sys.argv[1])
