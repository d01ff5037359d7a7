"""The cases of the table that always run: those that cover its features with few kernels to compile."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from cases import CASES, MASKED, Case, make

from natten_mps._metal.metal import op_launches
from natten_mps._metal.metal.source import Instance

DTYPES = ("float32", "float16", "bfloat16")
OPS = ("na", "qk", "av")
# Head dims to which no case of the table is padded: 256, 96 and 192.
PADDED = (
    make("seq-dim256", (11,), 5, head_dim=256, heads=1),
    make("img-dim90-values180", (5, 7), 3, head_dim=90, head_dim_v=180, heads=1),
)
# How many kernels the default run may compile for the table.
MAX_KERNELS = 64


@dataclass(frozen=True)
class Entry:
    """A case as one op in one dtype: forward and all gradients."""

    case: Case
    dtype: str
    op: str

    def __str__(self) -> str:
        return f"{self.case}-{self.op}-{self.dtype}"

    @property
    def program(self) -> tuple[op_launches.Launch, ...]:
        """The launches of the forward and of the backward, in order."""
        problem = self.case.problem(self.dtype, self.op)
        return (*op_launches.forward(problem), *op_launches.backward(problem, self.op == "na"))

    @property
    def instances(self) -> frozenset[Instance]:
        return frozenset(launch.instance for launch in self.program)

    @property
    def features(self) -> frozenset[tuple[object, ...]]:
        """What the entry covers: ranks and features of fused attention; ranks, dtypes and features of all ops."""
        tags = [tag for tag in self.case.tags if not tag.startswith(("rank", "batch", "small"))]
        own: list[tuple[object, ...]] = [(self.case.rank, tag) for tag in tags if self.op == "na"]
        if self.op != "na":
            own = [(self.op, tag) for tag in tags if tag in ("causal", "stride", "dilation", "gqa", "rpb")]
        return frozenset([*own, (self.case.rank, self.op), (self.dtype, self.op), (self.case.rank, self.dtype)])


def entries() -> tuple[Entry, ...]:
    """Every case that launches something: the split ops take neither additional keys nor masks."""
    return tuple(
        Entry(case, dtype, op)
        for case in (*CASES, *PADDED, *MASKED)
        if case.batch
        for dtype in DTYPES
        for op in OPS
        if op == "na" or (not case.masked and (case.additional is None or case.rpb or "everything" in case.name))
    )


@cache
def chosen() -> frozenset[Entry]:
    """Chosen greedily for the most new features per new kernel; then all that need no further kernel."""
    every = entries()
    kernels = {entry: entry.instances for entry in every}
    features = {entry: entry.features for entry in every}
    missing, built = frozenset().union(*features.values()), frozenset[Instance]()
    while missing:
        best = max(every, key=lambda entry: len(features[entry] & missing) / (len(kernels[entry] - built) + 0.25))
        missing, built = missing - features[best], built | kernels[best]
    return frozenset(entry for entry in every if kernels[entry] <= built)
