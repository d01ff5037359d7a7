"""The ``viz`` command of both packages: what a query sees and what kernels read for it, as text, picture or page."""

import argparse
import textwrap
from dataclasses import replace
from pathlib import Path

from ..metal.op_launches import backward, forward
from ..metal.tiling import Target
from ..plan.limits import metal_limit, too_large
from ..plan.tuning import measured_costs
from ..problem.problem import DTYPES
from ..viz import words
from ..viz.axes import Shown, shown
from ..viz.drawing import Drawing, png, svg
from ..viz.page import page
from ..viz.pictures import Sight, masks, tokens
from .command_line import CommandError, check_outputs, end, need_matplotlib, paragraph, positive, write
from .problem_arguments import add_shape, add_window, shape_of, window_of

FORMATS = (".svg", ".png", ".txt")
VIEWS = ("window", "mask", "work")
DESCRIPTION = """Show which keys a query attends to (or, with --key, which queries attend to a key): its window, leader
and dilation group; the masks of the axes; or what the Metal kernels read for it. Prints text, or writes a picture, or a
page on which everything can be changed in a browser."""
EXAMPLES = """\
examples:
  {package} viz --shape 16 16 --kernel-size 5 --stride 2
  {package} viz --shape 56 56 --kernel-size 7 --dilation 4 --query 3 30 --output window.svg
  {package} viz --shape 24 --kernel-size 6 --is-causal --view mask
  {package} viz --shape 8 24 32 --kernel-size 3 5 9 --view work --output work.png
  {package} viz --shape 18 36 --kernel-size 5 9 --wrap no yes --key 4 0
  {package} viz --shape 64 --kernel-size 9 --full-shape 1000 --query-start 100 --key-start 96 --key-shape 72
  {package} viz --page windows.html
"""


