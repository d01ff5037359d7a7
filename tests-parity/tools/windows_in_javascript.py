"""Random windows, and what Python says of them: the answers that the page's JavaScript must give."""

from __future__ import annotations

import itertools
import json
import random
from typing import Any

import numpy as np

from natten_mps._metal.metal.flat import bricks_of, fits
from natten_mps._metal.metal.tiles import patches
from natten_mps._metal.metal.tiling import FLAT_GAIN
from natten_mps._metal.problem import mask
from natten_mps._metal.problem.problem import Problem
from natten_mps._metal.problem.window import group_length, inverse, window
from natten_mps._metal.viz.axes import Shown, brick_of, shown

Shape = tuple[int, int, int]
Settings = dict[str, list[Any]]
Case = tuple[Settings, tuple[int, ...], tuple[int, ...]]  # settings, a patch, a token
MOST_TOKENS = {1: 40, 2: 90, 3: 120}  # of a random problem, by rank


def random_axis(rng: random.Random, longest: int) -> dict[str, Any]:
    """One entry of each argument; half of the axes that can wrap do."""
    length = rng.randint(1, longest)
    dilation = rng.choice((1, 1, 2, 3))
    dilation = min(dilation, length)
    kernel_size = rng.randint(1, length // dilation)
    stride = rng.choice((1, 1, rng.randint(1, kernel_size)))
    causal = rng.random() < 0.3
    wrap = not causal and length % (stride * dilation) == 0 and rng.random() < 0.5
    sizes = {"shape": length, "kernel_size": kernel_size, "stride": stride, "dilation": dilation}
    return sizes | {"is_causal": causal, "wrap": wrap}


def random_settings(rng: random.Random) -> Settings:
    """A legal problem of any rank with few tokens."""
    rank = rng.choice((1, 2, 3))
    longest = round(MOST_TOKENS[rank] ** (1 / rank))
    axes = [random_axis(rng, longest) for _ in range(rank)]
    return {name: [axis[name] for axis in axes] for name in axes[0]}


def problem_of(settings: Settings) -> Shown:
    """The problem in Python; raises what ``na{1,2,3}d`` would."""
    return shown(**{name: tuple(values) for name, values in settings.items()})


def mask_of(settings: Settings) -> str:
    """The mask over all pairs, a digit each, queries first: by ``neighborhood_mask``, wrapped keys put back."""
    problem = problem_of(settings)
    found = mask.neighborhood_mask(problem.problem).reshape(problem.shape + problem.problem.key_shape)
    for place, (axis, wraps) in enumerate(zip(problem.problem.axes, settings["wrap"], strict=True), len(problem.shape)):
        if wraps:
            own = (np.arange(axis.keys) + axis.key_start - axis.query_start) % axis.queries
            found = np.stack([found.compress(own == key, place).any(place) for key in range(axis.queries)], place)
    return "".join(found.astype(int).astype(str).ravel())


def answers(settings: Settings, patch: tuple[int, ...], token: tuple[int, ...]) -> dict[str, Any]:
    """What :data:`ANSWERS` gives in JavaScript, by the Python of the packages."""
    problem = problem_of(settings)
    own = problem.problem
    three = (1,) * (3 - own.rank) + patch
    found: dict[str, Any] = {"mask": mask_of(settings), "pairs": str(mask.pairs(own)), "leaders": [], "bricks": []}
    tokens = own.queries
    found["sparsity"] = 1 - mask.pairs(own) / tokens**2
    for axis, each in zip(problem.axes, token, strict=True):
        mates, leader = axis.stride_group(each)
        found["leaders"].append([leader, *mates])
    for transposed, flat in itertools.product((False, True), repeat=2):
        if flat and not fits(own, three, transposed):
            found["bricks"].append(None)
            continue
        bricks = bricks_of(own, three, 1, transposed, flat)
        boxes = [
            axis.box(transposed, extent, each) for axis, extent, each in zip(problem.axes, patch, token, strict=True)
        ]
        corner = [box.columns[-1] for box in boxes] if all(box.columns for box in boxes) else None
        found["bricks"].append(
            {
                "counts": [str(bricks.executed), str(bricks.full)],
                "ratio": bricks.executed * 64 / mask.pairs(own),
                "boxes": [[list(box.rows), list(box.columns), list(box.common)] for box in boxes],
                "full": None if corner is None else brick_of(boxes, corner, flat),
                "best": [best_walk(own, transposed, wanted, flat) for wanted in (three, None)],
                "rule": best_walk(own, transposed, None, None),
            }
        )
    return found


def best_walk(problem: Problem, transposed: bool, patch: Shape | None, flat: bool | None) -> list[Any]:
    """The patch with the fewest bricks, and whether they are flat: as wanted, or by what they save."""

    def best(shapes: list[Shape], flat: bool) -> tuple[int, int, Shape]:
        return min((bricks_of(problem, each, 1, transposed, flat).executed, -each[-1], each) for each in shapes)

    shapes = patches(problem.rank, 1) if patch is None else [patch]
    fitting = [each for each in shapes if fits(problem, each, transposed)]
    run = best(shapes, False)
    runs_on = best(fitting, True) if fitting and flat is not False else None
    if runs_on and (flat or runs_on[0] * FLAT_GAIN <= run[0]):
        return [list(runs_on[2][3 - problem.rank :]), True]
    return [list(run[2][3 - problem.rank :]), False]


# The same in JavaScript, from the functions that the page uses; `natten` holds them.
ANSWERS = """
(settings, patch, token) => {
  const axes = natten.axes_of(settings);
  const longer = (tokens, n) => tokens.flatMap((token) => [...Array(n).keys()].map((last) => [...token, last]));
  const tokens = settings.shape.reduce(longer, [[]]);
  const rows = tokens.map((query) => {
    const sights = natten.sight(settings, false, query, patch);
    return tokens.map((key) => Number(natten.sees(sights, key))).join("");
  });
  const numbers = natten.work(settings, { patch, flat: false }, false);
  const groups = axes.map((axis, a) => natten.stride_group(axis, token[a]));
  const leaders = groups.map(({ mates, leader }) => [leader, ...mates]);
  const walks = [[false, false], [false, true], [true, false], [true, true]];
  const bricks = walks.map(([transposed, flat]) => {
    if (flat && !natten.fits(settings, patch, transposed)) return null;
    const { executed, full } = natten.bricks_of(settings, patch, transposed, flat);
    const sights = natten.sight(settings, transposed, token, patch);
    const boxes = sights.map(({ box }) => [box.rows, box.columns, box.common]);
    const corner = sights.map(({ box }) => box.columns.at(-1));
    const best = (wanted, on) => Object.values(natten.best_walk(settings, transposed, wanted, on));
    return {
      counts: [String(executed), String(full)],
      ratio: natten.work(settings, { patch, flat }, transposed).ratio,
      boxes,
      full: corner.includes(undefined) ? null : natten.brick_of(sights, corner, flat) === "full",
      best: [best(patch, flat), best(null, flat)],
      rule: best(null, null),
    };
  });
  return { mask: rows.join(""), pairs: String(numbers.pairs), leaders, bricks, sparsity: numbers.sparsity };
}
"""


def assert_equal(cases: list[Case], found: list[dict[str, Any]]) -> None:
    """What JavaScript found is what Python says: counts, masks and boxes exactly, ratios up to rounding."""
    for case, got in zip(cases, found, strict=True):
        want = answers(*case)
        ratios = [(one.pop(name), other.pop(name)) for one, other, name in _with_ratios(got, want)]
        assert all(abs(one - other) <= 1e-9 * abs(other) + 1e-11 for one, other in ratios), (case, ratios)
        assert got == want, case


def _with_ratios(got: dict[str, Any], want: dict[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any], str]]:
    bricks = zip(got["bricks"], want["bricks"], strict=True)
    return [(got, want, "sparsity"), *((one, other, "ratio") for one, other in bricks if one and other)]


