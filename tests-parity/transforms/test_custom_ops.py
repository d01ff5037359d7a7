"""torch's own checks of every custom op behind the faces: schema, fake, autograd, tracing with dynamic shapes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import BY_NAME, INPUTS, inputs
from frameworks import MPS
from pieces import Cut, slabs
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

NAMES = ("seq-causal-dilated-stride", "img-rpb-everything", "vol-gqa-additional")
CHECKED = {f"{op}_{direction}" for op in ("na", "attention", "qk", "av") for direction in ("forward", "backward")}
VARLEN = {"varlen_table", "varlen_forward", "varlen_backward"}
CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


def registered() -> set[str]:
    return {name.removeprefix("natten_mps::") for name in torch._C._dispatch_get_all_op_names() if "natten_mps" in name}


def calls(name: str, cut: Cut | None = None) -> dict[str, list[tuple[Any, ...]]]:
    """Arguments of every op, for a case's sizes and window; cut: of those that compute pieces, for this piece of it."""
    case, ops = BY_NAME[name], MPS.module("_ops").torch.ops.natten_mps
    arrays = inputs(case, "float64") if cut is None else cut.of(inputs(case, "float64"))
    tensors = {n: MPS.tensor(arrays[n]) for n in INPUTS if n in arrays}
    window = [list(each) for each in case.window.values()]
    static: tuple[Any, ...] = (*window, case.factor, MPS.package.get_backend())
    if cut is not None:
        static = (*static, [number for part in cut.arguments.values() for number in part])
    found: dict[str, list[tuple[Any, ...]]] = {}

    def add(op: str, given: list[Any], how: tuple[Any, ...], lacks_last: bool = False) -> list[Any]:
        """The op's forward and backward, and what forward returns; lacks_last: also without the last cotangent."""
        outputs = getattr(ops, f"{op}_forward")(given, *how)
        cotangents = [torch.randn_like(each) for each in outputs]
        found[f"{op}_forward"] = [(given, *how)]
        found[f"{op}_backward"] = [(cotangents, given, outputs, *how)]
        if lacks_last:
            found[f"{op}_backward"].append(([*cotangents[:-1], None], given, outputs, *how))
        return list(outputs)

    add("na", [tensors.get(n) for n in INPUTS], static, lacks_last=True)
    query, key, value = (tensors[n] for n in INPUTS[:3])
    (logits,) = add("qk", [query, key, tensors.get("rpb")], static)
    add("av", [logits.softmax(-1), value], static)
    if cut is not None:
        return found
    flat = [t.flatten(1, -3) for t in (query, key, value)]
    add("attention", flat, ([], [1], [1], [True], case.factor, static[-1]), lacks_last=True)
    return found


@pytest.mark.usefixtures("torch_path")
@pytest.mark.parametrize("name", NAMES)
def test_every_op_is_well_formed(name: str) -> None:
    given = calls(name)
    assert set(given) == CHECKED
    check(given)


@pytest.mark.usefixtures("torch_path")
def test_ops_on_pieces_are_well_formed() -> None:
    case = BY_NAME["img-rpb-everything"]
    given = calls(case.name, list(slabs(case, 1, 2))[1])
    assert set(given) == {name for name in CHECKED if not name.startswith("attention")}
    check(given)


def check(given: dict[str, list[tuple[Any, ...]]]) -> None:
    """Calls of ops by name pass torch's checks."""
    for op, arguments in given.items():
        for each in arguments:
            overload = getattr(torch.ops.natten_mps, op).default
            assert set(torch.library.opcheck(overload, each, test_utils=CHECKS).values()) == {"SUCCESS"}


def test_no_op_is_left_out() -> None:
    """A new op must be added above, too."""
    assert MPS.module("_ops") and MPS.module("_varlen_ops") and registered() == CHECKED | VARLEN


