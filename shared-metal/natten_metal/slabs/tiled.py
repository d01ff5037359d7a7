"""The body of ``tiled``: neighborhood attention over arrays larger than memory, slab by slab."""

import contextlib
import ctypes
import importlib.util
import itertools
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..api import walk
from ..problem import checks, faces
from ..problem.checks import slabs as rules
from ..problem.ops import FUSED, KEY, LSE, OUT, QUERY, RPB, UNMASKED_INPUTS, VALUE, Operand
from ..problem.problem import Problem, TensorSpec
from . import cut, stores
from .adapter import Adapter
from .journal import Journal
from .stores import Store

FACE = "tiled"


def tiled(
    adapter: Adapter,
    tensors: tuple[Any, ...],
    window: tuple[Any, Any, Any, Any],
    scale: Any,
    results: tuple[Any, Any],
    memory: Any,
    progress: Any,
    backend: Any,
) -> Any:
    """``tiled``. tensors: those of ``UNMASKED_INPUTS``; results: out, and lse or None, arrays or paths."""
    chosen, budget = adapter.framework.BACKENDS.resolve(FACE, backend), rules.memory_bytes(FACE, memory)
    if progress is not None:
        checks.flag(FACE, "progress", progress)
    named = zip((operand.name for operand in UNMASKED_INPUTS), tensors, strict=True)
    inputs = {name: None if each is None else stores.given(adapter, FACE, name, each) for name, each in named}
    query, key, value, *others = (None if each is None else each.spec for each in inputs.values())
    assert query is not None and key is not None and value is not None, "the first three have no default"
    problem = faces.fused(FACE, query, key, value, *window, scale, *others)
    outputs = {
        operand.name: stores.result(adapter, FACE, operand.name, each, _spec(operand, problem))
        for operand, each in zip((OUT, LSE), results, strict=True)
        if operand is OUT or each is not None
    }
    _check_files(inputs, outputs)
    journal = _journal(problem, inputs, outputs)
    lengths, done = _begin(problem, budget, chosen, adapter, journal)
    outputs = {name: stores.opened(store, create=not done) for name, store in outputs.items()}
    journal = _journal(problem, inputs, outputs)  # again, now that the files exist
    if journal is not None:
        journal.record(lengths, done)
    work = _Work(adapter, chosen, problem, inputs, outputs, lengths)
    with _bar(problem, lengths, done, progress) as advance:
        _run(work, done, journal, advance)
    found = [
        _returned(outputs[operand.name], each)
        for operand, each in zip((OUT, LSE), results, strict=True)
        if each is not None
    ]
    return found[0] if results[1] is None else tuple(found)


def _spec(operand: Operand, problem: Problem) -> TensorSpec:
    return TensorSpec(operand.shape(problem), operand.dtype(problem))


def _returned(store: Store, given: Any) -> Any:
    """The array that the user gave for a result, or a read-only map of the file at a path."""
    import numpy

    return numpy.load(given, mmap_mode="r") if store.mine else given


def _check_files(inputs: Mapping[str, Store | None], outputs: Mapping[str, Store]) -> None:
    """ValueError if a result lies in the file of an input or of the other result."""
    seen = {each.location.path: name for name, each in inputs.items() if each is not None and each.location is not None}
    for name, each in outputs.items():
        if each.location is not None:
            if each.location.path in seen:
                rules.reject_overwriting(FACE, name, seen[each.location.path], each.location.path)
            seen[each.location.path] = name


# --- resuming an interrupted call --------------------------------------------------------------------


def _journal(problem: Problem, inputs: Mapping[str, Store | None], outputs: Mapping[str, Store]) -> Journal | None:
    """The journal beside the first result; None where a result is in memory, which ends with the process."""
    locations = [store.location for store in outputs.values()]
    if None in locations:
        return None
    first = locations[0]
    assert first is not None
    p = problem
    call: dict[str, Any] = {
        "kernel_size": p.kernel_size,
        "stride": p.stride,
        "dilation": p.dilation,
        "is_causal": p.is_causal,
        "scale": p.scale,
    }
    given = {name: each for name, each in inputs.items() if each is not None}
    for name, store in (given | dict(outputs)).items():
        about = {"shape": store.spec.shape, "dtype": store.dtype}
        about |= store.destination() if name in outputs else store.identity()
        call |= {f"{name}'s {what}": value for what, value in about.items()}
    return Journal(FACE, first.path.with_name(f"{first.path.name}.journal"), call)


