"""The dense reference against the packages' float64 reference, and what clients query before they import natten."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable
from dataclasses import replace

import dense
import natten
import natten.functional
import numpy as np
import pytest
import torch
from cases import Case
from comparison import noise
from torch import Tensor

from natten_mps._metal.problem import reference

FLAT, SQUARE = ((1,), (False,)), ((1, 1), (False, False))
CASES = (
    Case("even", (11,), (4,), FLAT[0], (1,), FLAT[1], heads=3, kv_heads=3, scale=0.3),
    Case("dilated", (13,), (5,), FLAT[0], (2,), FLAT[1], heads=3, kv_heads=3),
    Case("mixed", (7, 9), (3, 4), SQUARE[0], (2, 1), SQUARE[1], batch=2),
    Case("dilated image", (8, 11), (3, 5), SQUARE[0], (2, 2), SQUARE[1], batch=2, scale=1.0),
    Case("volume", (4, 5, 6), (3, 2, 3), (1, 1, 1), (1, 2, 2), (False, False, False)),
)
# Features that the older generations' split ops do not have.
FUSED = (
    Case("stride", (13,), (5,), (3,), (2,), FLAT[1], heads=3, kv_heads=3),
    Case("causal", (7, 9), (4, 3), (3, 1), (1, 2), (True, False), batch=2),
    Case("causal video", (5, 6, 4), (3, 4, 3), (2, 3, 1), (1, 1, 1), (True, False, False)),
)


def halves(case: Case, query: Tensor, key: Tensor, value: Tensor, rpb: Tensor | None = None) -> Tensor:
    query, key, value = (tensor.movedim(-2, 1) for tensor in (query * case.factor, key, value))
    attn = dense.logits(query, key, rpb, case.kernel_size, case.dilation).softmax(-1)
    return dense.weighted(attn, value, case.kernel_size, case.dilation).movedim(1, -2)


def fused(case: Case, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    stepped = {"stride": case.stride, "is_causal": case.is_causal}
    return dense.attend(query, key, value, case.kernel_size, case.dilation, case.scale, **stepped)


@pytest.mark.parametrize(
    ("case", "function", "biased"),
    [
        *((case, halves, biased) for case in CASES for biased in (False, True)),
        *((case, fused, False) for case in (*CASES, *FUSED)),
    ],
    ids=lambda each: getattr(each, "__name__", None) or str(each),
)
def test_dense(case: Case, function: Callable[..., Tensor], biased: bool) -> None:
    """Fused, and as split ops (only those take an rpb): the results and gradients are the float64 reference's."""
    case = replace(case, rpb=biased)
    shape = (case.batch, *case.shape, case.heads, case.head_dim)
    given = {name: noise(name, shape).double().requires_grad_() for name in ("query", "key", "value")}
    if biased:
        table = (case.heads, *(2 * w - 1 for w in case.kernel_size))
        given["rpb"] = noise("rpb", table).double().requires_grad_()
    d_out, d_lse = noise("d_out", shape).double(), np.zeros(shape[:-1])
    arrays = {name: tensor.detach().numpy() for name, tensor in given.items()}
    truth, _ = reference.forward(case.problem(), **arrays)
    gradients = reference.backward(case.problem(), d_out.numpy(), d_lse, **arrays)
    out = function(case, **given)
    np.testing.assert_allclose(out.detach().numpy(), truth, rtol=0, atol=1e-13)
    for name, found in zip(given, torch.autograd.grad(out, list(given.values()), d_out), strict=True):
        np.testing.assert_allclose(found.numpy(), gradients[name], rtol=0, atol=1e-12)


def test_natten_can_be_found() -> None:
    assert importlib.util.find_spec("natten") is not None
    assert importlib.metadata.version("natten") == natten.__version__
    assert natten.na2d is natten.functional.na2d
    assert natten.has_fused_na()