class Recorded(TorchDispatchMode):
    """Collects the calls of the package's own ops."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "natten_mps":
            self.calls.append((func, tree_map_only(Tensor, lambda t: t.detach(), args)))
        return func(*args, **(kwargs or {}))


@pytest.mark.usefixtures("torch_path")
def test_ops_of_varlen_are_well_formed() -> None:
    """Items in a padded batch, forward and backward. Their table is made by plain arithmetic and has no derivative."""
    query = torch.randn(3, 9, 2, 4, dtype=torch.float64, requires_grad=True)
    with Recorded() as seen:
        MPS.package.na1d_varlen(query, query * 2, query.sin(), [9, 5, 0], 3).sum().backward()
    assert {func.name() for func, _ in seen.calls} == {"natten_mps::varlen_forward", "natten_mps::varlen_backward"}
    for func, recorded in seen.calls:
        # The backward has no derivative, which the check of compiled calls would require.
        once = func.name().endswith("_forward")
        arguments = recorded if once else tree_map_only(Tensor, lambda t: t.detach(), recorded)
        assert set(torch.library.opcheck(func, arguments, test_utils=CHECKS).values()) == {"SUCCESS"}


@pytest.mark.usefixtures("torch_path")
@pytest.mark.parametrize("op", ["na", "attention", "qk", "av"])
def test_ops_differentiate_and_map_as_their_faces_do(op: str) -> None:
    """Graphs that torch.compile and torch.export make call the ops themselves."""
    given, *static = calls("seq-gqa")[f"{op}_forward"][0]
    forward = getattr(torch.ops.natten_mps, f"{op}_forward").default
    tensors = [t for t in given if t is not None]

    def call(*leaves: Any) -> Any:
        left = iter(leaves)
        return forward([None if t is None else next(left) for t in given], *static)[0]

    leaves = [t.clone().requires_grad_() for t in tensors]
    gradients = torch.autograd.grad((call(*leaves) ** 2).sum(), leaves)
    every = tuple(range(len(tensors)))
    mapped = torch.vmap(torch.func.grad(lambda *ts: (call(*ts) ** 2).sum(), argnums=every))
    for found, wanted in zip(mapped(*(torch.stack([t, t]) for t in tensors)), gradients, strict=True):
        torch.testing.assert_close(found, torch.stack([wanted, wanted]), rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(call, leaves, fast_mode=True)


@pytest.mark.parametrize("op", ["na", "attention", "qk", "av"])
def test_ops_under_levels_of_torch_func(op: str) -> None:
    """Compiled and exported programs: each level of torch.func applies the op's own rules."""
    given, *static = calls("seq-gqa")[f"{op}_forward"][0]
    forward = getattr(torch.ops.natten_mps, f"{op}_forward").default

    def call(first: Any) -> Any:
        return forward([first, *given[1:]], *static)[0]

    def grad(first: Any) -> Any:
        return torch.func.grad(lambda t: (call(t) ** 2).sum())(first)

    first = given[0]
    wanted = [grad(t) for t in (first, 2 * first, 3 * first, 4 * first)]
    assert wanted[0].any()
    many = torch.stack([first, 2 * first, 3 * first, 4 * first]).unflatten(0, (2, 2))
    found = torch.vmap(torch.vmap(grad))(many)
    torch.testing.assert_close(found.flatten(0, 1), torch.stack(wanted), rtol=0, atol=1e-12)
    if op in ("qk", "av"):  # the square of what is linear in the first tensor: its gradient is linear too
        torch.testing.assert_close(torch.func.jvp(grad, (first,), (first,))[1], wanted[0], rtol=0, atol=1e-12)
        return
    with pytest.raises(NotImplementedError, match="second derivatives are not implemented"):
        torch.func.grad(lambda t: grad(t).sum())(first)


PRIVATE = r"\b(?:torch|functorch|forward_ad)\.(?:\w+\.)*_[a-zA-Z]\w*(?:\.\w+)*|\._is_zerotensor"


def test_private_names_of_torch() -> None:
    """One module has them all."""
    package = Path(MPS.module("_private").__file__).parent
    private = {
        str(path.relative_to(package)): set(re.findall(PRIVATE, path.read_text())) for path in package.rglob("*.py")
    }
    assert {name: found for name, found in private.items() if found} == {
        "_private.py": {
            "torch._C._dispatch_keys",
            "torch._C._dynamo.eval_frame.get_eval_frame_callback",
            "torch._C._dispatch_tls_local_include_set",
            "torch._C.DispatchKeySet",
            "torch._C.DispatchKey.BackendSelect",
            "torch._C.DispatchKey.ADInplaceOrView",
            "torch.autograd.profiler._is_profiler_enabled",
            "torch._subclasses.FakeTensor",
            "torch._subclasses.fake_tensor.is_fake",
            "torch._C._AutoDispatchBelowADInplaceOrView",
            "forward_ad._set_fwd_grad_enabled",
            "._is_zerotensor",
            "forward_ad._current_level",
        }
    }


