"""torch's own counter, FlopCounterMode, counts every op as ``natten_mps.flops`` does."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

import natten_mps
from natten_mps._metal.plan import backends

# Shape, and the window's arguments, of one call for each rank.
CALLS: list[tuple[tuple[int, ...], dict[str, Any]]] = [
    ((11,), {"kernel_size": 4, "stride": 2, "is_causal": True}),
    ((6, 9), {"kernel_size": (3, 4), "dilation": (2, 1), "is_causal": (False, True)}),
    ((4, 5, 6), {"kernel_size": 3, "stride": (1, 2, 3)}),
]


def counted(call: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def tensors_of(shape: tuple[int, ...], dim_v: int = 5) -> list[torch.Tensor]:
    sizes = ((4, 8), (2, 8), (2, dim_v))
    return [torch.randn(2, *shape, *size, requires_grad=True) for size in sizes]


def worth(face: str, tensors: list[torch.Tensor], **arguments: Any) -> tuple[int, int]:
    forward = natten_mps.flops(face, *tensors, **arguments)
    return forward, forward + natten_mps.flops(face, *tensors, backward=True, **arguments)


@pytest.mark.parametrize("backend", ["native", "pure"])
@pytest.mark.parametrize(("shape", "window"), CALLS)
def test_eager(shape: tuple[int, ...], window: dict[str, Any], backend: str) -> None:
    tensors, face = tensors_of(shape), f"na{len(shape)}d"
    given = window | {"backend": backend}
    forward, both = worth(face, tensors, **given)
    op = getattr(natten_mps, face)
    assert counted(lambda: op(*(t.detach() for t in tensors), **given)) == forward
    assert counted(lambda: op(*tensors, **given).sum().backward()) == both
    # The split ops: logits and their gradients, weights and theirs.
    query, key, value = tensors
    forward, both = worth(f"{face}_qk", [query, key], **given)
    logits = getattr(natten_mps, f"{face}_qk")(query, key, **given).detach()
    assert counted(lambda: getattr(natten_mps, f"{face}_qk")(query, key, **given).sum().backward()) == both
    weights = logits.softmax(-1).requires_grad_()
    forward, both = worth(f"{face}_av", [weights, value], **given)
    assert counted(lambda: getattr(natten_mps, f"{face}_av")(weights, value, **given).sum().backward()) == both


@pytest.mark.parametrize(("shape", "window"), CALLS)
def test_compiled(shape: tuple[int, ...], window: dict[str, Any]) -> None:
    """Under the counter torch runs a compiled function as it was written; a compiled graph itself counts the same."""
    tensors, face, graphs = tensors_of(shape), f"na{len(shape)}d", list[tuple[Any, Any]]()

    def keep(graph: Any, examples: Any) -> Any:
        graphs.append((graph, examples))
        return make_boxed_func(graph.forward)

    backend = aot_autograd(fw_compiler=keep, bw_compiler=keep)
    op = torch.compile(lambda *given: getattr(natten_mps, face)(*given, **window), backend=backend)
    _, both = worth(face, tensors, **window)
    op(*tensors).sum().backward()
    assert len(graphs) == 2, "forward and backward"
    assert counted(lambda: op(*tensors).sum().backward()) == both
    total = 0
    for graph, examples in graphs:
        with next(each.fake_mode for each in examples if isinstance(each, FakeTensor)):
            total += counted(partial(graph, *examples))
    assert total == both


def test_a_compiled_function_that_was_counted_first() -> None:
    """Torch then gives up compiling it as a whole, and looks at each function that it calls."""
    query = torch.randn(1, 12, 2, 8, requires_grad=True)
    op = torch.compile(lambda q: natten_mps.na1d(q, q, q, 3), backend="aot_eager")
    _, both = worth("na1d", [query] * 3, kernel_size=3)
    assert counted(lambda: op(query).sum().backward()) == both
    assert torch.equal(op(query), natten_mps.na1d(query, query, query, 3))


@pytest.mark.parametrize(("shape", "window"), CALLS)
def test_fake_tensors(shape: tuple[int, ...], window: dict[str, Any]) -> None:
    face = f"na{len(shape)}d"
    with FakeTensorMode():
        tensors = tensors_of(shape)
        _, both = worth(face, tensors, **window)
        assert counted(lambda: getattr(natten_mps, face)(*tensors, **window).sum().backward()) == both


def test_symbolic_sizes() -> None:
    """A graph traced with symbolic sizes is counted with the sizes that it has in the call."""
    seen = []

    def backend(graph: torch.fx.GraphModule, examples: Any) -> Any:
        fake = next(
            node.meta["example_value"]
            for node in graph.graph.nodes
            if node.op == "placeholder" and isinstance(node.meta["example_value"], torch.Tensor)
        )
        with fake.fake_mode:
            seen.append(counted(lambda: natten_mps.na1d(fake, fake, fake, 3, backend="native")))
        return graph.forward

    query = torch.randn(1, 12, 2, 8)
    torch.compile(lambda q: natten_mps.na1d(q, q, q, 3), backend=backend, dynamic=True)(query)
    assert seen == [natten_mps.flops("na1d", query, query, query, kernel_size=3)]


def test_attention_and_modules() -> None:
    query, key = torch.randn(1, 8, 2, 4, requires_grad=True), torch.randn(1, 5, 2, 4)
    _, both = worth("attention", [query, key, key], is_causal=True)
    assert counted(lambda: natten_mps.attention(query, key, key, is_causal=True).sum().backward()) == both
    layer = natten_mps.NeighborhoodAttention2D(16, 2, 3, is_causal=True, rel_pos_bias=True)
    x = torch.randn(2, 5, 6, 16, requires_grad=True)
    forward, backward = natten_mps.flops(layer, x), natten_mps.flops(layer, x, backward=True)
    assert counted(lambda: layer(x.detach())) == forward
    assert counted(lambda: layer(x).sum().backward()) == forward + backward


def test_items_of_different_sizes(caplog: pytest.LogCaptureFixture) -> None:
    """Every item counts with its own size, and where a tracer has no sizes, one line in the log says so."""
    sizes = [(5, 4), (3, 6), (5, 4)]
    query = torch.randn(3, 5, 6, 2, 8, requires_grad=True)
    shapes = [(1, *size, 2, 8) for size in sizes]
    wanted = [
        sum(natten_mps.flops("na2d", *[shape] * 3, kernel_size=3, backward=backward) for shape in shapes)
        for backward in (False, True)
    ]
    assert counted(lambda: natten_mps.na2d_varlen(query, query, query, sizes, 3).sum().backward()) == sum(wanted)
    lengths = torch.tensor([5, 7])
    packed = torch.randn(1, 12, 2, 8)
    shapes = [(1, int(length), 2, 8) for length in lengths]
    found = counted(lambda: natten_mps.attention(*[packed] * 3, seqlens_Q=lengths, seqlens_KV=lengths))
    assert found == sum(natten_mps.flops("attention", *[shape] * 3) for shape in shapes)

    backends.logged.clear()
    caplog.set_level(logging.INFO, "natten")
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake, table = mode.from_tensor(packed), mode.from_tensor(torch.zeros(2, 7, dtype=torch.int64))
        arguments = ("packed", "attention", 1, [False], 0.5, "auto", "attention")
        assert counted(lambda: torch.ops.natten_mps.varlen_forward([fake, fake, fake, None], table, *arguments)) == 0
    assert "attention: the sizes of the items are known only when it runs" in caplog.text


FIRST = "import natten_mps, torch; assert 'torch.utils.flop_counter' not in sys.modules"
COUNT = """
from torch.utils.flop_counter import FlopCounterMode
query = torch.randn(1, 9, 2, 4)
with FlopCounterMode(display=False) as counter:
    natten_mps.na1d(query, query, query, 3)
assert counter.get_total_flops() == natten_mps.flops("na1d", query, query, query, kernel_size=3) > 0
"""


AFTER = pytest.param("import torch.utils.flop_counter, natten_mps, torch", id="after", marks=pytest.mark.all)


@pytest.mark.parametrize("first", [pytest.param(FIRST, id="before"), AFTER])
def test_the_counter_may_be_imported_before_or_after(first: str) -> None:
    """And the package does not import it."""
    subprocess.run([sys.executable, "-c", f"import sys\n{first}{COUNT}"], check=True)
