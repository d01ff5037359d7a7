"""Plans are data; backends are chosen in a fixed order; what the support matrix claims does run."""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
import threading
from typing import Any

import numpy as np
import pytest
from cases import BY_NAME, CASES, inputs
from frameworks import FRAMEWORKS, MLX, MPS, OURS, PATHS, Framework, Path, planned_backend
from processes import python

from natten_mps._metal.plan import boxes, plan, programs
from natten_mps._metal.plan.device import Device
from natten_mps._metal.plan.planner import Planner

CPU = Device("cpu", "cpu")
BACKENDS = {"mps": ("metal", "native", "pure", "dense"), "mlx": ("nanobind", "fast_metal", "pure", "dense")}


def reasons(framework: Framework) -> dict[str, str | None]:
    """For each backend why it cannot run on this machine's CPU; None if it can."""
    device_of = framework.module("_device").device_of
    if framework is MPS:
        import torch

        device = device_of(torch.device("cpu"))
    else:
        import mlx.core as mx

        device = device_of(mx.default_stream(mx.cpu))
    return {backend: device.reason_missing(backend) for backend in BACKENDS[framework.name]}


def automatic(framework: Framework) -> str:
    """The backend that 'auto' takes on this machine's CPU."""
    return next(backend for backend, reason in reasons(framework).items() if reason is None)


def tensors(framework: Framework, dtype: str = "float32", shape: tuple[int, ...] = (1, 9, 2, 4)) -> list[Any]:
    return [framework.tensor(np.ones(shape), dtype)] * 3


# --- plans -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_plan_is_frozen_hashable_cached_data(case: Any) -> None:
    planner = Planner("here", ("pure", "dense"))
    made = planner.plan(case.problem(), CPU, "auto")
    assert made.backend == "pure" and made is planner.plan(case.problem(), CPU, "auto")
    hash(made)
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.backend = "dense"  # type: ignore[misc]
    assert plain(made), made


def plain(value: Any) -> bool:
    """Made of frozen dataclasses, tuples, numbers, strings and None only: no tensor, no function."""
    if dataclasses.is_dataclass(value):
        assert type(value).__dataclass_params__.frozen, type(value)
        return all(plain(getattr(value, field.name)) for field in dataclasses.fields(value))
    if isinstance(value, tuple):
        return all(map(plain, value))
    return value is None or type(value) in (int, float, str, bool)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_chunk_fits_its_memory(case: Any) -> None:
    """The logits computed at once stay within the budget, or belong to a single tile."""
    problem = case.problem("float32")
    made = plan.plan(problem, CPU, "pure", ("pure",))
    queries, keys = (plan.walk(problem, transposed=transposed) for transposed in (False, True))
    if case.batch:
        assert made.forward.queries == queries
    else:
        assert isinstance(made.forward, programs.Blank)
    for walk, extra in ((queries, case.additional or 0), (keys, 0)):
        columns = walk.box_columns + extra
        held = 4 * case.heads * walk.tile_rows * columns * walk.tiles_at_once * walk.items_at_once
        assert held <= plan.STEP_BYTES or (walk.tiles_at_once == walk.items_at_once == 1 and held <= plan.TILE_BYTES)
        for axis in walk.axes:
            assert axis.box == boxes.box_size(axis.axis, axis.transposed, axis.tile)


def test_plans_are_bounded_for_huge_problems() -> None:
    """Planning does not loop over tokens: a million of them is planned, with bounded chunks."""
    case = dataclasses.replace(BY_NAME["seq"], shape=(1 << 20,), kernel_size=(129,), heads=8, kv_heads=8)
    made = plan.plan(case.problem("float32"), CPU, "pure", ("pure",))
    assert made.forward.queries is not None
    step = (
        made.forward.queries.tiles_at_once * made.forward.queries.tile_rows * made.forward.queries.box_columns * 8 * 4
    )
    assert step <= plan.STEP_BYTES


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_a_requested_backend_that_cannot_run_gives_its_reason(framework: Framework) -> None:
    found = reasons(framework)
    assert found["pure"] is found["dense"] is None and any(found.values())
    for backend, reason in found.items():
        if reason is None:
            continue
        with pytest.raises(NotImplementedError) as caught:
            framework.face("na1d")(*tensors(framework), 3, backend=backend)
        assert str(caught.value) == (
            f"na1d: backend='{backend}' cannot take this problem: {reason}. backend='auto' picks a backend that can"
        )


