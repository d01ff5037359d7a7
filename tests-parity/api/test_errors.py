"""Every error in full, the same in both packages; no bad input leads to anything else."""

from __future__ import annotations

import logging
from decimal import Decimal
from fractions import Fraction
from typing import Any

import bad_calls
import bad_masks
import bad_pieces
import numpy as np
import pytest
from bad_calls import OMIT, Bad, T, built
from bad_modules import BAD_MODULES, BadModule
from frameworks import FRAMEWORKS, MPS, Framework, planned_backend

from natten_mps._metal.plan.backends import UPSTREAM_BACKENDS, UPSTREAM_KNOBS

LEGAL = bad_calls.LEGAL | bad_pieces.LEGAL
BAD_CALLS = bad_calls.BAD_CALLS + bad_pieces.BAD_PIECES + bad_masks.BAD_MASKS
BACKENDS = {"mps": "auto, metal, native, pure, dense", "mlx": "auto, nanobind, fast_metal, pure, dense"}


def call(framework: Framework, face: str, changes: dict[str, Any]) -> Any:
    given = {name: built(v, framework) for name, v in (LEGAL[face] | changes).items() if v is not OMIT}
    result = getattr(framework.package, face)(**given)
    if face == "use_backend":
        with result:
            return None
    return result


def test_the_table_is_wide() -> None:
    assert len({(face, text) for face, _, _, text in BAD_CALLS}) >= 100
    assert {face for face, *_ in BAD_CALLS} == set(LEGAL)


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
@pytest.mark.parametrize("bad", BAD_CALLS, ids=lambda bad: f"{bad[0]}: {bad[3]}"[:70])
def test_message(bad: Bad, framework: Framework) -> None:
    face, changes, error, text = bad
    with pytest.raises(error) as caught:
        call(framework, face, changes)
    package = framework.package_name.replace("_", "-")
    tensor = {"mps": "Tensor", "mlx": "array"}[framework.name]
    text = (
        text.replace("{package}", package).replace("{backends}", BACKENDS[framework.name]).replace("{tensor}", tensor)
    )
    assert type(caught.value) is error
    assert str(caught.value) == f"{face}: {text}"


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
@pytest.mark.parametrize("bad", BAD_MODULES, ids=lambda bad: f"{bad[0]}: {bad[4]}"[:70])
def test_message_of_a_module(bad: BadModule, framework: Framework) -> None:
    name, arguments, shape, error, text = bad
    with pytest.raises(error) as caught:
        module = getattr(framework.package, name)(**{"embed_dim": 8, "num_heads": 2, "kernel_size": 3} | arguments)
        assert shape is not None, "the module was built"
        module(built(T(shape), framework))
    assert str(caught.value) == f"{name}: {text}"


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
@pytest.mark.parametrize("face", LEGAL)
def test_the_legal_call_is_legal(face: str, framework: Framework) -> None:
    """The calls that the table makes illegal run when they are left unchanged."""
    call(framework, face, {})


def test_devices_must_agree() -> None:
    """MLX arrays have no device; torch's do."""
    import torch

    query, meta = torch.ones(1, 7, 2, 4), torch.ones(1, 7, 2, 4, device="meta")
    with pytest.raises(ValueError) as caught:
        MPS.face("na1d")(query, meta, query, 3)
    assert str(caught.value) == "na1d: query, key and value must share one device; got cpu, meta and cpu"
    with pytest.raises(ValueError) as caught:
        MPS.face("na1d")(query, query, query, 3, rpb=torch.ones(2, 5, device="meta"))
    assert str(caught.value) == "na1d: query, key, value and rpb must share one device; got cpu, cpu, cpu and meta"
    mask = torch.ones(1, 7, dtype=torch.bool, device="meta")
    with pytest.raises(ValueError) as caught:
        MPS.face("na1d")(query, query, query, 3, key_mask=mask)
    assert str(caught.value) == "na1d: key and key_mask must share one device; got cpu and meta"
    with pytest.raises(ValueError) as caught:
        MPS.face("na1d_av")(torch.ones(1, 7, 2, 3), meta, 3)
    assert str(caught.value) == "na1d_av: attn and value must share one device; got cpu and meta"


