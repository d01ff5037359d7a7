"""The ``plan`` command of both packages: what a call would run on a device and why, with exact counts and a predicted
time, without a tensor.
"""

import argparse
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..bench.table import console, empty
from ..bench.times import digits
from ..plan import costs as cost_model
from ..plan import plan as planning
from ..plan.backends import Backends
from ..plan.device import Device
from ..plan.plan import Plan
from ..plan.planner import Planner
from ..problem import faces
from ..problem.ops import ADDITIONAL_KEYS, ADDITIONAL_VALUES, AV, FULL, KEY_MASK, OPS, QK, RPB, VALUE
from ..problem.problem import DTYPES, Problem, TensorSpec
from . import forecast
from .command_line import STDOUT, CommandError, add_json, check_outputs, end, natural, paragraph, positive, write_json
from .problem_arguments import WINDOW, add_shape, add_window, option, shape_of, window_of

if TYPE_CHECKING:
    from rich.console import Console

# Of what --json writes; docs/backends.md describes it.
SCHEMA = 1
CPU = "cpu"
# What a tiling is besides, in words; where its columns come from is told apart.
FLAGS = {"flat": "flat", "mpp": "matrix units"}
# How many tilings of a walk the table has.
SHOWN = 8
FACE = "plan"
PIECE = ("full_shape", "query_start", "key_start")
DESCRIPTION = """Say what a call would run, and why: the backend, the kernels, their exact work (bricks, 8x8 products,
bytes) and their predicted time, beside attention to all keys. No tensor is made and nothing is run; with --device the
GPU need not be here."""
EXAMPLES = """\
examples:
  {package} plan --shape 64 64 --kernel-size 7 --heads 4 --head-dim 32
  {package} plan --op na3d --shape 30 48 80 --kernel-size 18 24 24 --stride 16 8 8 --heads 24 --device "Apple M4 Max"
  {package} plan --shape 56 56 --kernel-size 7 --dilation 4 --compare
  {package} plan --op na1d_qk --shape 4096 --kernel-size 65 --is-causal --dtype float32 --json plan.json
"""


@dataclass(frozen=True, slots=True)
class Target:
    """A package as a planner of calls that are only described.

    device(name): this machine's device (None), its CPU ('cpu'), or a GPU of an Apple chip of that name, which need not
    be here.
    """

    backends: Backends
    planner: Callable[[], Planner]
    device: Callable[[str | None], Device]