def test_float64_on_a_device_without_it() -> None:
    gpu = Device("gpu", "some gpu", (("metal", "no kernels"),), float64=False)
    problem = BY_NAME["img"].problem("float64")
    with pytest.raises(NotImplementedError) as caught:
        plan.plan(problem, gpu, "pure", ("metal", "pure"))
    assert str(caught.value) == (
        "na2d: backend='pure' cannot take this problem: some gpu does not compute in float64; "
        "the CPU does. backend='auto' picks a backend that can"
    )
    with pytest.raises(NotImplementedError) as caught:
        plan.plan(problem, gpu, "auto", ("metal", "pure"))
    assert str(caught.value) == (
        "na2d: no backend takes this problem: no kernels; some gpu does not compute in float64; the CPU does"
    )
    single = BY_NAME["img"].problem("float32")
    assert plan.plan(single, gpu, "auto", ("metal", "pure")).why == "metal: no kernels"


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_explain(framework: Framework) -> None:
    explain, (q, k, v) = framework.package.explain, tensors(framework)
    assert explain("na1d", q, k, v, kernel_size=3, dilation=2, is_causal=True, backend="pure") == (
        "na1d: batch 1, shape (9,), heads 2, head_dim 4, kernel_size (3,), stride (1,), dilation (2,), "
        "is_causal (True,), float32\n"
        "device: cpu\n"
        "backend: pure (backend='pure' was asked for)\n"
        "forward and backward: 2 tiles of (5,) queries, each with a box of (5,), 2 at a time"
    )
    kv = framework.tensor(np.ones((1, 9, 1, 4)), "float32")
    wide, extra = (framework.tensor(np.ones((1, n, 1, d)), "float32") for n, d in ((9, 6), (2, 6)))
    rpb = framework.tensor(np.ones((2, 5)), "float32")
    text = explain(
        "neighborhood_attention",
        q,
        kv,
        wide,
        kernel_size=3,
        additional_keys=kv[:, :2],
        additional_values=extra,
        rpb=rpb,
        backend="dense",
    )
    assert text == (
        "na1d: batch 1, shape (9,), heads 2 on 1 kv heads, head_dim 4 (values 6), kernel_size (3,), stride (1,), "
        "dilation (1,), is_causal (False,), 2 additional keys, relative positional bias, float32\n"
        "device: cpu\n"
        "backend: dense (backend='dense' was asked for)"
    )
    shorter = k[:, :4]
    assert explain("attention", q, shorter, shorter, backend="dense").splitlines()[0] == (
        "attention: batch 1, shape (9,), keys (4,), heads 2, head_dim 4, is_causal (False,), float32"
    )
    attn = framework.tensor(np.ones((1, 9, 2, 3)), "float32")
    assert explain("na1d_av", attn, v, kernel_size=3, backend="dense").startswith("na1d_av: batch 1, shape (9,)")


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_auto_runs_what_explain_announces(framework: Framework) -> None:
    """It also gives the reason for each backend that was passed over."""
    given, path = tensors(framework), automatic(framework)
    before = itertools.takewhile(lambda found: found[1] is not None, reasons(framework).items())
    passed = [f"{backend}: {reason}" for backend, reason in before]
    why = "; ".join(passed) or "the fastest backend that takes this problem"
    assert f"\nbackend: {path} ({why})\n" in framework.package.explain("na1d", *given, kernel_size=3) + "\n"
    with framework.watch() as ran:
        framework.evaluate(framework.face("na1d")(*given, 3))
    assert ran == {planned_backend(framework, "na1d", *given, kernel_size=3)} == {path}


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_the_support_matrix_is_true(framework: Framework) -> None:
    """What it claims is run, forward and backward, in every rank and dtype; what it denies raises its reason."""
    matrix = framework.package.get_support_matrix()
    assert tuple(matrix) == BACKENDS[framework.name]
    fields = {"available", "forward", "backward", "fusion", "varlen", "constraints", "ops", "limits", "reason"}
    for backend, entry in matrix.items():
        assert set(entry) == fields
        assert set(entry["ops"].values()) == {entry["reason"]}
        claims = [entry[name] for name in ("available", "forward", "backward", "varlen")]
        assert len(set(claims)) == 1
        # On a Mac the matrix describes its GPU; these tests run on the CPU.
        if entry["available"] != (reasons(framework)[backend] is None):
            assert package_has_gpu(framework), backend
            continue
        assert entry["fusion"] == (entry["available"] and backend != "dense")
        for dtype in ("float16", "bfloat16", "float32", "float64"):
            for rank in (1, 2, 3):
                given = tensors(framework, dtype, (1, *(4,) * rank, 1, 2))
                claimed = rank in entry["constraints"]["ranks"] and dtype in entry["constraints"]["dtypes"]
                if claimed:
                    runs(Path(framework, backend), f"na{rank}d", given)
                    continue
                with pytest.raises(NotImplementedError, match=re.escape(entry["reason"])):
                    framework.face(f"na{rank}d")(*given, 3, backend=backend)


def package_has_gpu(framework: Framework) -> bool:
    return bool(framework.package.has_mps() if framework is MPS else framework.package.has_metal())


def runs(path: Path, face: str, given: list[Any]) -> None:
    call = path.framework.face(face)
    with path.framework.watch() as ran:
        (out,), _ = path.framework.vjp(lambda *t: (call(*t, 3, backend=path.backend),), given, [given[0]])
    assert ran == {path.backend}
    assert np.allclose(path.framework.numpy(out), 1.0, atol=0.01)


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_varlen_uses_the_requested_backend(path: Path) -> None:
    with path.framework.watch() as ran:
        found = path.framework.face("na1d_varlen")(*tensors(path.framework), [9], 3, backend=path.backend)
        path.framework.evaluate(found)
    assert ran == {path.backend}


