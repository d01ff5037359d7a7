"""Both packages side by side, one table for each problem and direction: `./dev.sh bench`.

The problems are the quick forms of `natten-mps bench`, and a call is timed until its result is computed. The `plan` in
the saved data (--benchmark-json FILE) says which backend ran, and how. Arguments of pytest-benchmark apply.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest

from natten_mps._metal.bench import results
from natten_mps._metal.bench.problems import FACE, MODELS, Named
from natten_mps._metal.bench.ways import Inputs, ways
from natten_mps._metal.plan.plan import explain

QUICK = [named.form(True) for named in MODELS]


@pytest.mark.parametrize("package", ["natten_mps", "natten_mlx"])
@pytest.mark.parametrize("direction", [results.FORWARD, results.TRAINING])
@pytest.mark.parametrize("named", QUICK, ids=lambda named: named.name)
def test_time(benchmark: Any, named: Named, direction: str, package: str) -> None:
    subject = import_module(f"{package}._tools.bench").subject(False)
    problem = named.problem("float32")
    with subject.on_device():
        inputs, own = Inputs(named, "float32", subject), ways(named, problem, subject, "auto")[0]
        call = inputs.call(own, own.make(inputs.of(own)), subject, direction == results.TRAINING)
        stream = subject.framework.stream_of(FACE, None)
        plan = subject.framework.plan_on(inputs.heads_last[0], stream, problem, "auto")
        benchmark.group = f"{named.name}, {direction}"
        benchmark.extra_info["plan"] = explain(plan)
        benchmark.pedantic(lambda: subject.wait([call()]), rounds=5, warmup_rounds=1)
