"""The JavaScript of the HTML page gives what window.py and tiles.py give: run by V8, without a browser."""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import py_mini_racer
import pytest
import windows_in_javascript as javascript

from natten_mps._metal.problem import window
from natten_mps._metal.viz import page

COUNT = 1000
Run = Callable[[str, list[Any]], Any]


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """``run(function, calls)``: what a function in JavaScript gives for each list of arguments."""
    with py_mini_racer.mini_racer() as engine:
        engine.eval(f"(() => {{ {page.arithmetic()} }})()")
        yield lambda function, calls: json.loads(str(engine.eval(javascript.script(function, calls))))


def test_windows(run: Run) -> None:
    given, wanted = javascript.window_answers(random.Random(1), 5 * COUNT)
    assert run(javascript.WINDOW_ANSWERS, [[each] for each in given]) == wanted


def test_masks_leaders_pairs_and_bricks(run: Run) -> None:
    cases = javascript.cases(2, COUNT)
    javascript.assert_equal(cases, run(javascript.ANSWERS, [list(case) for case in cases]))
    # Each kind of problem was among them.
    for name, default in (("stride", 1), ("dilation", 1), ("is_causal", False), ("wrap", False)):
        assert sum(any(value != default for value in settings[name]) for settings, _, _ in cases) > COUNT / 10, name


def test_sums_over_patches_are_the_counted_bricks(run: Run) -> None:
    """The picture of a patch shows the bricks that are counted: summed over all patches, they are the count."""
    function = """
    (settings, patch, transposed, flat, corners) => {
      const totals = corners.map((token) => {
        const boxes = natten.sight(settings, transposed, token, patch).map(({ box }) => box);
        return natten.patch_bricks(boxes, flat);
      });
      const { executed, full } = natten.bricks_of(settings, patch, transposed, flat);
      const sum = (name) => totals.reduce((found, each) => found + each[name], 0n);
      return [sum("executed") === executed, sum("full") === full, String(executed)];
    }"""
    counted = 0
    for settings, patch, _ in javascript.cases(3, 60):
        problem = javascript.problem_of(settings)
        if any(settings["wrap"]):
            continue  # there, a key may lie in two patches
        for transposed, flat in itertools.product((False, True), repeat=2):
            firsts = [
                sorted({axis.box(transposed, extent, token).rows[0] for token in range(axis.length)})
                for axis, extent in zip(problem.axes, patch, strict=True)
            ]
            corners = list(itertools.product(*firsts))
            ((executed, full, count),) = run(function, [[settings, patch, transposed, flat, corners]])
            assert executed and full, (settings, patch, transposed, flat)
            counted += int(count)
    assert counted > 1000


def test_rules_have_the_words_of_python(run: Run) -> None:
    rng = random.Random(4)
    broken = [javascript.broken_settings(rng) for _ in range(COUNT // 2)]
    found = run("(settings) => natten.broken_rule(settings)", [[settings] for settings, _ in broken])
    assert [each["message"] for each in found] == [message for _, message in broken]
    assert len({re.sub(r"\d+|\([\d, ]*\)", "", message) for _, message in broken}) == 8
    legal = [[settings] for settings, _, _ in javascript.cases(5, 100)]
    assert run("(settings) => natten.broken_rule(settings)", legal) == [None] * 100


def test_window_js_has_the_functions_of_window_py() -> None:
    source = (Path(page.FOLDER) / "window.js").read_text()
    functions = re.findall(r"^function (\w+)", source, re.MULTILINE)
    assert functions == re.findall(r"^def (\w+)", Path(window.__file__).read_text(), re.MULTILINE)


def test_the_page_is_one_file() -> None:
    text = page.page()
    assert not re.search(r"\b(?:src|href)=\"(?!data:)|@import|https?://|\burl\(", text)
    assert "default-src 'none'" in text and "/* STYLE */" not in text and "/* PROGRAM */" not in text
    for settings in page.EXAMPLES.values():
        javascript.problem_of({name: list(values) for name, values in settings.items()})
