"""torch.use_deterministic_algorithms: no error, no warning, and repeated runs are equal to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import BY_NAME, INPUTS, inputs
from determinism import deterministic
from frameworks import MPS

NAMES = ("seq-causal-dilated-stride", "img-rpb-everything", "vol-gqa-additional", "seq-gqa")


def results(name: str, split: bool) -> list[Any]:
    """Outputs and all gradients of a case; with ``split``, through the split ops."""
    case = BY_NAME[name]
    arrays = inputs(case, "float32")
    leaves = {n: MPS.tensor(arrays[n], "float32").requires_grad_() for n in INPUTS if n in arrays}
    if split:
        leaves = {n: leaves[n] for n in INPUTS[:3]}
        logits = MPS.face(f"{case.face}_qk")(leaves["query"], leaves["key"], **case.window)
        outputs = [logits, MPS.face(f"{case.face}_av")(logits.softmax(-1), leaves["value"], **case.window)]
        loss = (outputs[1] ** 2).sum()
    else:
        outputs = list(MPS.face(case.face)(**leaves, **case.window, scale=case.scale, return_lse=True))
        loss = (outputs[0] ** 2).sum() + outputs[1].sin().sum()
    return [*outputs, *torch.autograd.grad(loss, list(leaves.values()))]


@pytest.mark.usefixtures("torch_path")
@pytest.mark.parametrize("split", [False, True], ids=["fused", "split"])
@pytest.mark.parametrize("name", NAMES)
def test_a_repeat_is_equal_to_the_bit(name: str, split: bool) -> None:
    plain = results(name, split)
    with deterministic():
        assert torch.are_deterministic_algorithms_enabled()
        found = [results(name, split) for _ in range(2)]
    assert not torch.are_deterministic_algorithms_enabled()
    for first, second, wanted in zip(*found, plain, strict=True):
        assert torch.equal(first, second) and torch.equal(first, wanted) and not first.isnan().any()