def test_tensors_must_be_dense() -> None:
    """On every backend; for nested tensors the error names the op that takes their items."""
    import torch

    query, items = torch.ones(1, 7, 2, 4), [torch.ones(7, 2, 4)]
    for other in (query.to_sparse(), query.to_mkldnn()):
        with pytest.raises(NotImplementedError) as caught:
            MPS.face("na1d")(query, other, query, 3)
        layout = str(other.layout).removeprefix("torch.")
        assert str(caught.value) == f"na1d: key must be a dense tensor; got layout {layout}. Use .to_dense()"
    jagged, strided = (torch.nested.nested_tensor(items, layout=way) for way in (torch.jagged, torch.strided))
    lists = "lists of tensors: list(key.unbind())"
    ways = {
        "na1d": f"na1d_varlen takes {lists}",
        "na1d_qk": f"na1d_varlen takes {lists}",
        "attention": f"with seqlens_Q and seqlens_KV it takes packed sequences, and na1d_varlen {lists}",
        "neighborhood_attention": f"na1d_varlen, na2d_varlen and na3d_varlen take {lists}",
    }
    for face, way in ways.items():
        arguments = [] if face == "attention" else [3]
        for nested in (jagged, strided):
            tensors = [query, nested] if face.endswith("qk") else [query, nested, query]
            with pytest.raises(NotImplementedError) as caught:
                MPS.face(face)(*tensors, *arguments)
            assert str(caught.value) == f"{face}: key must be a dense tensor; got a nested one. {way}"
    with pytest.raises(NotImplementedError, match="1D: input must be a dense tensor; got a nested one"):
        MPS.face("NeighborhoodAttention1D")(8, 2, 3)(torch.nested.nested_tensor([torch.ones(7, 8)]))


def test_a_stream_that_is_none() -> None:
    mlx = FRAMEWORKS[1]
    with pytest.raises(TypeError) as caught:
        call(mlx, "na1d", {"stream": "gpu"})
    assert str(caught.value) == "na1d: stream must be a stream, a device or None; got 'gpu'"


JUNK: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    10**30,
    2.5,
    float("nan"),
    1j,
    "",
    "pure",
    b"3",
    (),
    [],
    [[]],
    {},
    {3},
    object(),
    int,
    len,
    (1, 2, 3, 4),
    [None],
    range(3),
    np.float32(2),
    np.array([1, 2]),
    np.array(3),
    T(()),
    T((0,)),
    T((1, 7, 2, 4)),
    T((3,), "int32"),
    T((1, 7, 2, 4), "float16"),
    [T((1, 7, 2, 4))],
    10**400,
    -(10**5000),
    (10**5000,),
    Fraction(1, 3),
    Decimal(1),
    slice(3),
    iter([3]),
    ["a"],
    np.ones((1, 7, 2, 4), "float32"),
)
OPTIONAL = (
    *("stride", "dilation", "is_causal", "scale", "rpb", "additional_keys", "backend", "return_lse", "what"),
    *("full_shape", "query_start", "key_start"),
)


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
@pytest.mark.parametrize("face", [face for face in LEGAL if face != "set_backend"])
def test_junk_for_any_argument(face: str, framework: Framework) -> None:
    """Every argument is replaced by junk of every kind: the call is still legal, or raises one of three errors with our
    text.

    The errors of explain may name the face that it explains; Python itself rejects arguments that a function does not
    have.
    """
    refused, ours = 0, (f"{face}: ", "na1d: ") if face == "explain" else (f"{face}: ",)
    for name in (*LEGAL[face], *OPTIONAL):
        for junk in JUNK:
            try:
                found = call(framework, face, {name: junk})
            except (TypeError, ValueError, NotImplementedError) as error:
                refused += 1
                words = str(error)
                assert words.startswith(ours) or "unexpected keyword argument" in words, (name, words)
                assert len(words) < 300, (name, words)
            else:
                assert found is None or evaluated(framework, found) is not None
    assert refused > len(JUNK)