# --- which backend -----------------------------------------------------------------------------------


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_the_order_of_precedence(framework: Framework, monkeypatch: pytest.MonkeyPatch) -> None:
    """argument > use_backend > set_backend > the package's variable > NATTEN_BACKEND > auto."""
    package, own = framework.package, f"NATTEN_{framework.name.upper()}_BACKEND"

    def set_environment(**values: str) -> None:
        # as in a new process
        monkeypatch.setattr(framework.module("_backends").BACKENDS, "_environment", None)
        for name in ("NATTEN_BACKEND", "NATTEN_MPS_BACKEND", "NATTEN_MLX_BACKEND"):
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    set_environment()
    assert package.get_backend() == "auto" and ran_by(framework) == {automatic(framework)}
    set_environment(NATTEN_BACKEND="dense")
    assert package.get_backend() == "dense" and ran_by(framework) == {"dense"}
    monkeypatch.setenv("NATTEN_BACKEND", "pure")
    assert package.get_backend() == "dense", "it is read once"
    set_environment(NATTEN_BACKEND="dense", **{own: "pure"})
    assert package.get_backend() == "pure" and ran_by(framework) == {"pure"}
    package.set_backend("dense")
    assert package.get_backend() == "dense" and ran_by(framework) == {"dense"}
    with package.use_backend("pure"):
        assert package.get_backend() == "pure" and ran_by(framework) == {"pure"}
        with package.use_backend("dense"):
            assert ran_by(framework) == {"dense"}
            assert ran_by(framework, backend="pure") == {"pure"}
        assert package.get_backend() == "pure"
    assert package.get_backend() == "dense"
    package.set_backend("auto")
    assert package.get_backend() == "auto", "an explicit auto beats the environment"


def ran_by(framework: Framework, **arguments: Any) -> set[str]:
    with framework.watch() as ran:
        framework.evaluate(framework.face("na1d")(*tensors(framework), 3, **arguments))
    return ran


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_use_backend_affects_this_thread_only(framework: Framework) -> None:
    seen: list[str] = []
    with framework.package.use_backend("dense"):
        thread = threading.Thread(target=lambda: seen.append(framework.package.get_backend()))
        thread.start()
        thread.join()
        assert framework.package.get_backend() == "dense"
    assert seen == ["auto"]


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_use_backend_ends_with_an_error(framework: Framework) -> None:
    with pytest.raises(KeyError), framework.package.use_backend("dense"):
        raise KeyError
    assert framework.package.get_backend() == "auto"


@pytest.mark.parametrize("path", OURS, ids=str)
def test_backward_keeps_the_backend_of_forward(path: Path) -> None:
    """The context has ended before the gradient is computed."""
    framework, case = path.framework, BY_NAME["img"]
    arrays = inputs(case, "float32")
    given = [framework.tensor(arrays[name], "float32") for name in ("query", "key", "value")]
    cotangent = framework.tensor(arrays["d_out"], "float32")

    def call(*tensors: Any) -> tuple[Any]:
        with framework.package.use_backend(path.backend):
            return (framework.face("na2d")(*tensors, **case.window),)

    with framework.package.use_backend("dense"), framework.watch() as ran:
        framework.vjp(call, given, [cotangent])
    assert ran == {path.backend}


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_the_other_packages_backend_is_ignored_with_one_line(framework: Framework) -> None:
    other = {"mps": "nanobind", "mlx": "native"}[framework.name]
    package = framework.package_name
    done = python(f"import {package} as n; print(n.get_backend(), n.get_backend())", NATTEN_BACKEND=other)
    assert (done.returncode, done.stdout) == (0, "auto auto\n")
    line = f"INFO NATTEN_BACKEND={other} names a backend that {package.replace('_', '-')} does not have; ignored"
    assert [text for text in done.stderr.splitlines() if "NATTEN" in text] == [line]


@pytest.mark.parametrize("variable", ["NATTEN_BACKEND", "own"])
@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_an_unknown_name_in_the_environment(framework: Framework, variable: str) -> None:
    name, package = framework.package_name.replace("_", "-"), framework.package_name
    variable = f"{package.upper()}_BACKEND" if variable == "own" else variable
    done = python(f"import {package} as n; n.get_backend()", **{variable: "warp"})
    known = ", ".join(("auto", *BACKENDS[framework.name]))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"ValueError: {variable}: unknown backend 'warp'; {name} has {known}"


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_the_environment_is_read_by_a_call(framework: Framework) -> None:
    code = f"import sys; sys.path.insert(0, {os.path.dirname(os.path.dirname(__file__))!r})\n"
    code += f"import frameworks, test_plan\nprint(test_plan.ran_by(frameworks.{framework.name.upper()}))"
    done = python(code, **{f"NATTEN_{framework.name.upper()}_BACKEND": "dense"})
    assert done.stdout == "{'dense'}\n", done.stderr


def test_metal_means_fast_metal_for_mlx() -> None:
    with MLX.package.use_backend("metal"):
        assert MLX.package.get_backend() == "fast_metal"
    with MPS.package.use_backend("metal"):
        assert MPS.package.get_backend() == "metal"
