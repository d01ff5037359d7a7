"""The case table through natten_mps on an emulated Apple GPU: forward and all gradients, as users call them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tolerances
import torch
from cases import BY_NAME, CASES, MASKED, Case
from frameworks import MPS, Found, Path, held_slots, run, run_av, run_qk
from varlen_items import BATCHES, Items

import natten_mps

from .host import EmulatedHost
from .launch import schedules
from .table import DTYPES, MAX_KERNELS, PADDED, Entry, chosen, entries

Array = Any
METAL, PURE = Path(MPS, "metal"), Path(MPS, "pure")
RUNNERS: dict[str, tuple[Callable[..., Found], Callable[..., dict[str, tolerances.Expected]]]] = {
    "na": (run, tolerances.fused),
    "qk": (run_qk, tolerances.split_qk),
    "av": (run_av, tolerances.split_av),
}
BATCHES_ALWAYS = ("dilated", "volumes")


def parameters() -> list[Any]:
    """All entries of the table; those that need more kernels than the default run compiles only with --all."""
    found = []
    for entry in entries():
        # Entries that share kernels run in one worker.
        marks = [pytest.mark.xdist_group(f"table-{entry.op}-{entry.dtype}")]
        found.append(
            pytest.param(entry, id=str(entry), marks=marks if entry in chosen() else [*marks, pytest.mark.all])
        )
    return found


def narrow(name: str) -> str:
    """A kernel's name without the flag for 16-byte copies, which depends on the tensors' addresses."""
    start, _, flags = name.rpartition("_")
    return f"{start}_{flags.replace('w', '')}"


@pytest.mark.parametrize("entry", parameters())
def test_case(entry: Entry, metal: EmulatedHost, request: pytest.FixtureRequest) -> None:
    """Results are within bounds, and exactly the planned launches run, with the planned work.

    In one of three schedules; with --all in each of them, with the same bits.
    """
    runner, expected = RUNNERS[entry.op]
    wanted, (pure, _) = expected(entry.case, entry.dtype), runner(PURE, entry.case, entry.dtype)
    found = []
    for schedule in schedules(len(str(entry)), every=request.config.getoption("--all")):
        metal.launches.clear()
        metal.schedule, metal.seed = schedule, len(str(entry))
        values, dtypes = runner.__wrapped__(METAL, entry.case, entry.dtype)
        assert {dtypes[name] for name in dtypes if name != "lse"} == {entry.dtype}
        check_launches(entry, metal)
        found.append(values)
    for name, expected_ in wanted.items():
        assert tolerances.deviation(found[0][name], pure[name]) <= expected_.bound, f"{entry}: {name}, pure and Metal"
        assert all(values[name].tobytes() == found[0][name].tobytes() for values in found), (
            f"{entry}: {name}, schedules"
        )
    tolerances.assert_within(found[0], wanted, str(entry))
    if entry.op != "na":
        slots = found[0]["logits" if entry.op == "qk" else "attn"]
        empty = -np.inf if entry.op == "qk" else 0
        assert (slots[~np.broadcast_to(held_slots(entry.case), slots.shape)] == empty).all()


def check_launches(entry: Entry, metal: EmulatedHost) -> None:
    """Assert that the planned launches ran, in order, with the planned work, and wrote each element once."""
    program = entry.program
    assert [narrow(name) for name in metal.names] == [planned.instance.name for planned in program]
    for launch, planned in zip(metal.launches, program, strict=True):
        assert (launch.executed, launch.full) == (planned.bricks, planned.full), launch.name
        assert launch.multiply_accumulates == planned.products, launch.name
        assert launch.written_once, launch.name
        assert launch.threads == planned.threads


def test_the_default_run_covers_the_table() -> None:
    """All features, with few kernels; the whole table is at least 400 forward and backward runs."""
    every, always = entries(), chosen()
    assert 2 * len(every) >= 400 and len({str(entry) for entry in every}) == len(every)
    assert {entry.case for entry in every} == {case for case in (*CASES, *PADDED, *MASKED) if case.batch}
    features = [frozenset().union(*(entry.features for entry in some)) for some in (every, always)]
    assert features[0] == features[1]
    assert {entry.dtype for entry in always} == set(DTYPES)
    assert len(frozenset().union(*(entry.instances for entry in always))) <= MAX_KERNELS


def test_an_empty_batch_launches_nothing(metal: EmulatedHost) -> None:
    query = torch.zeros(0, 5, 6, 2, 8, requires_grad=True)
    out, lse = natten_mps.na2d(query, query, query, 3, return_lse=True, backend="metal")
    (gradient,) = torch.autograd.grad(out.sum() + lse.sum(), query)
    assert out.shape == (0, 5, 6, 2, 8) and lse.shape == (0, 5, 6, 2) and gradient.shape == query.shape
    assert not metal.launches


# --- layouts ---------------------------------------------------------------------------------------


def results(query: Any, key: Any, value: Any, backend: str, **arguments: Any) -> list[Any]:
    """out, lse and the gradients of three tensors, which keep their memory layout."""
    out, lse = natten_mps.na2d(query, key, value, 3, return_lse=True, backend=backend, **arguments)
    cotangents = torch.linspace(-1, 1, out.numel()).reshape(out.shape), torch.linspace(1, 2, lse.numel())
    grads = torch.autograd.grad(
        (out, lse), (query, key, value), (cotangents[0].to(out.dtype), cotangents[1].reshape(lse.shape))
    )
    return [out, lse, *grads]


def layouts() -> dict[str, Callable[[Any], Any]]:
    """The same values with another memory layout."""
    return {
        "channels apart": lambda x: x.transpose(-1, 1).contiguous().transpose(-1, 1),
        "heads first": lambda x: x.transpose(1, 3).contiguous().transpose(1, 3),
        "an offset of one element": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
        "every other token": lambda x: x.repeat_interleave(2, 1)[:, ::2],
    }


@pytest.mark.parametrize("layout", layouts())
def test_memory_layout_does_not_matter(layout: str, metal: EmulatedHost) -> None:
    """Views of other tensors, misaligned ones, and channels that are not contiguous."""
    torch.manual_seed(0)
    packed = [torch.randn(1, 6, 7, 2, 16) for _ in range(3)]
    views = [layouts()[layout](tensor).requires_grad_() for tensor in packed]
    assert all(view.stride() != t.stride() or view.storage_offset() for view, t in zip(views, packed, strict=True))
    found = results(*views, "metal")
    assert all(launch.written_once for launch in metal.launches)
    # 16-byte copies need aligned tensors.
    assert (layout == "an offset of one element") == all("w" not in n.rpartition("_")[2] for n in metal.names)
    wanted = results(*(tensor.requires_grad_() for tensor in packed), "pure")
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-5)


def test_one_tensor_as_query_key_and_value(metal: EmulatedHost) -> None:
    """Slices of one fused projection, and a batch that repeats one item."""
    torch.manual_seed(1)
    fused = torch.randn(1, 6, 7, 3, 2, 16).expand(2, -1, -1, -1, -1, -1)
    leaves = [part.detach().requires_grad_() for part in fused.unbind(3)]
    assert leaves[0].stride(0) == 0
    for a, b in zip(results(*leaves, "metal"), results(*leaves, "pure"), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-5)
    assert metal.launches


# --- the other faces -------------------------------------------------------------------------------


def compare(metal: EmulatedHost, call: Callable[[], list[Any]], tolerance: float = 2e-5) -> list[Any]:
    """``call`` on Metal and on the pure backend; asserts that the first runs on Metal and the second does not."""
    found = []
    for backend in ("metal", "pure"):
        before = len(metal.launches)
        with natten_mps.use_backend(backend), MPS.watch() as ran:
            found.append(call())
        assert ran == {backend} and (len(metal.launches) > before) == (backend == "metal")
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
    assert all(launch.written_once for launch in metal.launches)
    return found[0]


@pytest.mark.parametrize(("queries", "keys", "causal"), [(13, 13, True), (9, 21, True), (21, 9, True), (11, 17, False)])
def test_attention(queries: int, keys: int, causal: bool, metal: EmulatedHost) -> None:
    """Full attention with grouped heads; causal from the top left where lengths differ."""
    torch.manual_seed(queries)
    tensors = [torch.randn(2, n, h, d, requires_grad=True) for n, h, d in ((queries, 4, 8), (keys, 2, 8), (keys, 2, 5))]

    def call() -> list[Any]:
        out, lse = natten_mps.attention(*tensors, is_causal=causal, return_lse=True)
        return [out, lse, *torch.autograd.grad(out.sin().sum() + lse.cos().sum(), tensors)]

    compare(metal, call)


def batches() -> list[Any]:
    """Some always, the others with --all, because every size of an item has a plan of its own."""
    return [
        pytest.param(batch, id=batch.name, marks=[] if batch.name in BATCHES_ALWAYS else [pytest.mark.all])
        for batch in BATCHES
        if any(0 not in size for size in batch.sizes)
    ]


@pytest.mark.parametrize("batch", batches())
def test_padded_items(batch: Items, metal: EmulatedHost) -> None:
    """Results and gradients, with a gradient that flows into lse too; outside the items only zeros, and lse -inf."""
    *tensors, d_out, d_lse = [torch.tensor(array, dtype=torch.float32) for array in batch.arrays()]
    leaves = [tensor.requires_grad_() for tensor in tensors]
    face = getattr(natten_mps, f"na{batch.rank}d_varlen")

    def call() -> list[Any]:
        out, lse = face(*leaves, batch.argument, **batch.window, return_lse=True)
        return [out, lse, *torch.autograd.grad((out, lse), leaves, (d_out, d_lse))]

    out, lse, *gradients = compare(metal, call)
    outside = torch.from_numpy(batch.outside())
    assert (lse[outside] == -torch.inf).all()
    assert not any(tensor[outside].any() for tensor in (out, *gradients))


@pytest.mark.parametrize("dropping", [False, True])
def test_a_module(dropping: bool, metal: EmulatedHost) -> None:
    """Forward, input gradient and parameter gradients; with dropped weights through the split ops."""
    torch.manual_seed(3)
    module = natten_mps.NeighborhoodAttention2D(16, 2, (3, 5), attn_drop=0.5 * dropping, rel_pos_bias=True)
    x = torch.randn(2, 6, 7, 16, requires_grad=True)

    def call() -> list[Any]:
        torch.manual_seed(4)
        out = module(x)
        return [out, *torch.autograd.grad(out.sin().sum(), [x, *module.parameters()])]

    compare(metal, call, 1e-4)
    assert any(name.startswith("na_qk") for name in metal.names) == dropping
    assert any(name.startswith("na_fwd") for name in metal.names) != dropping


def test_vmap_and_merging(metal: EmulatedHost) -> None:
    """A mapped axis folds into the batch; two dilations merge into one softmax."""
    torch.manual_seed(5)
    tensors = [torch.randn(2, 1, 15, 2, 8, requires_grad=True) for _ in range(3)]

    def both(query: Any, key: Any, value: Any) -> Any:
        parts = [natten_mps.na1d(query, key, value, 3, dilation=d, return_lse=True) for d in (1, 4)]
        return natten_mps.merge_attentions(*map(list, zip(*parts, strict=True)))

    def call() -> list[Any]:
        out, lse = torch.vmap(both)(*tensors)
        return [out, lse, *torch.autograd.grad(out.sin().sum() + lse.sum(), tensors)]

    compare(metal, call)


def test_metal_has_no_float64(metal: EmulatedHost) -> None:
    query = torch.randn(1, 9, 1, 8, dtype=torch.float64)
    with pytest.raises(
        NotImplementedError, match=r"^na1d: backend='metal' cannot take this problem: Metal has no float64"
    ):
        natten_mps.na1d(query, query, query, 3, backend="metal")
    assert natten_mps.na1d(query, query, query, 3).dtype == torch.float64
    assert not metal.launches


def test_explain_names_the_kernels(metal: EmulatedHost) -> None:
    """The kernel that explain names is the one that runs, with the bricks that explain counts."""
    case: Case = replace(BY_NAME["img"], name="explained")
    query, key, value = (torch.randn(1, *case.shape, 2, 8) for _ in range(3))
    text = natten_mps.explain("na2d", query, key, value, kernel_size=3)
    natten_mps.na2d(query, key, value, 3)
    (launch,) = metal.launches
    assert f"kernel {launch.name}: " in text and f"{launch.executed} bricks, {launch.full} of them" in text
