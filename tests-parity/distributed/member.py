"""One process of a group: ``python member.py FRAMEWORK TASK``. Reports are lines of JSON."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from typing import Any

import numpy as np
from members import member
from shard_cases import ShardCase, cases, per_axis

from natten_mps._metal.problem import shards

DRAWN = int(os.environ["DRAWN"])


def report(**given: Any) -> None:
    print(json.dumps(given), flush=True)


def own(array: Any, case: ShardCase, index: int) -> Any:
    """The process's shard of an array that has the axes of tokens."""
    return array[(slice(None), *(slice(*each) for each in case.shards.own(index)))]


def error(found: Any, expected: Any) -> float:
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-3))


def agree(fw: Any) -> None:
    """Report how each case on all processes differs from the same call on one, and how many bytes were sent."""
    for number, case in enumerate(cases(fw.count, DRAWN)):
        face, names = f"na{len(case.shape)}d", list(case.inputs)
        given = {name: fw.tensor(array, case.dtype) for name, array in case.inputs.items()}
        cotangents = [fw.tensor(each, case.dtype) for each in case.cotangents]

        def call(module: Any, *tensors: Any, **more: Any) -> Any:
            others = dict(zip(names[3:], tensors[3:], strict=True))  # noqa: B023
            window = case.arguments | {"return_lse": True, "backend": "pure"} | others  # noqa: B023
            return getattr(module, face)(*tensors[:3], **window, **more)  # noqa: B023

        def whole(*tensors: Any) -> Any:
            return call(fw.whole, *tensors)

        def shared(*tensors: Any) -> Any:
            return call(fw.shared, *tensors, **fw.cut(case))  # noqa: B023

        expected, expected_grads = fw.vjp(whole, list(given.values()), cotangents)
        shard = [own(each, case, fw.index) if at < 3 else each for at, each in enumerate(given.values())]
        fw.sent = 0
        outputs, grads = fw.vjp(shared, shard, [own(each, case, fw.index) for each in cotangents])
        errors = {
            name: error(fw.numpy(found), own(fw.numpy(wanted), case, fw.index))
            for name, found, wanted in zip(("out", "lse"), outputs, expected, strict=True)
        }
        for at, name in enumerate(names):
            wanted = fw.numpy(expected_grads[at])
            errors[f"{name}_grad"] = error(fw.numpy(grads[at]), own(wanted, case, fw.index) if at < 3 else wanted)
        width = case.bytes_per_token(2 if case.dtype else fw.itemsize)
        if fw.in_ring:
            due = sum(shards.bytes_sent_in_ring(case.shards, fw.index, width, back) for back in (False, True))
        else:
            due = shards.bytes_sent(case.shards, fw.index, width) + shards.bytes_returned(case.shards, fw.index, width)
        tolerance = 0.03 if case.dtype else fw.tolerance
        report(case=number, what=str(case), errors=errors, tolerance=tolerance, sent=fw.sent, due=due)


SHARD = ShardCase(((0, 6, 12, 18),), (0,), per_axis(1, kernel_size=5), 7)


def rejected(fw: Any) -> None:
    """Calls that do not fit together: each process reports its error, and the group still works afterwards."""
    tensor = fw.tensor
    last = fw.index == fw.count - 1

    def shapes(length: int, heads: int = 2) -> list[Any]:
        return [tensor(np.ones((1, length, heads, 4))) for _ in range(3)]

    def ask(name: str, tensors: list[Any], **more: Any) -> None:
        try:
            fw.shared.na1d(*tensors, **({"kernel_size": 5} | fw.cut(SHARD) | more))
        except (ValueError, TypeError, NotImplementedError) as raised:
            report(call=name, kind=type(raised).__name__, text=str(raised))
        else:
            report(call=name, kind="", text="")

    wrong = [*shapes(6)[:2], *shapes(5)[2:]]
    ask("value is shorter", wrong if last else shapes(6))
    ask("other heads", shapes(6, 3 if last else 2))
    ask("other window", shapes(6), kernel_size=3 if last else 5)
    ask("window is too wide", shapes(2), kernel_size=7)
    ask("no tensor", [None, *shapes(6)[1:]] if last else shapes(6))
    ask("no tokens", shapes(0 if last else 6))
    ask("axis", shapes(6), axis=1)
    ask("a mask", shapes(6), key_mask=tensor(np.ones((1, 6))))
    ask("legal", shapes(6))


def killed(fw: Any) -> None:
    """One process dies between two calls; the others make the next one."""
    inputs = [own(fw.tensor(each), SHARD, fw.index) for each in SHARD.inputs.values()]

    def call() -> Any:
        return fw.numpy(fw.shared.na1d(*inputs, kernel_size=5, backend="pure", **fw.cut(SHARD)))

    call()
    if fw.index == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    begin = time.monotonic()
    try:
        for _ in range(2):
            call()
    except RuntimeError as raised:
        report(kind=type(raised).__name__, seconds=time.monotonic() - begin)
        os._exit(3)  # without ending the group properly, which would wait for the others
    report(kind="", seconds=time.monotonic() - begin)