def _begin(
    problem: Problem, budget: int, backend: str, adapter: Adapter, journal: Journal | None
) -> tuple[cut.Lengths, int]:
    """How the problem is cut, and how many slabs are done."""
    begun = None if journal is None else journal.begun()
    if begun is None:
        return cut.cut(FACE, problem, budget, backend, adapter), 0
    lengths, done = begun
    assert journal is not None
    needed = cut.slab_bytes(problem, lengths, backend, adapter)
    if needed > budget:
        rules.reject_smaller_budget(FACE, journal.path, needed, budget)
    return lengths, done


# --- slab by slab ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Work:
    adapter: Adapter
    backend: str
    problem: Problem
    inputs: Mapping[str, Store | None]
    outputs: Mapping[str, Store]
    lengths: cut.Lengths


def _run(work: _Work, done: int, journal: Journal | None, advance: Callable[[int], object]) -> None:
    """Compute the slabs after the first ``done``."""
    try:
        for slab in itertools.islice(cut.slabs(work.problem, work.lengths), done, None):
            _compute(work, slab)
            done += 1
            if journal is not None:
                journal.record(work.lengths, done)
            advance(math.prod(high - low for low, high in slab))
    except (KeyboardInterrupt, OSError, MemoryError) as error:
        if journal is not None:
            total = cut.number(work.problem, work.lengths)
            error.add_note(
                f"{FACE}: {done} of {total} slabs are done; the same call resumes after them, by {journal.path.name!r}"
            )
        raise
    if journal is not None:
        journal.remove()


def _compute(work: _Work, slab: tuple[cut.Range, ...]) -> None:
    """Read a slab, compute it, and write its results."""
    adapter, (problem, read) = work.adapter, cut.piece(work.problem, slab)
    tensors = tuple(_tensor(work, operand, slab, read) for operand in UNMASKED_INPUTS)
    found = adapter.framework.run(problem, work.backend, adapter.stream, tensors)
    for operand, tensor in zip(FUSED.outputs, found, strict=True):
        if operand.name in work.outputs:
            store = work.outputs[operand.name]
            store.write(_all_of(store, slab), adapter.array(tensor))
    del tensors, found, tensor
    # A slab's index tables fit no other slab, and the memory that a framework keeps is missing for the next one.
    walk.forget()
    adapter.release()
    _trim()


def _trim() -> None:
    """Give freed memory back to the system. glibc keeps freed blocks of up to 32 MB, in holes that the next slab's
    tensors may not fit; other allocators keep none.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _tensor(work: _Work, operand: Operand, slab: tuple[cut.Range, ...], read: tuple[cut.Range, ...]) -> Any:
    store = work.inputs[operand.name]
    if store is None:
        return None
    at = {QUERY: slab, KEY: read, VALUE: read, RPB: ()}.get(operand, slab[:1])
    return work.adapter.tensor(store.read(_all_of(store, at)), store.dtype)


def _all_of(store: Store, at: Sequence[cut.Range]) -> list[cut.Range]:
    """Ranges of the first axes of an array, and all of its others."""
    return [*at, *((0, size) for size in store.spec.shape[len(at) :])]


@contextlib.contextmanager
def _bar(problem: Problem, lengths: cut.Lengths, done: int, progress: bool | None) -> Iterator[Callable[[int], object]]:
    """A progress bar of queries on stderr. progress: None shows it on a terminal, if tqdm is installed."""
    if progress is None:
        progress = sys.stderr.isatty() and importlib.util.find_spec("tqdm") is not None
    if not progress:
        yield lambda queries: None
        return
    from tqdm import tqdm

    before = itertools.islice(cut.slabs(problem, lengths), done)
    with tqdm(
        total=problem.batch * math.prod(problem.query_shape),
        initial=sum(math.prod(high - low for low, high in slab) for slab in before),
        unit=" queries",
        unit_scale=True,
        desc=FACE,
        file=sys.stderr,
    ) as bar:
        yield bar.update