def window_answers(rng: random.Random, count: int) -> tuple[list[list[Any]], list[list[Any]]]:
    """Arguments ``[p, n, w, s, causal, length, group, dilation]``, and window, inverse and group_length of them."""
    given, wanted = [], []
    for _ in range(count):
        n = rng.choice((rng.randint(1, 30), rng.randint(1, 10**6)))
        w = rng.randint(1, n)
        s, p, causal = rng.randint(1, w), rng.randrange(n), rng.random() < 0.5
        length, dilation = rng.randint(1, 10**6), rng.randint(1, 9)
        group = rng.randrange(dilation)
        given.append([p, n, w, s, causal, length, group, dilation])
        wanted.append(
            [list(window(p, n, w, s, causal)), list(inverse(p, n, w, s, causal)), group_length(length, group, dilation)]
        )
    return given, wanted


WINDOW_ANSWERS = """
([p, n, w, s, causal, length, group, dilation]) => [
  natten.window(p, n, w, s, causal), natten.inverse(p, n, w, s, causal), natten.group_length(length, group, dilation),
]
"""


def broken_settings(rng: random.Random) -> tuple[Settings, str]:
    """Settings that break a rule, and the error in Python."""
    while True:
        settings = random_settings(rng)
        axis = rng.randrange(len(settings["shape"]))
        name = rng.choice(("shape", "kernel_size", "stride", "dilation", "is_causal", "wrap"))
        flag = name in ("is_causal", "wrap")
        settings[name][axis] = not settings[name][axis] if flag else rng.randint(0, 2 * settings["shape"][axis] + 2)
        if name == "shape":  # tokens of an axis without any are not unrolled
            settings["wrap"] = [wraps and settings["shape"][axis] > 0 for wraps in settings["wrap"]]
        try:
            problem_of(settings)
        except ValueError as error:
            return settings, str(error)


def cases(seed: int, count: int) -> list[Case]:
    """Random settings, each with a patch and a token."""
    rng = random.Random(seed)
    found = []
    for _ in range(count):
        settings = random_settings(rng)
        rank = len(settings["shape"])
        patch = rng.choice(patches(rank, 1))[3 - rank :]
        found.append((settings, patch, tuple(rng.randrange(length) for length in settings["shape"])))
    return found


def script(function: str, calls: list[Any]) -> str:
    """An expression: the JSON of what a function gives for each list of arguments."""
    return f"JSON.stringify({json.dumps(calls)}.map((call) => ({function})(...call)))"
