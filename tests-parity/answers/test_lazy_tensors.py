"""The logical value of a tensor counts, not its memory: torch's lazy bits, wrappers, and tensors without memory."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from frameworks import MPS
from lazy_tensors import CALLS, KINDS, SHAPE, check_gradients, check_inputs, full, in_memory, negated
from processes import LIMIT
from torch import Tensor
from torch.utils._pytree import tree_map_only

on_our_paths = pytest.mark.usefixtures("torch_path")


@on_our_paths
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("op", CALLS)
def test_inputs(op: str, kind: str) -> None:
    check_inputs(op, kind)


@on_our_paths
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("op", CALLS)
def test_gradients(op: str, kind: str) -> None:
    check_gradients(op, kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("op", CALLS)
def test_dense(op: str, kind: str) -> None:
    MPS.package.set_backend("dense")
    check_inputs(op, kind)


@on_our_paths
@pytest.mark.parametrize("inside", [False, True], ids=["given", "made inside"])
@pytest.mark.parametrize("compiler", ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.all)])
def test_compiled(compiler: str, inside: bool) -> None:
    """Compiled code receives the tensor unchanged."""
    torch.compiler.reset()
    source, key = torch.randn(2, 9, 2, 8, dtype=torch.complex64), torch.randn(2, 9, 2, 8)

    def attend(source: Tensor) -> Tensor:
        query = source.conj().imag if inside else source
        return full(query, key, key)[0]

    compiled = torch.compile(attend, fullgraph=True, backend=compiler)
    wanted = full(in_memory(source.conj().imag), key, key)[0]
    assert torch.equal(compiled(source if inside else source.conj().imag), wanted)


@on_our_paths
@pytest.mark.parametrize("transform", ["vmap", "vjp", "inference"])
def test_inside_transforms(transform: str) -> None:
    query, key = negated(3, 2, 9, 2, 8), torch.randn(2, 9, 2, 8)

    def attend(query: Tensor) -> Tensor:
        return full(query, key, key)[0]

    def transformed(query: Tensor) -> Any:
        if transform == "vmap":
            return torch.vmap(attend)(query)
        if transform == "vjp":
            out, pull = torch.func.vjp(attend, query[0])
            return pull(torch._efficientzerotensor(out.shape))[0] + pull(query[1])[0]
        with torch.inference_mode():
            return attend(query[0])

    assert torch.equal(transformed(query), transformed(in_memory(query)))


@on_our_paths
def test_sparse_gradients_count_in_full() -> None:
    """Autograd passes sparse gradients on even if the output is not sparse."""
    query = torch.randn(SHAPE, requires_grad=True)
    out = MPS.face("na2d")(query, query, query, 3)
    cotangent = torch.randn(SHAPE).relu()
    (found,) = torch.autograd.grad(out, query, cotangent.to_sparse(), retain_graph=True)
    assert torch.equal(found, torch.autograd.grad(out, query, cotangent)[0])


class Wrapper(Tensor):
    """A wrapper without memory of its own, which forwards ops to the tensor it holds."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Wrapper:
        found: Wrapper = Tensor._make_wrapper_subclass(cls, held.shape, dtype=held.dtype, strides=held.stride())
        found.held = held
        return found

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inner = tree_map_only(Wrapper, lambda wrapper: wrapper.held, (args, kwargs or {}))
        return tree_map_only(Tensor, Wrapper, op(*inner[0], **inner[1]))


@on_our_paths
def test_wrappers_get_the_op() -> None:
    """Other people's subclasses see our op and decide what to do with it; so do torch's functional tensors."""
    held = torch.randn(2, 9, 2, 8)
    wanted = full(*[held] * 3)
    for found, expected in zip(full(*[Wrapper(held)] * 3), wanted, strict=True):
        assert isinstance(found, Wrapper) and torch.equal(found.held, expected)
    for found, expected in zip(full(*[torch._to_functional_tensor(held)] * 3), wanted, strict=True):
        assert torch._is_functional_tensor(found) and torch.equal(torch._from_functional_tensor(found), expected)


def masked() -> Tensor:
    found: Tensor = torch.masked.masked_tensor(torch.ones(1, 7, 2, 4), torch.ones(1, 7, 2, 4, dtype=torch.bool))
    return found


@pytest.mark.parametrize("backend", ["native", "pure", "dense"])
@pytest.mark.filterwarnings("ignore:The PyTorch API of MaskedTensors")
def test_torchs_own_wrappers_are_refused(backend: str) -> None:
    with pytest.raises(NotImplementedError) as caught:
        MPS.face("na1d")(torch.ones(1, 7, 2, 4), masked(), masked(), 3, backend=backend)
    assert str(caught.value) == (
        "na1d: key must be a plain tensor; got a MaskedTensor. Use .get_data(), and the varlen ops for items of "
        "different sizes"
    )


FREED = """
import torch, natten_mps
key = torch.randn(1, 7, 2, 4)
query = key.clone()
query.untyped_storage().resize_(0)
try:
    natten_mps.na1d(query, key, key, 3, backend="native")
except ValueError as error:
    print(error)
"""


def test_a_tensor_whose_memory_was_freed() -> None:
    """In its own process: a tensor that is not rejected would be read at address 0."""
    ran = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, timeout=LIMIT)
    assert (ran.returncode, ran.stdout) == (0, "na1d: query has 56 elements and no memory; was it freed?\n"), ran.stderr


DISTRIBUTED = """
import torch, natten_mps
from torch.distributed.tensor import DTensor, Replicate, init_device_mesh
torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
query = torch.randn(1, 7, 2, 4)
whole = DTensor.from_local(query, init_device_mesh("cpu", (1,)), [Replicate()])
for backend in ("native", "pure", "dense"):
    for tensors in ([whole] * 3, [query, whole, query]):
        try:
            natten_mps.na1d(*tensors, 3, backend=backend)
        except NotImplementedError as error:
            print(error)
assert torch.equal(natten_mps.na1d(*[whole.to_local()] * 3, 3), natten_mps.na1d(*[query] * 3, 3))
torch.distributed.destroy_process_group()
"""


def test_distributed_tensors_are_refused() -> None:
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo"}
    ran = subprocess.run(
        [sys.executable, "-c", DISTRIBUTED], capture_output=True, text=True, timeout=LIMIT, env=environment
    )
    assert ran.returncode == 0, ran.stderr
    lines = [
        f"na1d: {name} must be a plain tensor; got a DTensor. Use .to_local() for this rank's own part (whole windows, "
        "whole heads) or .full_tensor() for all of it"
        for name in ("query", "key")
    ]
    # Some releases of torch print how their processes are connected.
    assert [line for line in ran.stdout.splitlines() if not line.startswith("[Gloo]")] == lines * 3