MODULE_ARGUMENTS: dict[str, Any] = {
    "embed_dim": 8,
    "num_heads": 2,
    "kernel_size": 3,
    "stride": 1,
    "dilation": 1,
    "is_causal": False,
    "num_kv_heads": None,
    "qkv_bias": True,
    "qk_scale": None,
    "attn_drop": 0.0,
    "proj_drop": 0.0,
    "rel_pos_bias": False,
}


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_junk_for_any_argument_of_a_module(rank: int, framework: Framework) -> None:
    """The constructor rejects what its ops would reject, and the call any input that is not a tensor of its shape."""
    name = f"NeighborhoodAttention{rank}D"
    make, refused = framework.face(name), 0
    for argument in MODULE_ARGUMENTS:
        for junk in JUNK:
            try:
                make(**MODULE_ARGUMENTS | {argument: built(junk, framework)})
            except (TypeError, ValueError, NotImplementedError) as error:
                refused += 1
                assert str(error).startswith(f"{name}: "), (argument, str(error))
    assert refused > 10 * len(JUNK)
    module = make(**MODULE_ARGUMENTS)
    for junk in JUNK:
        with pytest.raises((TypeError, ValueError)) as caught:
            module(built(junk, framework))
        assert str(caught.value).startswith(f"{name}: input must be "), str(caught.value)


def test_explain_takes_every_argument_of_the_face() -> None:
    """return_lse does not change what runs, but its type is still checked."""
    for framework in FRAMEWORKS:
        plain, wanted = (call(framework, "explain", more) for more in ({}, {"return_lse": True}))
        assert plain == wanted
        with pytest.raises(TypeError, match=r"^explain: return_lse must be a bool; got 1$"):
            call(framework, "explain", {"return_lse": 1})


def evaluated(framework: Framework, found: Any) -> Any:
    if not isinstance(found, str):
        framework.evaluate(found)
    return found


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_numpy_numbers_are_numbers(framework: Framework) -> None:
    """np.integer is an int, np.bool_ a bool, and a scale may be a float of any kind."""
    plain = {"kernel_size": (3, 4), "stride": 2, "dilation": (1, 1), "is_causal": (True, False), "scale": 0.5}
    numpy = {
        "kernel_size": (np.int64(3), np.uint8(4)),
        "stride": np.int32(2),
        "dilation": [np.int16(1), 1],
        "is_causal": [np.bool_(True), np.False_],
        "scale": np.float32(0.5),
    }
    wanted, found = (framework.numpy(call(framework, "na2d", given)) for given in (plain, numpy))
    assert np.array_equal(wanted, found)
    assert np.array_equal(wanted, framework.numpy(call(framework, "na2d", plain | {"scale": np.float64(0.5)})))


# --- upstream's arguments ----------------------------------------------------------------------------


@pytest.fixture
def nothing_logged(request: pytest.FixtureRequest) -> None:
    """Messages that are logged once have not been logged yet."""
    request.getfixturevalue("framework").module("_metal.plan.backends").logged.clear()


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
@pytest.mark.usefixtures("nothing_logged")
def test_upstreams_knobs_are_logged_once(framework: Framework, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "natten")
    knobs = dict.fromkeys(sorted(UPSTREAM_KNOBS), 64)
    wanted = framework.numpy(call(framework, "na1d", {}))
    for _ in range(2):
        assert np.array_equal(framework.numpy(call(framework, "na1d", knobs)), wanted)
    assert [record.getMessage() for record in caplog.records] == [
        f"na1d: '{name}' tunes upstream's CUDA kernels; accepted and ignored" for name in sorted(UPSTREAM_KNOBS)
    ]
    assert {"q_tile_shape", "kernel_schedule", "torch_compile", "attention_kwargs"} <= UPSTREAM_KNOBS


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
@pytest.mark.usefixtures("nothing_logged")
def test_upstreams_backends_choose_nothing(framework: Framework, caplog: pytest.LogCaptureFixture) -> None:
    """A client that passes one of upstream's backends gets the process's default."""
    caplog.set_level(logging.INFO, "natten")
    assert "cutlass-fna" in UPSTREAM_BACKENDS
    tensors = [built(LEGAL["na1d"]["query"], framework)] * 3
    automatic = planned_backend(framework, "na1d", *tensors, kernel_size=3)
    for requested, backend in (("auto", automatic), ("dense", "dense"), ("pure", "pure")):
        with framework.package.use_backend(requested), framework.watch() as ran:
            framework.evaluate(call(framework, "na1d", {"backend": "cutlass-fna"}))
        assert ran == {backend}
    line = "na1d: backend='cutlass-fna' is upstream's CUDA kernel; accepted and ignored"
    assert [record.getMessage() for record in caplog.records] == [line]