def add_plan(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", package: str, target: Callable[[], Target]
) -> None:
    """Add the ``plan`` command to a command line; ``target()`` is called when it runs."""
    parser = commands.add_parser(
        "plan",
        help="say what a call would run on this machine or another, with exact counts and a predicted time",
        description=paragraph(DESCRIPTION),
        epilog=EXAMPLES.format(package=package),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--op", choices=faces.FACES, metavar="OP", help=f"{', '.join(faces.FACES)} (default: na1d, na2d or na3d)")
    add_shape(parser)
    add_window(parser, required=False)
    add("--batch", type=natural, default=1, metavar="N", help="batch items (default: %(default)s)")
    add("--heads", type=positive, default=1, metavar="N", help="heads of queries (default: %(default)s)")
    add("--kv-heads", type=positive, metavar="N", help="heads of keys and values (default: --heads)")
    add("--head-dim", type=positive, default=64, metavar="D", help="channels of a head (default: %(default)s)")
    add("--head-dim-v", type=positive, metavar="D", help="channels of a value (default: --head-dim)")
    add(
        "--dtype",
        choices=DTYPES,
        default=DTYPES[0],
        metavar="DTYPE",
        help=f"{', '.join(DTYPES)} (default: %(default)s)",
    )
    add("--additional", type=natural, default=0, metavar="N", help="additional keys and values that every query sees")
    add("--rpb", action="store_true", help="with a relative positional bias")
    add("--key-mask", action="store_true", help="with a mask of keys")
    add("--key-shape", type=positive, nargs="+", metavar="N", help="tokens of the keys, if not --shape")
    for name in PIECE:
        add(
            option(name),
            type=int,
            nargs="+",
            metavar="N",
            help="for a piece of a larger problem, as the function takes it",
        )
    add("--backend", help="as the function takes it (default: the one in force)")
    add("--device", metavar="NAME", help="'cpu', or an Apple chip such as \"Apple M4 Max\" (default: this machine's)")
    add(
        "--compare",
        action="store_true",
        help="list the backends, and the tilings that could be chosen, with their costs",
    )
    add_json(parser, "the plan and its counts")
    parser.set_defaults(run=lambda arguments: end(f"{package} plan", lambda: _run(package, target, arguments)))


def _run(package: str, make_target: Callable[[], Target], arguments: argparse.Namespace) -> int:
    check_outputs([arguments.json])
    op, specs, given = described(arguments)
    target = make_target()
    try:
        problem = faces.explained(FACE, op, specs, given)
        document = planned(package, target, problem, arguments)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise CommandError(str(error).removeprefix(f"{FACE}: ")) from None
    if arguments.json != STDOUT:
        show(document, console(sys.stdout))
    if arguments.json is not None:
        write_json(document, arguments.json)
    return 0


# --- the call -------------------------------------------------------------------------------------------------


def described(arguments: argparse.Namespace) -> tuple[str, list[TensorSpec | None], dict[str, Any]]:
    """The op, the specs of its tensors, and its other arguments, as ``explain`` is given them."""
    shape = shape_of(arguments)
    op = arguments.op or f"na{len(shape)}d"
    a, keys = arguments, tuple(arguments.key_shape or shape)
    heads, kv_heads = a.heads, a.heads if a.kv_heads is None else a.kv_heads
    dim, dim_v = a.head_dim, a.head_dim if a.head_dim_v is None else a.head_dim_v

    def spec(tokens: tuple[int, ...], *rest: int, dtype: str = a.dtype) -> TensorSpec:
        return TensorSpec((a.batch, *tokens, *rest), dtype)

    for name in _options_without_use(op, a):
        raise CommandError(f"{op} has no {option(name)}; --op na{len(shape)}d has")
    given = _window_of(op, a, len(shape))
    for name in PIECE:
        if (value := getattr(a, name)) is not None:
            given[name] = tuple(value) if len(value) > 1 else value[0]
    if a.additional:
        given[ADDITIONAL_KEYS.name] = spec((a.additional,), kv_heads, dim)
        given[ADDITIONAL_VALUES.name] = spec((a.additional,), kv_heads, dim_v)
    if a.rpb:
        given[RPB.name] = TensorSpec((heads, *(2 * w - 1 for w in given.get("kernel_size", ()))), a.dtype)
    if a.key_mask:
        given[KEY_MASK.name] = spec(keys, dtype="bool")
    first, second = spec(shape, heads, dim), spec(keys, kv_heads, dim)
    if op in AV.faces:  # attn: a slot for each key of the window
        slots = math.prod(given["kernel_size"])
        return op, [spec(shape, heads, slots), spec(keys, kv_heads, dim_v), None], given
    return op, [first, second, None if op in QK.faces else spec(keys, kv_heads, dim_v)], given


def _options_without_use(op: str, arguments: argparse.Namespace) -> Iterator[str]:
    """The arguments that were given and that the op does not have."""
    record = next(record for record in OPS.values() if op in record.faces)
    of_tensors = {"additional": ADDITIONAL_KEYS, "rpb": RPB, "key_mask": KEY_MASK, "head_dim_v": VALUE}
    lacks = [name for name, operand in of_tensors.items() if operand not in record.inputs]
    if not record.has_window:
        lacks += [name for name in (*WINDOW, *PIECE) if name != "is_causal"]
    return (name for name in lacks if getattr(arguments, name) not in (None, False, 0))


def _window_of(op: str, arguments: argparse.Namespace, rank: int) -> dict[str, Any]:
    """The window's arguments; :class:`CommandError` if the op needs a window and has none."""
    if op in FULL.faces:
        return window_of(arguments, 1, ("is_causal",))
    if arguments.kernel_size is None:
        raise CommandError(f"{op} needs --kernel-size")
    return dict(window_of(arguments, rank))


def planned(package: str, target: Target, problem: Problem, arguments: argparse.Namespace) -> dict[str, Any]:
    """All that is printed and written. Raises what the call itself would."""
    if arguments.device not in (None, CPU, *cost_model.chips()):
        known = ", ".join(cost_model.chips())
        raise CommandError(f"--device '{arguments.device}' is not known; known are '{CPU}', {known}")
    device = target.device(arguments.device)
    chosen = target.backends.resolve(FACE, arguments.backend)
    planner = target.planner()

    def plan_of(other: Problem, backend: str) -> Plan:
        return planner.plan(other, device, backend)

    plan = plan_of(problem, chosen)
    costs = cost_model.unit_costs(device)
    document = {
        "schema": SCHEMA,
        "kind": "plan",
        "package": package,
        "explain": planning.explain(plan),
        "device": {"name": device.name, "kind": device.kind},
        "backend": plan.backend,
        "why": plan.why,
        "costs": {"device": costs.device, "measured": costs.measured, "error": costs.error},
        **forecast.forecast(plan, costs, plan_of),
    }
    if document["forward"]["predicted_us"] is None and document["backward"]["predicted_us"] is None:
        document["costs"] = None
    if arguments.compare:
        document["backends"] = forecast.backends(
            plan, document, target.backends.order, planner.verdicts, costs, plan_of
        )
        document["tilings"] = forecast.tilings(plan, planner.verdicts, costs)
    return document


# --- in words ---------------------------------------------------------------------------------------------------


def show(document: dict[str, Any], to: "Console") -> None:
    """Print a plan."""
    to.print(document["explain"], soft_wrap=True)
    for direction in ("forward", "backward"):
        found = document[direction]
        if found["launches"]:
            to.print()
            to.print(_launches(direction, found))
        to.print(_in_words(direction, found), soft_wrap=True)
    _show_times(document, to)
    if "backends" in document:
        to.print(_backends(document["backends"]))
        for walk in document["tilings"]:
            to.print(_tilings(walk))


def _patch(tiling: dict[str, Any]) -> str:
    """The rows of a patch, and what else is unlike the simplest tiling."""
    heads = [f"{tiling['heads']} heads"] if tiling["heads"] > 1 else []
    heads += [f"team of {tiling['team']}"] if tiling["team"] > 1 else []
    flags = [words for name, words in FLAGS.items() if tiling[name]]
    return ", ".join(["x".join(map(str, tiling["patch"])), *heads, *flags])


def _launches(direction: str, found: dict[str, Any]) -> Any:
    columns = ("patch", "threadgroups", "bricks", "full", "8x8 products", "chunks", "staged MiB", "tensors MiB", "us")
    table = empty(direction, "kernel", *columns)
    for launch in found["launches"]:
        counts = launch["counts"]
        grid = [str(count) for count in launch["threadgroups"] if count > 1] or ["1"]
        threadgroups = f"{'x'.join(grid)} of {launch['threads']}"
        full = f"{counts['full'] / counts['bricks']:.0%}" if counts["bricks"] else ""
        numbers = (f"{counts[name]:,}" for name in ("products", "chunks"))
        sizes = (_mebibytes(counts[name]) for name in ("staged_bytes", "tensor_bytes"))
        time = f"{launch['predicted_us']:,.1f}"
        patch = "" if launch["tiling"] is None else _patch(launch["tiling"])
        table.add_row(launch["template"], patch, threadgroups, f"{counts['bricks']:,}", full, *numbers, *sizes, time)
    return table


def _in_words(direction: str, found: dict[str, Any]) -> str:
    count = found["useful_flops"]
    amount = f"{digits(count / 1e9)} useful GFLOP" if count >= 1e8 else f"{digits(count / 1e6)} useful MFLOP"
    useful = f"{direction}: {amount}"
    if found["executed_over_useful"] is not None:
        useful += f", {found['executed_over_useful']:.2f} times as much executed"
    return f"{useful}, on {found['backend']}"


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:,.2f}" if count else ""


