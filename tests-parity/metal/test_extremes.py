"""Extreme numbers: logits of 1e5, rows without a finite logit, NaN and infinity, sums of a million terms."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import tolerances
from cases import rounded

from natten_mps._metal.metal import op_launches
from natten_mps._metal.metal.op_launches import LONGEST_SUM, PART
from natten_mps._metal.metal.source import Instance
from natten_mps._metal.problem import reference
from natten_mps._metal.problem.problem import Problem

from .launch import kernels, launch_of, run, run_all
from .pool import KITS, Kit
from .verify import kind_of, problem_for, sample_of
from .work import groups, seen_by, span

pytestmark = pytest.mark.usefixtures("emulator")
Array = Any
DTYPES = ("float32", "float16", "bfloat16")


def plain(dtype: str, **changed: Any) -> Problem:
    """A small image of two heads on one key/value head."""
    given = {
        "op": "na",
        "batch": 1,
        "query_shape": (14, 12),
        "key_shape": (14, 12),
        "heads": 2,
        "kv_heads": 1,
        "head_dim": 32,
        "head_dim_v": 32,
        "kernel_size": (5, 5),
        "stride": (1, 1),
        "dilation": (1, 1),
        "is_causal": (False, False),
        "scale": 32**-0.5,
        "dtype": dtype,
    }
    return Problem(**(given | changed))


def arrays(p: Problem, logits: float, seed: int = 0) -> dict[str, Array]:
    """Random tensors by name whose logits are as large as ``logits``, and rpb a tenth of that."""
    values, root = np.random.default_rng(seed), logits**0.5
    rows, keys = (p.batch, *p.query_shape, p.heads), (p.batch, *p.key_shape, p.kv_heads)
    additional = (p.batch, p.additional, p.kv_heads)
    made = {
        "query": values.standard_normal((*rows, p.head_dim)) * root,
        "key": values.standard_normal((*keys, p.head_dim)) * root,
        "value": values.standard_normal((*keys, p.head_dim_v)),
        "d_out": values.standard_normal((*rows, p.head_dim_v)),
        "d_lse": values.standard_normal(rows),
    }
    if p.additional:
        made["additional_keys"] = values.standard_normal((*additional, p.head_dim)) * root
        made["additional_values"] = values.standard_normal((*additional, p.head_dim_v))
    if p.has_rpb:
        sizes = [2 * w - 1 for w in p.kernel_size]
        made["rpb"] = values.standard_normal((p.heads, *sizes)) * logits / 10
    return {name: rounded(array, kind(name, p.dtype)) for name, array in made.items()}


def kind(name: str, dtype: str) -> str:
    """The dtype of a tensor, and of its gradient, by its name."""
    return "float32" if name == "rpb" else kind_of(name, dtype)


def inputs_of(given: dict[str, Array]) -> dict[str, Array]:
    return {name: array for name, array in given.items() if name not in ("d_out", "d_lse")}


def results(p: Problem, given: dict[str, Array], **options: Any) -> dict[str, Array]:
    """Out, lse and the gradients of all inputs, from the planned launches in order."""
    inputs = inputs_of(given)
    forward = run_all(op_launches.forward(p), inputs, **options)["out"].outputs
    saved = {name: laid.values for name, laid in forward.items()}
    gradients = {"out_grad": given["d_out"], "lse_grad": given["d_lse"]}
    backward = run_all(op_launches.backward(p, True), inputs | saved | gradients, **options)
    made = {name: laid.values for done in backward.values() for name, laid in done.outputs.items()}
    return saved | {name: made[f"{name}_grad"] for name in inputs}


# --- large logits ------------------------------------------------------------------------------------

LARGE = {
    "plain": {},
    "negative scale, causal": {"scale": -0.2, "is_causal": (True, False), "stride": (2, 3)},
    "bias, additional keys": {"has_rpb": True, "additional": 9},
}


def always(name: str, dtype: str, logits: float) -> bool:
    return logits == 1e5 and (name, dtype) in (("plain", "float16"), ("bias, additional keys", "float32"))


@pytest.mark.parametrize(
    ("name", "dtype", "logits"),
    [
        pytest.param(n, d, x, marks=[] if always(n, d, x) else [pytest.mark.all])
        for n in LARGE
        for d in DTYPES
        for x in (1e2, 1e3, 1e4, 1e5)
    ],
)
def test_large_logits(name: str, dtype: str, logits: float) -> None:
    """Results and gradients are within the bound of a dense softmax, whose error is the largest of several draws.

    Weights that were recomputed from lse alone would be off by its rounding, 0.004 next to logits of 1e5.
    """
    p = plain(dtype, **LARGE[name])
    errors: dict[str, float] = {}
    for draw in range(tolerances.DRAWS):
        given = arrays(p, logits, draw)
        truth = true_results(p, given)
        for one, found in tolerances.baseline(p, given).items():
            top = tolerances.largest(truth[one])
            apart = tolerances.deviation(rounded(found, kind(one, dtype)), truth[one])
            errors[one] = max(errors.get(one, 0.0), apart / top if top else 0.0)
    given = arrays(p, logits)
    expected = {
        one: tolerances.Expected(wanted, errors[one], kind(one, dtype), 2 if one in ("out", "lse") else 3)
        for one, wanted in true_results(p, given).items()
    }
    # The gradient of rpb starts from the output in its dtype.
    floors = {one: replaced_kind(e, dtype) if one == "rpb" else e for one, e in expected.items()}
    tolerances.assert_within(results(p, given), floors, f"{name}, logits {logits:g}")


def replaced_kind(expected: tolerances.Expected, dtype: str) -> tolerances.Expected:
    return tolerances.Expected(expected.truth, expected.error, dtype, expected.factor)


def true_results(p: Problem, given: dict[str, Array]) -> dict[str, Array]:
    out, lse = reference.forward(p, **inputs_of(given))
    return {"out": out, "lse": lse, **reference.backward(p, given["d_out"], given["d_lse"], **inputs_of(given))}


# --- rows without a finite logit ---------------------------------------------------------------------


@pytest.mark.parametrize("fast_math", [False, True])
@pytest.mark.parametrize("dtype", [pytest.param("float32"), pytest.param("bfloat16", marks=pytest.mark.all)])
def test_rows_of_minus_infinity(dtype: str, fast_math: bool) -> None:
    """Rows for which rpb is -inf throughout: out 0, lse -inf, gradients 0. In other rows, such keys have no weight."""
    p = plain(dtype, has_rpb=True)
    given = arrays(p, 1.0)
    given["rpb"][0] = -np.inf  # head 0 sees nothing
    given["rpb"][1, 4:, 4:] = -np.inf  # nor does the first query of head 1, whose keys have offsets >= 0
    found = results(p, given, fast_math=fast_math)
    assert all(np.isfinite(array).all() for name, array in found.items() if name != "lse")
    empty = np.zeros((1, *p.query_shape, 2), bool)
    empty[..., 0] = empty[0, 0, 0, 1] = True
    assert np.array_equal(np.isneginf(found["lse"]), empty) and np.isfinite(found["lse"][~empty]).all()
    for name in ("out", "query"):
        assert (found[name][empty] == 0).all() and found[name][~empty].any(-1).all()
    assert (found["rpb"][0] == 0).all() and (found["rpb"][1, 4:, 4:] == 0).all() and found["rpb"][1, :4].any()
    # The same results with rpb so low that weights vanish, in rows that see something else.
    low = given | {"rpb": np.where(np.isneginf(given["rpb"]), -1e4, given["rpb"])}
    sees = results(p, low, fast_math=fast_math)
    for name in ("out", "query", "lse"):
        assert np.array_equal(found[name][~empty], sees[name][~empty])


# --- NaN and infinity --------------------------------------------------------------------------------

# Template -> the tensors on its column side, each poisoned separately.
COLUMN_SIDES = {
    "na_fwd": ("key", "value"),
    "na_bwd_dq": ("key", "value"),
    "na_bwd_dkv": ("query", "d_out", "stats"),
    "na_av": ("value",),
    "na_av_t": ("d_out",),
}


def in_boxes(problem: Problem, instance: Instance, column: tuple[int, ...]) -> tuple[Array, Array]:
    """``[rows per axis]`` bool: rows of tiles whose box holds a column, and those that see it."""
    transposed = instance.record.transposed
    reached, sees = np.ones((), bool), np.ones((), bool)
    for number, (axis, at) in enumerate(zip(problem.axes, column, strict=True)):
        last = number == problem.rank - 1
        extent = instance.patch[3 - problem.rank + number] * (instance.simdgroups if last else 1)
        seen, d = seen_by(axis, transposed), axis.dilation
        own = np.zeros(len(seen), bool)
        rows, columns = next(pair for pair in groups(axis, transposed) if pair[1].start == at % d)
        group = seen[rows, columns]
        for corner in range(0, len(group), extent):
            low, high = span(group[corner : corner + extent])
            own[rows][corner : corner + extent] = low <= at // d < high
        reached, sees = reached[..., None] & own, sees[..., None] & seen[:, at]
    return reached, sees


@pytest.mark.parametrize("kit", [pytest.param(k, id=str(k), marks=pytest.mark.xdist_group(str(k))) for k in KITS])
def test_bad_numbers_stay_in_their_boxes(kit: Kit) -> None:
    """NaN or infinity in one column of one batch item and head reaches only rows of tiles whose box holds the column.

    All other rows keep their bits; rows that see a NaN have one.
    """
    rng, beyond = random.Random(f"bad/{kit}"), 0
    built = kernels(kit.instances.values())
    for number in range(2):
        sample = sample_of(kit, rng, number)
        p = sample.problem
        for instance in kit.instances.values():
            if instance.of_additional or instance.template not in COLUMN_SIDES:
                continue
            launch = launch_of(instance, problem_for(instance, p))
            clean = run(launch, built[instance], sample.tensors).outputs
            for name in COLUMN_SIDES[instance.template]:
                poison = rng.choice((np.nan, np.inf, -np.inf))
                shape = p.query_shape if instance.record.transposed else p.key_shape
                column, batch, head = tuple(map(rng.randrange, shape)), rng.randrange(p.batch), 0
                poisoned = sample.tensors[name].copy()
                poisoned[(batch, *column, head)] = poison
                dirty = run(launch, built[instance], sample.tensors | {name: poisoned}).outputs
                reached, sees = in_boxes(p, instance, column)
                if instance.masked:  # masked keys reach nothing, and nothing reaches them
                    visible = sample.tensors["key_mask"][batch]
                    visible = visible if instance.record.transposed else visible[column]
                    reached, sees = reached & visible, sees & visible
                for output, laid in clean.items():
                    heads = p.group_heads if not instance.record.transposed else 1
                    before, after = laid.view, dirty[output].view
                    touched = np.zeros(before.shape[: p.rank + 2], bool)
                    touched[batch, ..., :heads] = reached[..., None]
                    assert np.array_equal(before[~touched], after[~touched]), f"{instance.name}: {name} {p}"
                    beyond += int((~reached).sum())
                    if np.isnan(poison) and (output, name) in MET:
                        seeing = np.isnan(dirty[output].values)[batch][sees][..., :heads, :]
                        assert seeing.any((1, 2)).all(), f"{instance.name}: {name} {p}"
    assert beyond > 0, "every box held every column"


# (output, tensor): every row of the output that sees a NaN in the tensor must have one.
MET = {
    ("out", "key"),
    ("out", "value"),
    ("query_grad", "key"),
    ("query_grad", "value"),
    ("key_grad", "query"),
    ("key_grad", "d_out"),
    ("value_grad", "query"),
    ("value_grad", "d_out"),
}


# --- long sums ---------------------------------------------------------------------------------------


def long_problem(queries: int, keys: int, dtype: str = "float32", additional: int = 0) -> Problem:
    """Full attention of one head."""
    op, window = ("na", queries) if additional else ("attention", max(queries, keys))
    return Problem(
        op, 1, (queries,), (keys,), 1, 1, 16, 16, (window,), (1,), (1,), (False,), 0.25, dtype, additional=additional
    )


def roundings(count: int) -> float:
    """The error of a sum of ``count`` terms in parts, relative to its largest value.

    A rounding error is at most u = 2^-24 of a partial sum, of either sign; over n additions, whose sums grow, u sqrt(n)
    / 3 is expected. The bound is three times that, for the terms of a part and for the parts.
    """
    terms = 8 * PART
    return float(2.0**-24 * (terms**0.5 + (count / terms) ** 0.5))


LONG_CASES = (
    (8, 65_536, 0, False),
    (65_536, 8, 0, True),
    (8, 65_536, 0, True),
    (65_536, 8, 0, False),
    (8, 8, 16_384, False),
    (8, 1_000_000, 0, False),
    (8, 1_000_000, 0, True),
    (1_000_000, 8, 0, False),
    (1_000_000, 8, 0, True),
)


@pytest.mark.parametrize(
    ("queries", "keys", "additional", "alike"),
    [pytest.param(*case, marks=[pytest.mark.all] if n >= 2 else []) for n, case in enumerate(LONG_CASES)],
)
def test_long_sums(queries: int, keys: int, additional: int, alike: bool) -> None:
    """Sums of many terms lose no more than sums of a few, whether the terms have random signs or are all equal."""
    p = long_problem(queries, keys, additional=additional)
    given = arrays(p, 1.0)
    if alike:
        given["value"], given["d_out"] = (np.abs(given[name]) for name in ("value", "d_out"))
    planned = {
        launch.instance.template: launch.instance.part
        for launch in (*op_launches.forward(p), *op_launches.backward(p, True))
    }
    assert max(planned.values()) == PART
    found = results(p, given, checked=False)
    for name, wanted in true_results(p, given).items():
        if alike and name in ("query", "key", "additional_keys"):
            continue  # differences of two such sums
        apart = tolerances.deviation(found[name], wanted) / tolerances.largest(wanted)
        assert apart <= roundings(max(queries, keys, additional)), f"{name}: {apart:.3g}"


def test_only_long_sums_are_taken_in_parts() -> None:
    """That depends on how many terms a query or a key sums, and on the dtype: 16-bit results round away more."""
    for dtype, longest in LONGEST_SUM.items():
        for queries, keys, inside in ((8, longest, "na_fwd"), (longest, 8, "na_bwd_dkv")):
            for more in (0, 1):
                p = long_problem(queries + more * (queries > 8), keys + more * (keys > 8), dtype)
                for launch in (*op_launches.forward(p), *op_launches.backward(p, False)):
                    i = launch.instance
                    long = more and (i.template == inside or {inside, i.template} == {"na_fwd", "na_bwd_dq"})
                    assert i.part == (PART if long else 0), (dtype, queries, keys, more, i.template)