def test_what_private_names_do() -> None:
    """Running an op below autograd, forward mode, the keys by which the dispatcher would handle a call, profilers, fake
    tensors, and zeros without memory.
    """
    call, private = MPS.module("_call"), MPS.module("_private")
    query = torch.randn(1, 9, 2, 4, requires_grad=True)
    how = call.Call("attention", (), (1,), (1,), (False,), 0.5, "pure")
    assert call.forward_op(how, [query] * 3)[0].requires_grad
    assert not private.below_autograd(call.forward_op, how, [query] * 3)[0].requires_grad
    assert not private.in_forward_mode()
    assert not private.frames_are_compiled()
    asked = torch.compiler.disable(lambda: private.frames_are_compiled(), recursive=False)
    assert torch.compile(lambda x: (x + 1, asked()), backend="eager")(query)[1]
    with torch.autograd.forward_ad.dual_level():
        assert private.in_forward_mode()
        dual = torch.autograd.forward_ad.make_dual(query.detach(), query.detach())
        assert torch.equal(*call.primals([dual, query.detach()]))
        with private.forward_mode():
            assert torch.autograd.forward_ad.unpack_dual(dual * 2).tangent is not None
    plain, negative = torch.zeros(2), torch.complex(torch.zeros(2), torch.ones(2)).conj().imag
    assert private.dispatch_keys(plain).raw_repr() == private.dispatch_keys(query).raw_repr()
    assert private.dispatch_keys(plain).raw_repr() != private.dispatch_keys(negative).raw_repr()
    assert not private.thread_keys().raw_repr() & ~private.HARMLESS_KEYS

    def keys_within(tensor: Tensor) -> Tensor:
        assert private.thread_keys().raw_repr() & ~private.HARMLESS_KEYS
        return tensor.sum()

    torch.func.grad(keys_within)(plain)
    assert not private.profiled()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
        assert private.profiled()
    with torch._subclasses.FakeTensorMode() as mode:
        fake = mode.from_tensor(plain)
    assert private.is_fake(fake) and private.is_wrapped_fake(fake) and not private.is_fake(plain)
    assert private.is_lazy_zero(torch._efficientzerotensor(2)) and not private.is_lazy_zero(plain)


@pytest.mark.usefixtures("torch_path")
def test_results_are_not_views() -> None:
    """They may be changed in place, like results of torch's own ops whose gradients do not read them."""
    query, key = torch.randn(2, 1, 9, 2, 4)
    given = [query.clone().requires_grad_() for _ in range(2)]
    logits = [MPS.face("na1d_qk")(each, key, 3) for each in given]
    assert not logits[0]._is_view() and not MPS.face("na1d")(query, key, key, 3)._is_view()
    found, wanted = logits[0].mul_(3), logits[1] * 3
    assert torch.equal(found, wanted)
    assert torch.equal(*(torch.autograd.grad(t.sum(), q)[0] for t, q in zip((found, wanted), given, strict=True)))


def test_meta_tensors_have_shapes() -> None:
    """Tools that only need sizes use them: forward, gradient, split ops, a module."""
    query = torch.empty(2, 9, 2, 8, dtype=torch.bfloat16, device="meta", requires_grad=True)
    out, lse = MPS.package.na1d(query, query, query, 3, return_lse=True)
    (gradient,) = torch.autograd.grad((out, lse), query, (out, lse))
    assert [t.shape for t in (out, lse, gradient)] == [(2, 9, 2, 8), (2, 9, 2), (2, 9, 2, 8)]
    assert (out.dtype, lse.dtype, gradient.dtype) == (torch.bfloat16, torch.float32, torch.bfloat16)
    logits = MPS.package.na1d_qk(query, query, 3)
    assert logits.shape == (2, 9, 2, 3)
    module = MPS.package.NeighborhoodAttention2D(16, 2, 3, rel_pos_bias=True).to("meta")
    made = module(torch.empty(1, 6, 7, 16, device="meta"))
    assert made.shape == (1, 6, 7, 16)
    assert {t.device.type for t in (out, lse, gradient, logits, made)} == {"meta"}


@pytest.mark.parametrize("backend", ["native", "pure", "dense"])
@pytest.mark.parametrize("mapped", [0, None], ids=["own bias", "one bias"])
def test_mapping_over_nothing(mapped: int | None, backend: str) -> None:
    """A mapped axis of size 0 gives results and gradients of size 0."""
    query, bias = torch.randn(0, 2, 5, 1, 4), torch.randn(*([0] if mapped == 0 else []), 1, 5)

    def attend(query: Tensor, bias: Tensor) -> Tensor:
        out: Tensor = MPS.face("na1d")(query, query, query, 3, rpb=bias, backend=backend)
        return out

    assert torch.vmap(attend, (0, mapped))(query, bias).shape == query.shape
    gradient = torch.func.grad(lambda query, bias: attend(query, bias).sum(), argnums=(0, 1))
    found = torch.vmap(gradient, (0, mapped))(query, bias)
    assert [each.shape for each in found] == [query.shape, (0, 1, 5)]
