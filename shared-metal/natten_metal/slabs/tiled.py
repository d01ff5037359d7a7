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
from .host import Host
from .journal import Journal
from .stores import Store

FACE = "tiled"


def tiled(
    host: Host,
    tensors: tuple[Any, ...],
    window: tuple[Any, Any, Any, Any],
    scale: Any,
    results: tuple[Any, Any],
    memory: Any,
    progress: Any,
    backend: Any,
) -> Any:
    """``tiled``. tensors: those of ``UNMASKED_INPUTS``; results: out, and lse or None, arrays or paths."""
    chosen, budget = host.framework.BACKENDS.resolve(FACE, backend), rules.memory_bytes(FACE, memory)
    if progress is not None:
        checks.flag(FACE, "progress", progress)
    named = zip((operand.name for operand in UNMASKED_INPUTS), tensors, strict=True)
    inputs = {name: None if each is None else stores.given(host, FACE, name, each) for name, each in named}
    query, key, value, *extras = (None if each is None else each.spec for each in inputs.values())
    assert query is not None and key is not None and value is not None, "the first three have no default"
    problem = faces.fused(FACE, query, key, value, *window, scale, *extras)
    outputs = {
        operand.name: stores.result(host, FACE, operand.name, each, _spec(operand, problem))
        for operand, each in zip((OUT, LSE), results, strict=True)
        if operand is OUT or each is not None
    }
    _check_files(inputs, outputs)
    journal = _journal(problem, inputs, outputs)
    lengths, done = _begin(problem, budget, chosen, host, journal)
    outputs = {name: stores.opened(store, anew=not done) for name, store in outputs.items()}
    journal = _journal(problem, inputs, outputs)  # once more, because the files are there now
    if journal is not None:
        journal.record(lengths, done)
    work = _Work(host, chosen, problem, inputs, outputs, lengths)
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
    """What the user gave for a result, or a read-only map of the file of a path."""
    import numpy

    return numpy.load(given, mmap_mode="r") if store.mine else given


def _check_files(inputs: Mapping[str, Store | None], outputs: Mapping[str, Store]) -> None:
    """No result lies in a file of something else."""
    seen = {each.place.path: name for name, each in inputs.items() if each is not None and each.place is not None}
    for name, each in outputs.items():
        if each.place is not None:
            if each.place.path in seen:
                rules.reject_overwriting(FACE, name, seen[each.place.path], each.place.path)
            seen[each.place.path] = name


# --- what an interrupted call goes on by -------------------------------------------------------------


def _journal(problem: Problem, inputs: Mapping[str, Store | None], outputs: Mapping[str, Store]) -> Journal | None:
    """The journal beside the first result; None where a result is in memory, which ends with the process."""
    places = [store.place for store in outputs.values()]
    if None in places:
        return None
    first = places[0]
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


def _begin(problem: Problem, budget: int, backend: str, host: Host, journal: Journal | None) -> tuple[cut.Lengths, int]:
    """How the problem is cut, and how many slabs are done."""
    begun = None if journal is None else journal.begun()
    if begun is None:
        return cut.cut(FACE, problem, budget, backend, host), 0
    lengths, done = begun
    assert journal is not None
    needed = cut.slab_bytes(problem, lengths, backend, host)
    if needed > budget:
        rules.reject_smaller_budget(FACE, journal.path, needed, budget)
    return lengths, done


# --- slab by slab ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Work:
    host: Host
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
                f"{FACE}: {done} of {total} slabs are done; the same call goes on after them, by {journal.path.name!r}"
            )
        raise
    if journal is not None:
        journal.remove()


def _compute(work: _Work, slab: tuple[cut.Range, ...]) -> None:
    """Read a slab, compute it, and write its results."""
    host, (problem, read) = work.host, cut.piece(work.problem, slab)
    tensors = tuple(_tensor(work, operand, slab, read) for operand in UNMASKED_INPUTS)
    found = host.framework.run(problem, work.backend, host.stream, tensors)
    for operand, tensor in zip(FUSED.outputs, found, strict=True):
        if operand.name in work.outputs:
            store = work.outputs[operand.name]
            store.write(_all_of(store, slab), host.array(tensor))
    del tensors, found, tensor
    # A slab's index tables fit no other one, and what a framework keeps of its tensors is in the way of the next.
    walk.forget()
    host.release()
    _trim()


def _trim() -> None:
    """glibc keeps freed blocks of up to 32 MB, in holes that the next slab's tensors may not fit; other allocators
    give them back.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _tensor(work: _Work, operand: Operand, slab: tuple[cut.Range, ...], read: tuple[cut.Range, ...]) -> Any:
    store = work.inputs[operand.name]
    if store is None:
        return None
    at = {QUERY: slab, KEY: read, VALUE: read, RPB: ()}.get(operand, slab[:1])
    return work.host.tensor(store.read(_all_of(store, at)), store.dtype)


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
