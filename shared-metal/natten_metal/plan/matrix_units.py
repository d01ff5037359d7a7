"""Whether kernels may use the matrix units of the GPU: Apple's since M5, through matmul2d of Metal 4.

Four questions, each asked only if the one before it went well: is it switched off, is it a chip that has them, is the
operating system one whose compiler is known to be right, and does a small kernel compile and give exactly the numbers
that it should (kernels/na_mpp_check.h)? The answer is one sentence, and the other kernels run wherever it is not ''.
"""

import logging
import os
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ..metal.sizes import WIDE_DTYPES as DTYPES
from ..metal.sizes import WIDE_SIDE as SIDE
from .backends import log_once
from .programs import Made, MetalLaunches
from .verdicts import Learned, quoted

# The first of Apple's M chips that has them, and the first macOS whose matmul2d takes weights from registers (26.2
# announces it) and is not known to be wrong.
FIRST_CHIP, FIRST_MACOS = 5, (26, 3)
DIM = 32

Matrix = list[list[int]]
# Runs a program of one launch on whole numbers, by tensor name, and gives what it found.
Run = Callable[[MetalLaunches, dict[str, Matrix]], Sequence[float]]


class System(NamedTuple):
    """The machine, as the operating system names it. macos: '' elsewhere, and where the chip settles the question."""

    chip: str
    macos: str


def this_system() -> System:
    """The machine that this process runs on."""
    from .chip import chip_name, macos_release

    chip = chip_name()
    return System(chip, "" if missing_in(chip) else macos_release())


def reason_missing(system: System, run: Run) -> str:
    """Why kernels cannot use matrix units, in one sentence; '' if they can. ValueError for a value of
    ``NATTEN_MATMUL2D`` that means nothing.
    """
    reason = switched_off() or missing_in(system.chip) or _too_old(system.macos)
    if reason:
        return reason
    reason = self_test(run)
    if reason:
        log_once(
            f"matrix units are not used, because {reason}; results are right, but slower. Please report this, with the "
            f"output of `doctor`. NATTEN_MATMUL2D=0 does without this message",
            logging.WARNING,
        )
    return reason


def switched_off() -> str:
    """'' unless the environment turns matrix units off."""
    value = os.environ.get("NATTEN_MATMUL2D", "")
    if value not in ("", "0", "1"):
        raise ValueError(
            f"NATTEN_MATMUL2D is '{value}'; 0 turns the kernels on matrix units off, 1 or nothing leaves them on"
        )
    return "NATTEN_MATMUL2D=0 turns them off" if value == "0" else ""


def missing_in(chip: str) -> str:
    """'' if Apple's chip of that name has matrix units."""
    found = re.match(r"Apple M(\d+)\b", chip)
    return "" if found and int(found[1]) >= FIRST_CHIP else f"{chip} has none; Apple M{FIRST_CHIP} and later have"


def _too_old(macos: str) -> str:
    release = tuple(int(part) for part in re.findall(r"\d+", macos)[:2])
    first = ".".join(map(str, FIRST_MACOS))
    return (
        "" if release >= FIRST_MACOS else f"they need macOS {first} or later, and this is {macos or 'another system'}"
    )


# --- the self-test --------------------------------------------------------------------------------------


def self_test(run: Run) -> str:
    """'' if both products are exact in both dtypes; else what was wrong."""
    given = matrices()
    wanted = expected(**given)
    for dtype in DTYPES:
        try:
            found = list(run(program(dtype), given))
        except Learned as learned:
            return f"the self-test failed: {learned.verdicts[0]}"
        except (RuntimeError, ValueError) as error:  # what frameworks raise of a GPU while they wait for results
            return f"the self-test failed: {quoted(error)}"
        wrong = next((at for at, value in enumerate(wanted) if found[at : at + 1] != [value]), None)
        if wrong is not None:
            got = found[wrong] if wrong < len(found) else "nothing"
            return f"the self-test in {dtype} gave {got} where {wanted[wrong]} is right, at {wrong} of {len(wanted)}"
    return ""


def program(dtype: str) -> MetalLaunches:
    """The program of the self-test: ``rows`` and ``columns`` ``[16, 32]`` of a dtype, to ``found``, floats."""
    from ..metal.launches import SIMD_WIDTH, Launch, Output, parameters
    from ..metal.source import Instance
    from ..metal.templates import MPP_CHECK
    from ..problem.ops import FUSED
    from ..problem.problem import Problem

    one = (1,)
    problem = Problem(FUSED.name, 1, one, one, 1, 1, DIM, DIM, one, one, one, (False,), 1.0, dtype)
    instance = Instance(MPP_CHECK.name, dtype, 1, DIM, DIM, simdgroups=1, stage=False, flat=True)
    found = "found", (len(expected(**matrices())),), "float32"
    inputs = ("rows", "rows"), ("columns", "columns")
    launch = Launch(instance, (1, 1, 1), SIMD_WIDTH, parameters(problem, {}), inputs, (Output("found", *found),))
    return MetalLaunches(problem, "", "self-test", (Made(*found),), launches=(launch,))


def matrices() -> dict[str, Matrix]:
    """Whole numbers from -3 to 3; no two rows alike, and none of their products, of which one row is below zero."""

    def made(a: int, b: int) -> Matrix:
        return [[(a * r * r + b * c * c + r * c + r * c // 5) % 7 - 3 for c in range(DIM)] for r in range(SIDE)]

    rows, columns = made(3, 2), made(2, 5)
    rows[0] = [-3] + [0] * (DIM - 1)
    columns = [[number % 3 + 1, *column[1:]] for number, column in enumerate(columns)]
    return {"rows": rows, "columns": columns}


def expected(rows: Matrix, columns: Matrix) -> list[float]:
    """What the self-test must find: see kernels/na_mpp_check.h."""
    across = [[sum(x * y for x, y in zip(row, column, strict=True)) for column in columns] for row in rows]
    along = [[2 * sum(w * c[at] for w, c in zip(row, columns, strict=True)) for at in range(DIM)] for row in across]
    flat = [value for matrix in (across, along) for row in matrix for value in row]
    flat += [*map(max, across), *map(sum, across), SIDE * SIDE, SIDE * DIM]
    return [float(value) for value in flat] * 2