def add_viz(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", package: str) -> None:
    """Add the ``viz`` command to a command line; its ``run`` default takes the parsed arguments."""
    parser = commands.add_parser(
        "viz",
        help="show which keys a query sees, and what the kernels read, as text, picture or HTML page",
        description=paragraph(DESCRIPTION),
        epilog=EXAMPLES.format(package=package),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_shape(parser, required=False)
    add_window(parser, required=False)
    add = parser.add_argument
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--query", type=int, nargs="+", metavar="I", help="the query to look at (default: in the middle)"
    )
    which.add_argument(
        "--key", type=int, nargs="+", metavar="I", help="show the queries that attend to this key instead"
    )
    add("--view", choices=VIEWS, default=VIEWS[0], help="what to show (default: %(default)s)")
    add("--output", type=Path, metavar="FILE", help="write it to FILE: .svg, .png (needs matplotlib) or .txt")
    add("--page", type=Path, metavar="FILE.html", help="write a page to play with in a browser, without any network")
    piece = parser.add_argument_group("a piece of a larger problem")
    for name, text in (
        ("--key-shape", "tokens of the keys at hand (default: --shape)"),
        ("--full-shape", "tokens of the whole problem"),
        ("--query-start", "where the queries begin in it"),
        ("--key-start", "where the keys begin in it"),
    ):
        piece.add_argument(name, type=int, nargs="+", metavar="N", help=text)
    kernels = parser.add_argument_group("for --view work")
    kernels.add_argument(
        "--heads", type=positive, default=1, metavar="N", help="heads of queries (default: %(default)s)"
    )
    kernels.add_argument("--kv-heads", type=positive, metavar="N", help="heads of keys and values (default: --heads)")
    kernels.add_argument("--head-dim", type=positive, default=64, metavar="D", help="channels (default: %(default)s)")
    kernels.add_argument("--dtype", choices=DTYPES[:3], default=DTYPES[0], help="(default: %(default)s)")
    parser.set_defaults(run=lambda arguments: end(f"{package} viz", lambda: run(arguments, package)))


def run(arguments: argparse.Namespace, package: str) -> int:
    """Run the command; returns the exit status."""
    _check(arguments, package)
    problem = None if arguments.shape is None else _shown(arguments)
    if arguments.page is not None:
        settings = None if problem is None else _settings(arguments)
        write(arguments.page, lambda file: file.write(page(settings).encode()))
        print(f"wrote {arguments.page}")
    if problem is None or (arguments.page is not None and arguments.output is None):
        return 0
    sight = _sight(problem, arguments)
    if arguments.output is None or arguments.output.suffix == ".txt":
        text = _text(sight, arguments.view)
        if arguments.output is None:
            print(text)
            return 0
        write(arguments.output, lambda file: file.write(f"{text}\n".encode()))
    elif arguments.output.suffix == ".svg":
        write(arguments.output, lambda file: file.write(svg(_drawing(sight, arguments.view)).encode()))
    else:
        write(arguments.output, lambda file: file.write(png(_drawing(sight, arguments.view))))
    print(f"wrote {arguments.output}")
    return 0


def _check(arguments: argparse.Namespace, package: str) -> None:
    """:class:`CommandError` for options that do not go together, before any work."""
    if arguments.shape is None and arguments.page is None:
        raise CommandError("needs --shape and --kernel-size, or --page")
    if (arguments.shape is None) != (arguments.kernel_size is None):
        raise CommandError("--shape and --kernel-size are needed together")
    if arguments.output is not None:
        if arguments.shape is None:
            raise CommandError("--output needs --shape and --kernel-size")
        if arguments.output.suffix not in FORMATS:
            raise CommandError(f"{arguments.output}: the name must end in {', '.join(FORMATS)}")
        if arguments.output.suffix == ".png":
            need_matplotlib(package, "a PNG needs", "an SVG does not")
    check_outputs([arguments.output, arguments.page])


def _shown(arguments: argparse.Namespace) -> Shown:
    """The problem; :class:`CommandError` with the message of the function itself where that would raise one."""
    shape = shape_of(arguments)
    rank = len(shape)
    piece = {name: getattr(arguments, name) for name in ("full_shape", "query_start", "key_start")}
    key_shape = shape if arguments.key_shape is None else tuple(arguments.key_shape)
    heads = arguments.heads, arguments.heads if arguments.kv_heads is None else arguments.kv_heads
    dims = (arguments.head_dim,) * 2
    window = window_of(arguments, rank)
    given = {name: tuple(value) for name, value in piece.items() if value is not None}
    try:
        return shown(shape, key_shape, heads=heads, dims=dims, dtype=arguments.dtype, **window, **given)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise CommandError(str(error)) from None


def _settings(arguments: argparse.Namespace) -> dict[str, tuple[object, ...]]:
    if arguments.full_shape is not None:
        raise CommandError("--page shows whole problems, not pieces")
    return {"shape": shape_of(arguments), **window_of(arguments, len(arguments.shape))}


def _sight(problem: Shown, arguments: argparse.Namespace) -> Sight:
    transposed = arguments.key is not None
    given = [axis.given(transposed) for axis in problem.axes]
    name, token = ("--key", arguments.key) if transposed else ("--query", arguments.query)
    token = tuple(side.start + len(side) // 2 for side in given) if token is None else tuple(token)
    if len(token) != len(given):
        raise CommandError(f"{name} takes one number for each of {len(given)} axes; got {len(token)}")
    for place, (index, side) in enumerate(zip(token, given, strict=True)):
        if index not in side:
            raise CommandError(f"{name} must be at hand; axis {place} has {side.start}..{side.stop - 1}, got {index}")
    sight = Sight(problem, token, transposed)
    return _with_kernels(sight) if arguments.view == "work" else sight


def _with_kernels(sight: Sight) -> Sight:
    """The sight with the patch and the tile of the kernel that walks it, as the planner launches it.

    On a machine that was tuned, its own costs choose, as they do for calls.
    """
    problem = sight.shown.problem
    refusal = too_large(problem) or metal_limit(problem)
    if refusal:
        raise CommandError(f"the kernels cannot take this problem: {refusal}")
    target = Target(costs=measured_costs(matrix_units=False))
    launches = backward(problem, False, target) if sight.transposed else forward(problem, target)
    walks = (each.instance for each in launches if each.instance.record.walks)
    instance = next(each for each in walks if each.record.transposed == sight.transposed)
    patch = instance.patch[3 - problem.rank :]
    tile = (*patch[:-1], patch[-1] * instance.simdgroups)
    return replace(sight, patch=patch, tile=tile, flat=instance.flat)


def _lines(sight: Sight, view: str) -> list[str]:
    kernels = words.about_kernels(sight) if view == "work" else []
    return [*([] if view == "mask" else words.about(sight)), words.about_all(sight.shown), *kernels]


def _text(sight: Sight, view: str) -> str:
    if view == "mask":
        drawn = [f"axis {place}\n{words.mask_text(axis)}\n" for place, axis in enumerate(sight.shown.axes)]
        drawn.append("rows: queries; columns: keys; Q its own position, # the keys that it attends to")
    else:
        drawn = [words.text(sight)]
    return "\n".join([words.call(sight.shown), *_lines(sight, view), "", *drawn])


def _drawing(sight: Sight, view: str) -> Drawing:
    title = textwrap.wrap(words.call(sight.shown), 70, subsequent_indent="    ")
    lines = _lines(sight, view)
    return masks(sight.shown, title, lines) if view == "mask" else tokens(sight, title, lines)
