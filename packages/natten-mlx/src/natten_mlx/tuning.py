"""Measuring this machine, so that Metal kernels are chosen by what is fastest on it."""

from os import PathLike
from typing import Any

from ._metal.tuning.tune import tuned_here
from ._timer import TIMER


def tune(*, quick: bool = False, path: "str | PathLike[str] | None" = None) -> dict[str, Any]:
    """Time a designed set of kernels on the GPU, fit what each part of their work costs, and keep the result.

        natten_mlx.tune()                  # a few minutes are expected; the command line is ``natten-mlx tune``

    Later processes of this package read the result once and choose tilings by it; results of calls stay what they are.
    This process keeps the plans that it has. Needs numpy and scipy: ``pip install 'natten-mlx[tools]'``.

    Args:
        quick: fewer problems, timed once; less exact.
        path: the file to write; None: ``tuning.json`` in the user's cache folder, which is read by default. Another
            one is read where the environment variable NATTEN_TUNING names it.

    Returns:
        What JSON can hold: the fitted costs in nanoseconds (``prices``, ``kinds``, ``cores``), how good they are
        (``fit``; on problems that were not fitted ``choices``), every time with its prediction (``trials``), and the
        ``path``.

    Raises:
        RuntimeError: there is no GPU whose kernels could be timed, or none of them runs; the message says why.
        OSError: the file cannot be written.

    Source: our own; the model and its counts are described in docs/planning.md.
    """
    return tuned_here(TIMER, quick, path)
