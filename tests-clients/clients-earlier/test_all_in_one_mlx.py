"""``all-in-one-mlx``: the all-in-one music model in MLX, written for natten-mlx 0.3, environment included."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import dense
import mlx.core as mx
import mlx.nn
import numpy as np
import pytest
from comparison import FACTORS
from frameworks import MLX
from mlx.utils import tree_flatten, tree_map_with_path
from stand_ins import MUSIC, stand_in

NAMES = ("na1d_qk_rpb", "na1d_av_fused", "na2d_qk_rpb", "na2d_av_fused")
# float32 rounding through a network of three blocks; the reference is the same network over dense functions.
ROUNDING = 1e-4


@pytest.fixture(scope="module", autouse=True)
def environment() -> Any:
    """As the client sets it: NATTEN_MLX_BACKEND=metal in every process, on a Mac or not."""
    mx.set_default_device(mx.cpu)
    with pytest.MonkeyPatch.context() as patch, stand_in(MUSIC | {"numba", "mlx_audio_io", "demucs_mlx"}):
        patch.delenv("NATTEN_MLX_BACKEND", raising=False)
        client = importlib.import_module("allin1_mlx")
        for name, value in client._RUNTIME_DEFAULTS.items():
            patch.setenv(name, value)
        assert client._RUNTIME_DEFAULTS["NATTEN_MLX_BACKEND"] == "metal"
        MLX.module("_backends").BACKENDS._environment = None  # read again by the next call
        yield importlib.import_module("allin1_mlx.models.dinat_mlx")
    MLX.module("_backends").BACKENDS._environment = None


def build() -> Any:
    config, models = (importlib.import_module(f"allin1_mlx.{name}") for name in ("config", "models"))
    model = models.AllInOneMLX(config.Config(data=config.DataConfig("harmonix", 4, 10), depth=3))
    random = np.random.default_rng(0)
    noise = tree_map_with_path(
        lambda _, p: p + 0.1 * mx.array(random.standard_normal(p.shape), p.dtype), model.trainable_parameters()
    )
    model.update(noise)
    model.eval()
    return model


# --- the reference: over all keys, in MLX's plain operations ----------------------------------------------


def logits(query: mx.array, key: mx.array, rpb: Any, kernel_size: int, dilation: int = 1, *, scale: float) -> mx.array:
    shape = tuple(query.shape[1:-2])
    tables = dense._neighbors(shape, (kernel_size,) * len(shape), (dilation,) * len(shape))
    keys, entries = (mx.array(table.numpy()) for table in tables)
    q, k = (mx.swapaxes(x.reshape(x.shape[0], -1, *x.shape[-2:]), 1, 2) for x in (query, key))
    every = scale * q @ mx.swapaxes(k, -1, -2)
    own = mx.take_along_axis(every, mx.broadcast_to(keys, (*every.shape[:2], *keys.shape)), -1)
    if rpb is not None:
        own = own + rpb.reshape(rpb.shape[0], -1)[:, entries]
    return mx.swapaxes(own, 1, 2).reshape(*query.shape[:-1], -1)


def weighted(attn: mx.array, value: mx.array, kernel_size: int, dilation: int = 1) -> mx.array:
    shape = tuple(value.shape[1:-2])
    keys = mx.array(dense._neighbors(shape, (kernel_size,) * len(shape), (dilation,) * len(shape))[0].numpy())
    a, v = (mx.swapaxes(x.reshape(x.shape[0], -1, *x.shape[-2:]), 1, 2) for x in (attn, value))
    picked = v[:, :, keys]  # [B, H, N, W, D]
    out = (a[..., None] * picked).sum(-2)
    return mx.swapaxes(out, 1, 2).reshape(value.shape)


DENSE: dict[str, Callable[..., mx.array]] = {name: logits if "qk" in name else weighted for name in NAMES}


def run(model: Any, spectrogram: mx.array) -> dict[str, Any]:
    """Outputs and the gradient of every parameter."""
    outputs: dict[str, Any] = {}

    def loss(model: Any) -> mx.array:
        found = {name: value for name, value in vars(model(spectrogram)).items() if value is not None}
        outputs.update(found)
        return sum((value * mx.sin(mx.arange(value.size).reshape(value.shape))).sum() for value in found.values())

    gradients = mlx.nn.value_and_grad(model, loss)(model)[1]
    shown = dict(vars(model(spectrogram)))
    mx.eval(gradients, shown)
    return {"output": shown, "gradient": dict(tree_flatten(gradients))}


def errors(found: dict[str, Any], truth: dict[str, Any]) -> dict[str, float]:
    made = {}
    for kind in FACTORS:
        pairs = {name: (np.array(found[kind][name]), np.array(of)) for name, of in truth[kind].items()}
        top = max(np.abs(of).max() for _, of in pairs.values())
        made[kind] = max(np.abs(a - b).max() / max(np.abs(b).max(), 1e-3 * top) for a, b in pairs.values())
    return made


@pytest.mark.parametrize("frames", [48, 21])
def test_model(frames: int, environment: Any, measured: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs and every gradient over natten-mlx as the client calls it, and over the dense functions."""
    model = build()
    spectrogram = mx.array(np.random.default_rng(1).standard_normal((1, 4, frames, 81)), mx.float32)
    with MLX.watch() as ran:
        found = run(model, spectrogram)
    assert ran == {"nanobind"}
    with monkeypatch.context() as patch, MLX.watch() as ran:
        for name, function in DENSE.items():
            patch.setattr(environment, name, function)
        truth = run(model, spectrogram)
    assert not ran
    learning = [name for name in truth["gradient"] if name.endswith("rpb")]
    assert learning and all(np.abs(np.array(truth["gradient"][name])).max() > 1e-6 for name in learning)
    measured |= {f"float32 {kind}": error for kind, error in errors(found, truth).items()}
    for kind, error in errors(found, truth).items():
        assert error <= FACTORS[kind] * ROUNDING, (kind, error)


def test_a_wrong_token_shows(environment: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, spectrogram = build(), mx.random.normal((1, 4, 21, 81))
    truth = run(model, spectrogram)
    for name in NAMES:
        monkeypatch.setattr(environment, name, partial(_shifted, getattr(environment, name)))
    for kind, error in errors(run(model, spectrogram), truth).items():
        assert error > 1e-2, (kind, error)


def _shifted(function: Callable[..., mx.array], *args: Any, **kwargs: Any) -> mx.array:
    return mx.roll(function(*args, **kwargs), 1, 1)
