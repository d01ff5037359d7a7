"""``use_backend`` is local to its context: tasks, threads and generators do not see each other's choice."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from frameworks import FRAMEWORKS, MPS, Framework
from processes import python


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_tasks_that_take_turns(framework: Framework) -> None:
    """Each keeps its own choice, whatever the others do meanwhile; a task inherits the choice at its creation."""
    package, seen = framework.package, []

    async def task(backend: str, turns: int) -> None:
        with package.use_backend(backend):
            for _ in range(turns):
                await asyncio.sleep(0)
                seen.append((backend, package.get_backend()))
        await asyncio.sleep(0)
        seen.append(("pure", package.get_backend()))

    async def main() -> None:
        with package.use_backend("pure"):
            tasks = [asyncio.create_task(task(backend, turns)) for backend, turns in (("dense", 3), ("auto", 2))]
        # They keep the choice that was in force at their creation, even after it has ended here.
        assert package.get_backend() == "auto"
        await asyncio.gather(*tasks)
        assert package.get_backend() == "auto"

    asyncio.run(main())
    assert len(seen) == 7 and all(chosen == found for chosen, found in seen), seen
    assert package.get_backend() == "auto"


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
@pytest.mark.parametrize("first", [0, 1])
def test_generators_leave_nothing_behind(framework: Framework, first: int) -> None:
    """Whichever ends first, the other keeps its choice."""
    package = framework.package

    def generator(backend: str) -> Iterator[str]:
        with package.use_backend(backend):
            yield package.get_backend()
            yield package.get_backend()

    running = [generator("dense"), generator("pure")]
    assert [next(each) for each in running] == ["dense", "pure"]
    running.pop(first).close()
    assert next(running[0]) == ("pure", "dense")[first]
    running[0].close()
    assert package.get_backend() == "auto"


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_a_generator_that_ends_in_another_context(framework: Framework) -> None:
    """Its choice also ends in the context in which it was made."""
    package = framework.package

    def generator() -> Iterator[None]:
        with package.use_backend("dense"):
            yield

    running, ended = generator(), []
    next(running)
    thread = threading.Thread(target=lambda: ended.append(list(running)))
    thread.start()
    thread.join()
    assert ended == [[]] and package.get_backend() == "auto"


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_nested_and_ended_by_errors(framework: Framework) -> None:
    package = framework.package

    def fail() -> None:
        with package.use_backend("pure"), package.use_backend("auto"):
            assert package.get_backend() == "auto"
            raise KeyError

    with package.use_backend("dense"):
        with pytest.raises(KeyError):
            contextvars.copy_context().run(fail)
        with pytest.raises(KeyError):
            fail()
        assert package.get_backend() == "dense"
    assert package.get_backend() == "auto"


def test_compiled_functions_follow_it() -> None:
    """Whole graphs: the first call of a process, a recompilation per backend, a choice inside the function."""
    done = python(
        """
import sys, threading; sys.path.insert(0, TESTS)
import torch, natten_mps
from frameworks import MPS

def attend(x):
    return natten_mps.na1d(x, x, x, 3)

def attend_purely(x):
    with natten_mps.use_backend("pure"):
        return attend(x)

x, compiled = torch.ones(1, 9, 1, 4), torch.compile(attend, fullgraph=True, backend="eager")
def backend_of(function):
    with MPS.watch() as ran:
        assert torch.allclose(function(x), x)
    return "".join(ran)

found = [backend_of(compiled)]
for name in ("pure", "native", "pure"):
    with natten_mps.use_backend(name):
        found.append(backend_of(compiled))
found.append(backend_of(compiled))
found.append(backend_of(torch.compile(attend_purely, fullgraph=True, backend="eager")))
found += [backend_of(compiled), natten_mps.get_backend()]

def generator():
    with natten_mps.use_backend("pure"):
        yield

running = generator()
next(running)
found.append(backend_of(compiled))
thread = threading.Thread(target=lambda: list(running))
thread.start(); thread.join()  # its choice ends, though not in the context that it was made in
print([*found, backend_of(compiled)])
""".replace("TESTS", repr(str(Path(__file__).parents[1])))
    )
    wanted = ["native", "pure", "native", "pure", "native", "pure", "native", "auto", "pure", "native"]
    assert done.stdout == f"{wanted}\n", done.stderr
    assert MPS.package.get_backend() == "auto"


def test_the_first_call_is_compiled_once() -> None:
    """What the first call of a process determines, and what a plain call caches after it, causes no recompilation."""
    done = python(
        """
import torch, natten_mps
from torch._dynamo.testing import CompileCounterWithBackend

def attend(x, lengths):
    tokens = natten_mps.na1d(x, x, x, 3)
    return natten_mps.attention(tokens, tokens, tokens, seqlens_Q=lengths, seqlens_KV=lengths)

counter, x, lengths = CompileCounterWithBackend("eager"), torch.ones(1, 9, 1, 4), torch.tensor([4, 5])
compiled = torch.compile(attend, fullgraph=True, backend=counter)
for _ in range(2):
    compiled(x, lengths)
    attend(x, lengths)
print(counter.frame_count)
"""
    )
    assert done.stdout == "1\n", done.stderr
