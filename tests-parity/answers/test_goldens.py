"""Fixed answers computed by other people's code: upstream NATTEN 0.21.7's own mask and 0.17.5's own kernels.

``goldens/manifest.json`` says where each comes from. Family A: heads-last, stride, GQA, additional
keys, lse. Family B: heads-first, split ops, relative positional bias; logits of additional keys follow
the window's. Some of B were computed in float32 and are compared with that precision.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from frameworks import PATHS, Path
from golden_files import (
    FAMILY_B,
    FIXTURES,
    FOLDER,
    GRADIENT_NAMES,
    INPUT_NAMES,
    arrays,
    close,
    tolerance,
)

Array = Any


def window_of(fixture: dict[str, Any]) -> dict[str, Any]:
    return {name: fixture[name] for name in ("kernel_size", "stride", "dilation", "is_causal")}


def vjp(
    path: Path,
    op: str,
    given: dict[str, Array],
    cotangents: list[Array | None],
    dtype: str,
    **arguments: Any,
) -> tuple[list[Array], dict[str, Array]]:
    """Outputs and gradients of a face; asserts the backend. A cotangent of None means zeros."""
    framework, names = path.framework, tuple(given)
    tensors = [framework.tensor(given[name], dtype) for name in names]

    def call(*leaves: Any) -> tuple[Any, ...]:
        result = framework.face(op)(**dict(zip(names, leaves, strict=True)), **arguments, backend=path.backend)
        return result if isinstance(result, tuple) else (result,)

    with framework.watch() as ran:
        outputs, gradients = framework.vjp(call, tensors, [framework.tensor(c, dtype) for c in cotangents])
    assert ran == {path.backend}
    return (
        [framework.numpy(output) for output in outputs],
        {name: framework.numpy(gradient) for name, gradient in zip(names, gradients, strict=True)},
    )


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("fixture", FIXTURES, ids=lambda fixture: fixture["file"].removesuffix(".npz"))
def test_fused(fixture: dict[str, Any], path: Path, dtype: str) -> None:
    golden, limit = arrays(fixture["file"]), tolerance(fixture, dtype)
    given = {name: golden[short] for name, short in INPUT_NAMES.items() if short in golden}
    (out, lse), gradients = vjp(
        path,
        f"na{fixture['na_dim']}d",
        given,
        [golden["d_out"], np.zeros_like(golden["lse"])],
        dtype,
        **window_of(fixture),
        scale=fixture["scale"],
        return_lse=True,
    )
    close(out, golden["out"], limit, "out")
    close(lse, golden["lse"], limit, "lse")
    for name, gradient in gradients.items():
        # Sums over many queries grow, and the float32 error grows with them.
        wanted = golden[GRADIENT_NAMES[name]]
        close(gradient, wanted, limit * max(1.0, np.abs(wanted).max()), f"gradient of {name}")


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("fixture", FAMILY_B, ids=lambda fixture: fixture["file"].removesuffix(".npz"))
def test_split(fixture: dict[str, Any], path: Path, dtype: str) -> None:
    """qk and av on the window's part of the fixture's logits and weights, and their gradients."""
    golden, limit = arrays(fixture["file"]), tolerance(fixture, dtype)
    slots, rank = int(np.prod(fixture["kernel_size"])), fixture["na_dim"]
    assert golden["logits"].shape[-1] == slots + fixture["num_additional_kv"]
    logits, attn = golden["logits"][..., :slots], golden["attn"][..., :slots]
    # The contribution of the additional keys does not go through the split ops, so it is subtracted from the golden
    # results.
    additional_out, additional_dq = additional_parts(fixture, golden, slots)

    given = {name: golden[INPUT_NAMES[name]] for name in ("query", "key", "rpb") if INPUT_NAMES[name] in golden}
    (found,), gradients = vjp(
        path,
        f"na{rank}d_qk",
        given,
        [golden["d_logits"][..., :slots]],
        dtype,
        **window_of(fixture),
        scale=fixture["scale"],
    )
    close(found, logits, limit, "logits")
    close(gradients["query"], golden["dq"] - additional_dq, limit, "gradient of query")
    close(gradients["key"], golden["dk"], limit, "gradient of key")
    if "rpb" in given:
        scale = max(1.0, np.abs(golden["drpb"]).max())
        close(gradients["rpb"], golden["drpb"], limit * scale, "gradient of rpb")

    (out,), gradients = vjp(
        path, f"na{rank}d_av", {"attn": attn, "value": golden["v"]}, [golden["d_out"]], dtype, **window_of(fixture)
    )
    close(out, golden["out"] - additional_out, limit, "out")
    held = np.isfinite(logits)
    close(gradients["attn"], np.where(held, golden["d_attn"][..., :slots], 0.0), limit, "gradient of attn")
    close(gradients["value"], golden["dv"], limit, "gradient of value")


def additional_parts(fixture: dict[str, Any], golden: dict[str, Array], slots: int) -> tuple[Array, Array]:
    """What the additional keys and values contribute to the output and to the query's gradient."""
    if not fixture["num_additional_kv"]:
        return np.zeros_like(golden["out"]), np.zeros_like(golden["dq"])
    out = np.einsum("b...hs,bshd->b...hd", golden["attn"][..., slots:], golden["add_v"])
    query_grad = np.einsum("b...hs,bshd->b...hd", golden["d_logits"][..., slots:], golden["add_k"])
    return out, fixture["scale"] * query_grad


def test_the_goldens_are_all_there() -> None:
    """46 fixtures of two families in every rank, and no file that the manifest does not name."""
    files = {fixture["file"] for fixture in FIXTURES}
    assert files == {file.name for file in FOLDER.glob("*.npz")} and len(files) == 46
    assert {(f["family"], f["na_dim"]) for f in FIXTURES} == {(a, r) for a in "AB" for r in (1, 2, 3)}
