"""``viz``: what a token sees as text, SVG and PNG, in both packages; messages for what cannot be shown."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
import windows_in_javascript as javascript
from brute_force import keys_of_axis
from PIL import Image

import natten_mlx.cli
import natten_mps.cli
from natten_mps._metal.viz import axes, drawing, pictures, words

COMMANDS = {"natten-mps": natten_mps.cli.main, "natten-mlx": natten_mlx.cli.main}
Viz = Callable[..., str]


@pytest.fixture
def viz(capsys: pytest.CaptureFixture[str]) -> Viz:
    """``viz(options, status=0)``: what both packages print, which is the same but for their names."""

    def run(options: str, status: int = 0) -> str:
        said = []
        for name, main in COMMANDS.items():
            assert main(["viz", *options.split()]) == status
            captured = capsys.readouterr()
            out, empty = (captured.err, captured.out) if status else (captured.out, captured.err)
            assert empty == ""
            said.append(out.replace(name, "natten-x"))
        assert said[0] == said[1]
        return said[0]

    return run


# --- what is shown is what the definition says --------------------------------------------------------------------


def test_axes_show_what_the_definition_says() -> None:
    rng = random.Random(11)
    for _ in range(200):
        sizes = javascript.random_axis(rng, 40)
        problem = javascript.problem_of({name: [value] for name, value in sizes.items()})
        (axis,) = problem.axes
        names = ("shape", "kernel_size", "stride", "dilation", "is_causal", "wrap")
        arguments = [sizes[name] for name in names]
        keys = [keys_of_axis(query, *arguments) for query in range(axis.length)]
        assert [list(axis.seen(False, query)) for query in range(axis.length)] == keys, sizes
        for key in range(axis.length):
            queries = [query for query in range(axis.length) if key in keys[query]]
            assert sorted(axis.seen(True, key)) == queries, sizes
        for query in range(axis.length):
            mates, leader = axis.stride_group(query)
            assert query in mates and (sizes["is_causal"] or all(keys[mate] == keys[query] for mate in mates)), sizes
            last = axis.stride_group(mates[-1])[0]
            place = sizes["stride"] - 1 if sizes["is_causal"] else sizes["stride"] // 2
            assert last == mates and (len(mates) <= place or leader == mates[place]), sizes


def test_a_box_holds_what_its_rows_see() -> None:
    for settings, patch, token in javascript.cases(12, 150):
        problem = javascript.problem_of(settings)
        for axis, extent, own in zip(problem.axes, patch, token, strict=True):
            box = axis.box(False, extent, own)
            seen = [set(axis.seen(False, row)) for row in box.rows]
            assert own in box.rows and len(box.rows) <= extent
            assert set(box.columns) == set.union(*seen) or set(box.columns) > set.union(*seen)
            assert box.columns[0] in seen[0] and box.columns[-1] in seen[-1]
            common = [column for column, everyone in zip(box.columns, box.common, strict=True) if everyone]
            if len(set(box.columns)) == len(box.columns):  # on an axis that wraps, a token may be in a box twice
                assert set(common) == set.intersection(*seen)


def test_text_marks_the_window(viz: Viz) -> None:
    text = viz("--shape 6 9 --kernel-size 3 --stride 1 3 --query 4 8")
    assert text.splitlines() == [
        "na2d(query, key, value, kernel_size=3, stride=(1, 3))",
        "query (4, 8) attends to 9 of 54 keys",
        "axis 0: 3-5",
        "axis 1: 6-8",
        "its leader is (4, 7), whose window 3 queries share",
        "sparsity 83.33%: ideal speed-up over dense 6x",
        "",
        "    0         5",
        *[f"{row:>2}  . . . . . . . . ." for row in range(3)],
        " 3  . . . . . . # # #",
        " 4  . . . . . . + L Q",
        " 5  . . . . . . # # #",
        "",
        "Q the token   L its leader   + its stride group   # what it sees   . other tokens",
    ]


def test_the_document_shows_what_is_printed(viz: Viz) -> None:
    document = (Path(__file__).parents[2] / "docs" / "viz.md").read_text()
    command, shown = re.findall(r"```sh\nnatten-mps viz ([^\n]*)\n```\n\n```text\n(.*?)```", document, re.DOTALL)[0]
    printed = viz(command)
    for part in shown.split(" ...\n"):
        assert part in printed, part


def test_text_of_other_problems(viz: Viz) -> None:
    assert " 0  # : #" not in viz("--shape 12 --kernel-size 3 --dilation 2 --query 5")
    lines = viz("--shape 12 --kernel-size 3 --dilation 2 --query 5").splitlines()
    assert lines[-3] == "    . : . # . Q . # . : . :"
    planes = viz("--shape 3 4 4 --kernel-size 2 --is-causal yes no no --query 1 0 0")
    assert planes.count("plane ") == 3 and "axis 0: 0-1" in planes
    wrapped = viz("--shape 8 --kernel-size 3 --wrap --key 0")
    assert "key 0 is seen by 3 of 8 queries" in wrapped and "    Q # . . . . . #" in wrapped
    piece = viz("--shape 4 --kernel-size 3 --full-shape 20 --query-start 8 --key-start 6 --key-shape 8 --query 9")
    assert "full_shape=20, query_start=8, key_start=6" in piece and "axis 0: 8-10" in piece
    mask = viz("--shape 5 --kernel-size 3 --is-causal --view mask")
    assert "   0  Q....\n   1  #Q...\n   2  ##Q..\n   3  .##Q.\n   4  ..##Q\n" in mask


def test_work_agrees_with_the_plan(viz: Viz) -> None:
    """The patch and the bricks are those of the kernel that would run."""
    from natten_mps._metal.metal.op_launches import backward, forward

    problem = axes.shown((24, 40), kernel_size=(5, 7), wrap=(False, False)).problem
    walks = [each for each in (*forward(problem), *backward(problem, False)) if each.instance.record.walks]
    for option, transposed in (("--query 11 3", False), ("--key 11 3", True)):
        launch = next(each for each in walks if each.instance.record.transposed == transposed)
        text = viz(f"--shape 24 40 --kernel-size 5 7 --view work {option}")
        rows = " x ".join(map(str, launch.instance.patch[1:]))
        assert f"patch of {rows} {'keys' if transposed else 'queries'}" in text
        kind = "flat bricks" if launch.instance.flat else "bricks"
        assert f"the problem: {launch.bricks:,} {kind}, {launch.full / launch.bricks:.0%} without a mask" in text


# --- files --------------------------------------------------------------------------------------------------------


def test_svg_has_a_square_for_each_token(viz: Viz, tmp_path: Path) -> None:
    for view, squares in (("window", 6 * 9), ("work", 6 * 9), ("mask", 6 * 6 + 9 * 9)):
        path = tmp_path / f"{view}.svg"
        assert viz(f"--shape 6 9 --kernel-size 3 --view {view} --output {path}") == f"wrote {path}\n"
        root = ElementTree.fromstring(path.read_text())
        places = {(each.get("x"), each.get("y")) for each in root.iter() if each.get("width") == str(pictures.SPACE)}
        assert squares <= len(places) <= squares + 6  # and those of the legend
        texts = [each.text for each in root.iter() if each.tag.endswith("text")]
        assert "na2d(query, key, value, kernel_size=3)" in texts
        inside(root)


def inside(root: ElementTree.Element) -> None:
    """Nothing lies outside of the picture; a character is at most 8 pixels wide."""
    width, height = float(root.get("width", 0)), float(root.get("height", 0))
    for each in root.iter():
        if each.get("x") and each.tag.endswith("rect"):
            assert float(each.get("x", 0)) + float(each.get("width", 0)) <= width
            assert float(each.get("y", 0)) + float(each.get("height", 0)) <= height
        elif each.tag.endswith("text"):
            assert float(each.get("y", 0)) < height
            assert float(each.get("x", 0)) + (0 if each.get("text-anchor") else 6 * len(each.text or "")) <= width


def test_png_is_the_same_picture(viz: Viz, tmp_path: Path) -> None:
    path = tmp_path / "work.png"
    viz(f"--shape 3 10 20 --kernel-size 2 5 9 --view work --output {path}")
    image = Image.open(path).convert("RGB")
    problem = axes.shown((3, 10, 20), kernel_size=(2, 5, 9), wrap=(False,) * 3)
    drawn = pictures.tokens(pictures.Sight(problem, (1, 5, 10)), ["title"], ["line"])
    assert image.width >= 2 * drawn.width - 2 and image.height > 300
    colors = {color for _, color in image.getcolors(1 << 20) or []}
    for name in ("empty", "seen", "query", "ink", "masked"):
        wanted = tuple(int(drawing.INK[name][at : at + 2], 16) for at in (1, 3, 5))
        assert wanted in colors, name


def test_only_a_png_needs_matplotlib(monkeypatch: pytest.MonkeyPatch, viz: Viz, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    said = viz(f"--shape 9 --kernel-size 3 --output {tmp_path / 'a.png'}", status=1)
    assert said == (
        "natten-x viz: a PNG needs matplotlib, which is not installed: pip install 'natten-x[tools]'; an SVG does not\n"
    )
    viz(f"--shape 9 --kernel-size 3 --output {tmp_path / 'a.svg'}")
    assert [path.name for path in tmp_path.iterdir()] == ["a.svg"]


@pytest.mark.all
@pytest.mark.parametrize("home", ["home", "no folder"])
def test_nothing_is_written_beside_the_cache_folder(home: str, tmp_path: Path) -> None:
    """matplotlib keeps a list of fonts; without a home folder, in one for temporary files that is removed."""
    folders = {name: tmp_path / name for name in ("home", "temporary", "work")}
    for folder in folders.values():
        folder.mkdir()
    (tmp_path / "no folder").touch()
    unset = ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    done = subprocess.run(
        [sys.executable, "-m", "natten_mps", "viz", "--shape", "9", "--kernel-size", "3", "--output", "a.png"],
        cwd=folders["work"],
        env=environment | {"HOME": str(tmp_path / home), "TMPDIR": str(folders["temporary"])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "wrote a.png\n", "")
    assert [path.name for path in folders["work"].iterdir()] == ["a.png"] and not list(folders["temporary"].iterdir())
    written = [path for path in folders["home"].rglob("*") if path.is_file()]
    assert all("natten-mps" in path.parts or "natten-x" in path.parts for path in written), written
    assert bool(written) == (home == "home")


def test_the_page_begins_with_the_settings(viz: Viz, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    assert viz(f"--shape 20 30 --kernel-size 5 --wrap no yes --page {path}") == f"wrote {path}\n"
    start = '"shape": [20, 30], "kernel_size": [5, 5], "stride": [1, 1], "dilation": [1, 1]'
    assert f'const START = {{{start}, "is_causal": [false, false], "wrap": [false, true]}};' in path.read_text()
    viz(f"--page {path}")
    assert '"shape": [16, 16]' in path.read_text()


# --- messages -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "needs --shape and --kernel-size, or --page"),
        ("--shape 9", "--shape and --kernel-size are needed together"),
        ("--shape 9 9 9 9 --kernel-size 3", "--shape takes 1, 2 or 3 numbers, one per axis; got 4"),
        ("--shape 0 9 --kernel-size 3", "--shape must be at least 1 on each axis; got (0, 9)"),
        ("--shape 9 9 9 --kernel-size 3 3", "--kernel-size takes one value, or one for each of 3 axes; got 2"),
        (
            "--shape 9 --kernel-size 5 --dilation 2",
            "na1d: kernel_size * dilation must not exceed the axis length; axis 0 has 5 * 2 = 10 > 9",
        ),
        ("--shape 9 --kernel-size 3 --stride 4", "na1d: stride must not exceed kernel_size; axis 0 has 4 > 3"),
        ("--shape 9 --kernel-size 3 --query 9", "--query must be at hand; axis 0 has 0..8, got 9"),
        ("--shape 9 9 --kernel-size 3 --key 1", "--key takes one number for each of 2 axes; got 1"),
        ("--shape 9 --kernel-size 3 --output a.pdf", "a.pdf: the name must end in .svg, .png, .txt"),
        ("--page a.html --output a.svg", "--output needs --shape and --kernel-size"),
        (
            "--shape 9 --kernel-size 3 --view work --head-dim 300",
            "the kernels cannot take this problem: head dims beyond 256 do not fit a simdgroup's registers; got 300",
        ),
        (
            "--shape 4 --kernel-size 3 --query-start 2",
            (
                "na1d: query_start and key_start need full_shape, the size of the whole problem; "
                "got query_start (2,) without it"
            ),
        ),
    ],
)
def test_what_cannot_be_shown(viz: Viz, options: str, message: str) -> None:
    assert viz(options, status=1) == f"natten-x viz: {message}\n"


def test_large_problems_are_shown_around_the_token(viz: Viz) -> None:
    text = viz("--shape 100000 5000 --kernel-size 9 --query 70000 2500 --view work")
    assert "70000" in text and len(text.splitlines()) < 60 and max(map(len, text.splitlines())) < 150
    assert words.named((3,)) == "3" and words.listed((14, 15, 0, 1), 1) == "14-15, 0-1"
    problem = axes.shown((300, 300, 300), kernel_size=(3, 3, 3), wrap=(False,) * 3)
    drawn = pictures.tokens(pictures.Sight(problem, (150, 150, 150)), ["title"], ["line"])
    assert drawn.width < 2500 and len(drawn.shapes) < 60_000
    assert drawing.svg(drawn).endswith("</svg>\n")