def _time(microseconds: float | None) -> str:
    if microseconds is None:
        return "no model"
    return f"{microseconds:.0f} us" if microseconds < 1e4 else f"{microseconds / 1e3:.1f} ms"


def _show_times(document: dict[str, Any], to: "Console") -> None:
    times = {direction: document[direction]["predicted_us"] for direction in ("forward", "backward")}
    costs, all_keys = document["costs"], document["all_keys"]
    if costs is None:
        to.print("predicted time: there is no model of what runs; `bench` measures it")
        return
    source = "measured by tune" if costs["measured"] else f"predicted for {costs['device']}, not measured"
    to.print(f"unit costs: {source}; the model's error is about {costs['error']:.0%}", soft_wrap=True)
    for direction, time in times.items():
        line = f"predicted {direction}: {_time(time)}"
        if all_keys is not None and all_keys[f"{direction}_us"] and time:
            other = all_keys[f"{direction}_us"]
            compared = f"{_time(other)}, {digits(other / time)} times as long"
            line += f"; {all_keys['problem']}, with the same kernels: {compared}"
        to.print(line, soft_wrap=True)


def _backends(found: list[dict[str, Any]]) -> Any:
    table = empty("backends", "backend", "forward", "backward", "", words=("",))
    for each in found:
        name = f"{each['backend']}{' (chosen)' if each['chosen'] else ''}"
        if each["reason"] is not None:
            table.add_row(name, "", "", each["reason"])
        else:
            table.add_row(name, _time(each["forward_us"]), _time(each["backward_us"]), each["computes_with"])
    return table


def _tilings(walk: dict[str, Any]) -> Any:
    shown = min(SHOWN, len(walk["candidates"]))
    title = f"tilings of {walk['template']}, {walk['direction']}: the {shown} cheapest of {len(walk['candidates'])}"
    table = empty(title, "patch", "simdgroups", "columns from", "bricks", "full", "staged MiB", "us", "")
    for index, each in enumerate(walk["candidates"]):
        if index < SHOWN or each["chosen"]:
            numbers = (f"{each['bricks']:,}", f"{each['full'] / max(each['bricks'], 1):.0%}")
            source = "threadgroup memory" if each["stage"] else "device memory"
            sizes = (_mebibytes(each["staged_bytes"]), f"{each['predicted_us']:,.1f}")
            mark = "chosen" if each["chosen"] else ""
            table.add_row(_patch(each), str(each["simdgroups"]), source, *numbers, *sizes, mark)
    return table
