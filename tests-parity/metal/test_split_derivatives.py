"""Forward mode and second derivatives of the split ops on the Metal kernels of both packages, as on the pure one."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import torch

import natten_mlx
import natten_mps

from .host import EmulatedHost
from .mlx_host import EmulatedMlxHost

# Causal, so that some slots hold no key; key and value heads are shared.
WINDOW: dict[str, Any] = {"kernel_size": 3, "is_causal": True}
SHAPES = ((1, 5, 2, 8), (1, 5, 1, 8), (1, 5, 2, 3), (1, 5, 1, 8))
KERNELS = {"na_qk", "na_av", "na_av_t"}
random = np.random.default_rng(0)
GIVEN, ALONG = ([random.standard_normal(shape).astype(np.float32) for shape in SHAPES] for _ in range(2))


def test_torch(metal: EmulatedHost) -> None:
    query, key, attn, value = map(torch.from_numpy, GIVEN)
    along_query, along_key, along_attn, along_value = map(torch.from_numpy, ALONG)

    def derivatives(backend: str) -> list[torch.Tensor]:
        qk = lambda q, k: natten_mps.na1d_qk(q, k, **WINDOW, backend=backend)  # noqa: E731
        av = lambda a, v: natten_mps.na1d_av(a, v, **WINDOW, backend=backend)  # noqa: E731
        logits = torch.func.jvp(qk, (query, key), (along_query, along_key))[1]
        out = torch.func.jvp(av, (attn, value), (along_attn, along_value))[1]
        gradient = torch.func.grad(lambda q: (av(qk(q, key).exp(), value) ** 2).sum())
        return [logits, out, torch.func.jvp(gradient, (query,), (along_query,))[1]]

    found = derivatives("metal")
    assert {name.rpartition("_r")[0] for name in metal.names} == KERNELS
    count = len(metal.launches)
    wanted = derivatives("pure")
    assert len(metal.launches) == count
    for ours, pure in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, pure, rtol=0, atol=1e-5 * float(pure.abs().max()))


def test_mlx(mlx_metal: EmulatedMlxHost) -> None:
    query, key, attn, value = map(mx.array, GIVEN)
    along_query, along_key, along_attn, along_value = map(mx.array, ALONG)

    def derivatives(backend: str) -> list[mx.array]:
        qk = lambda q, k: natten_mlx.na1d_qk(q, k, **WINDOW, backend=backend)  # noqa: E731
        av = lambda a, v: natten_mlx.na1d_av(a, v, **WINDOW, backend=backend)  # noqa: E731
        (logits,), (out,) = (
            mx.jvp(qk, [query, key], [along_query, along_key])[1],
            mx.jvp(av, [attn, value], [along_attn, along_value])[1],
        )
        gradient = mx.grad(lambda q: (av(mx.exp(qk(q, key)), value) ** 2).sum())
        found = [logits, out, mx.jvp(gradient, [query], [along_query])[1][0]]
        mx.eval(found)
        return found

    found = derivatives("fast_metal")
    assert set(mlx_metal.templates) == KERNELS
    count = len(mlx_metal.ran)
    wanted = derivatives("pure")
    assert len(mlx_metal.ran) == count
    for ours, pure in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours, pure, rtol=0, atol=1e-5 * float(mx.abs(pure).max()))