def stopped(fw: Any) -> None:
    """One process stays alive, but never makes the call."""
    inputs = [own(fw.tensor(each), SHARD, fw.index) for each in SHARD.inputs.values()]
    begin = time.monotonic()
    if fw.index == 1:
        time.sleep(14)
        os._exit(0)
    try:
        fw.numpy(fw.shared.na1d(*inputs, kernel_size=5, backend="pure", **fw.cut(SHARD)))
    except RuntimeError as raised:
        report(kind=type(raised).__name__, seconds=time.monotonic() - begin)
        os._exit(3)


def compiled(fw: Any) -> None:
    """torch.compile breaks its graph at a call, which is computed as without it."""
    from torch._dynamo.testing import CompileCounter

    inputs, counter = [own(fw.tensor(each), SHARD, fw.index) for each in SHARD.inputs.values()], CompileCounter()
    cut = fw.cut(SHARD)

    def call(query: Any, key: Any, value: Any) -> Any:
        return (fw.shared.na1d(query.sin(), key, value, kernel_size=5, backend="pure", **cut).cos(),)

    traced = fw.torch.compile(call, backend=counter)
    cotangents = [fw.torch.ones_like(inputs[2])]
    found, wanted = (fw.vjp(each, inputs, cotangents) for each in (traced, call))
    pairs = zip((*found[0], *found[1]), (*wanted[0], *wanted[1]), strict=True)
    report(graphs=counter.frame_count, errors=[error(fw.numpy(a), fw.numpy(b)) for a, b in pairs])


def placed(fw: Any) -> None:
    """DTensors in, DTensors out, gradients too; uneven shards, as torch cuts them. And placements that do not fit."""
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor, init_device_mesh

    on_line = init_device_mesh("cpu", (fw.count,))
    window, heads = per_axis(2, kernel_size=(3, 4), dilation=(2, 1)), {"heads": 4, "kv_heads": 2, "additional": 2}
    case = ShardCase(((0, 7), (0, 11)), (1,), window, 6, rpb=True, **heads)
    ways = [(on_line, [Shard(2)])] + ([] if fw.mesh is None else [(fw.mesh, [Shard(2), Shard(1)])])
    names, given = list(case.inputs), [fw.tensor(each) for each in case.inputs.values()]
    cotangents = [fw.tensor(each) for each in case.cotangents]
    options = window | {"return_lse": True, "backend": "pure"}
    for mesh, placements in ways:
        everywhere = [Replicate()] * mesh.ndim

        def call(module: Any, *tensors: Any) -> Any:
            return module.na2d(*tensors[:3], **dict(zip(names[3:], tensors[3:], strict=True)), **options)

        def put(tensor: Any, at: Any) -> Any:
            return distribute_tensor(tensor, mesh, at)  # noqa: B023

        shards = [put(each, placements if at < 3 else everywhere) for at, each in enumerate(given)]
        found = fw.vjp(lambda *each: call(fw.shared, *each), shards, [put(each, placements) for each in cotangents])
        wanted = fw.vjp(lambda *each: call(fw.whole, *each), given, cotangents)
        assert all(isinstance(each, DTensor) for part in found for each in part)
        assert all(list(each.placements) == placements for each in (*found[0], *found[1][:3]))
        pairs = zip((*found[0], *found[1]), (*wanted[0], *wanted[1]), strict=True)
        report(errors=[error(fw.numpy(own.full_tensor()), fw.numpy(whole)) for own, whole in pairs])
    shards = [distribute_tensor(each, on_line, [Shard(2)]) for each in given[:3]]
    by_heads = [distribute_tensor(each, on_line, [Shard(3)]) for each in given[:3]]
    more = distribute_tensor(given[3], on_line, [Shard(1)])
    for tensors, extra in (
        ([shards[0], *given[1:3]], {}),
        ([*shards[:2], by_heads[2]], {}),
        (by_heads, {}),
        (shards, {"additional_keys": more, "additional_values": given[4]}),
        (shards, {"group": fw.torch.distributed.group.WORLD}),
    ):
        try:
            fw.shared.na2d(*tensors, 3, **extra)
        except ValueError as raised:
            report(text=str(raised))


def summed(fw: Any) -> None:
    """Parameters that only some processes' losses depend on, or none; and modules that differ."""
    nn = fw.torch.nn
    module = nn.ModuleDict({name: nn.Linear(1, 1, bias=False) for name in ("all", "last", "none")})
    last = fw.index == fw.count - 1
    used = ["all", "last"] if last else ["all"]
    for name in used:
        (module[name].weight * (fw.index + 1)).sum().backward()
    fw.shared.sum_gradients(module)
    grads = [module[name].weight.grad for name in module]
    report(sums=[None if grad is None else grad.item() for grad in grads])
    try:
        fw.shared.sum_gradients(nn.Linear(2 if last else 1, 1))
    except ValueError as raised:
        report(text=str(raised))


if __name__ == "__main__":
    process = member(sys.argv[1])
    {each.__name__: each for each in (agree, rejected, killed, stopped, compiled, placed, summed)}[sys.argv[2]](process)
    process.end()
    # All that is tested is over. Gloo's threads may still hold DTensors' transfers while the interpreter ends, and then
    # torch aborts at times.
    sys.stdout.flush()
    os._exit(0)
