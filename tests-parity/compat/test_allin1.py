"""extras.allin1: the split ops under 0.3's names; any odd window, every dtype and backend, with gradients."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import numpy as np
import pytest
from cases import DTYPES, make, slot_inputs
from frameworks import FRAMEWORKS, PATHS, Framework, Path
from test_compat import metal  # noqa: F401 - a fixture
from tolerances import assert_within, split_av, split_qk

Array = Any
# The model uses windows of 5; the others are the smallest and the largest odd ones.
CASES = [
    make("allin1 time", (27,), 5, d=4, heads=2, head_dim=6, rpb=True, scale=1.0),
    make("allin1 single", (5,), 1, heads=1, rpb=True, scale=0.5),
    make("allin1 wide", (29,), 13, d=2, rpb=True),
    make("allin1 whole", (9,), 9, rpb=True),
    make("allin1 both", (6, 11), (5, 5), d=(1, 2), rpb=True, scale=1.0),
    make("allin1 square", (8, 7), (7, 7), heads=1, batch=2, rpb=True),
    make("allin1 uneven", (7, 5), (3, 5), d=(2, 1), rpb=True),
]


def op(framework: Framework, name: str) -> Any:
    return getattr(importlib.import_module(f"{framework.package_name}.extras.allin1"), name)


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_names_and_signatures(framework: Framework) -> None:
    for rank in (1, 2):
        qk, av = op(framework, f"na{rank}d_qk_rpb"), op(framework, f"na{rank}d_av_fused")
        assert (qk.__name__, av.__name__) == (f"na{rank}d_qk_rpb", f"na{rank}d_av_fused")
        names = list(inspect.signature(qk).parameters)
        assert names[:6] == ["query", "key", "rpb", "kernel_size", "dilation", "scale"]
        assert list(inspect.signature(av).parameters)[:4] == ["attn", "value", "kernel_size", "dilation"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_within_the_bounds_of_the_split_ops(case: Any, path: Path, dtype: str) -> None:
    """Results and gradients against the float64 reference, on the requested backend."""
    framework, window = path.framework, (case.kernel_size, case.dilation)
    drawn = inputs_of(case, dtype)
    given = [framework.tensor(drawn[name], dtype) for name in ("query", "key", "rpb")]
    qk, av = op(framework, f"na{case.rank}d_qk_rpb"), op(framework, f"na{case.rank}d_av_fused")

    def logits(*leaves: Any) -> tuple[Any, ...]:
        return (qk(*leaves, *window, scale=case.scale, backend=path.backend),)

    with framework.watch() as ran:
        outs, grads = framework.vjp(logits, given, [framework.tensor(drawn["d_logits"], dtype)])
        found = dict(zip(("logits", "query", "key", "rpb"), map(framework.numpy, (*outs, *grads)), strict=True))
    assert ran == {path.backend}
    assert framework.dtype_of(outs[0]) == dtype
    assert_within(found, split_qk(case, dtype), f"{case} {path} {dtype}")

    def weighted(*leaves: Any) -> tuple[Any, ...]:
        return (av(*leaves, *window, backend=path.backend),)

    given = [framework.tensor(drawn[name], dtype) for name in ("attn", "value")]
    with framework.watch() as ran:
        outs, grads = framework.vjp(weighted, given, [framework.tensor(drawn["d_out"], dtype)])
        found = dict(zip(("out", "attn", "value"), map(framework.numpy, (*outs, *grads)), strict=True))
    assert ran == {path.backend}
    assert_within(found, split_av(case, dtype), f"{case} {path} {dtype}")


def inputs_of(case: Any, dtype: str) -> dict[str, Array]:
    from cases import inputs

    return inputs(case, dtype) | slot_inputs(case, dtype)


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_no_rpb_and_no_scale(framework: Framework) -> None:
    """None means no rpb, and a scale of D ** -0.5."""
    random = np.random.default_rng(0)
    query, key = (framework.tensor(random.standard_normal((1, 9, 2, 4)), "float32") for _ in range(2))
    zeros = framework.tensor(np.zeros((2, 9)), "float32")
    qk = op(framework, "na1d_qk_rpb")
    found = [qk(query, key, None, 5), qk(query, key, zeros, 5, 1, scale=0.5)]
    assert np.array_equal(*(framework.numpy(each) for each in found))


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_beside_the_ops_of_the_model(framework: Framework) -> None:
    """The package's own ops work after its ``functional``, which has none of those names, is imported."""
    framework.module("extras.allin1.functional")
    given = [framework.tensor(np.ones((1, 6, 5, 1, 2)), "float32") for _ in range(2)]
    for rank, (query, key) in ((1, [each[:, 0] for each in given]), (2, given)):
        logits = op(framework, f"na{rank}d_qk_rpb")(query, key, None, 3, scale=1.0)
        out = op(framework, f"na{rank}d_av_fused")(logits, key, 3)
        assert (framework.numpy(logits) == 2).all() and (framework.numpy(out) == 2 * 3**rank).all()


def test_on_metal(metal: Any) -> None:  # noqa: F811 - the fixture
    """On the emulated Apple GPU: forward and all gradients, and which kernels ran."""
    import torch
    from frameworks import MPS

    from natten_mps.extras.allin1 import na2d_av_fused, na2d_qk_rpb

    case = CASES[4]
    drawn = inputs_of(case, "float32")
    query, key, value, rpb = (
        MPS.tensor(drawn[name], "float32").requires_grad_() for name in ("query", "key", "value", "rpb")
    )

    def results(backend: str) -> list[Any]:
        logits = na2d_qk_rpb(query, key, rpb, case.kernel_size, case.dilation, scale=1.0, backend=backend)
        out = na2d_av_fused(logits.softmax(-1), value, case.kernel_size, case.dilation, backend=backend)
        return [out, *torch.autograd.grad(out.sin().sum(), (query, key, value, rpb))]

    found = results("metal")
    names = {name.partition("_r2")[0] for name in metal.names}
    assert {"na_qk", "na_av"} <= names and len(names) >= 4, names
    for a, b in zip(found, results("pure"), strict=True):
        torch.testing.assert_close(a, b, rtol=5e-5, atol=5e-5)
