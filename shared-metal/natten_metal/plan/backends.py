"""Which backend a call asks for: argument > use_backend > set_backend > environment > auto."""

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from ..caches import Cache
from ..problem import checks
from .backend import AUTO, BACKENDS
from .verdicts import Failure

log = logging.getLogger("natten")

# Upstream's own backend names select CUDA kernels; they are accepted and ignored here.
UPSTREAM_BACKENDS = frozenset(
    f"{family}-{kind}" for family in ("cutlass", "hopper", "blackwell", "flex") for kind in ("fna", "fmha")
)
# Upstream's arguments that choose or tune a CUDA kernel; they do not affect the result.
UPSTREAM_KNOBS = frozenset(
    {
        "attention_kwargs",
        "q_tile_shape",
        "kv_tile_shape",
        "backward_q_tile_shape",
        "backward_kv_tile_shape",
        "q_tile_size",
        "kv_tile_size",
        "backward_q_tile_size",
        "backward_kv_tile_size",
        "backward_kv_splits",
        "backward_use_pt_reduction",
        "run_persistent_kernel",
        "kernel_schedule",
        "torch_compile",
        "use_autograd_fix",
    }
)

# Messages logged in this process. When it overflows, the oldest ones may be logged again.
logged = Cache("messages", 1024)


def _never() -> bool:
    return False


# Whether the framework is tracing into one graph, which can hold neither locks nor logs: then nothing is logged. A
# package whose framework does that sets this function.
tracing: Callable[[], bool] = _never


def log_once(message: str, level: int = logging.INFO, about: str | None = None) -> None:
    """Log ``message`` unless it, or another message ``about`` the same thing, was logged in this process before."""
    if tracing():
        return
    if logged.add(about or message):
        log.log(level, message)


def warn_of_failure(package: str, op: str, failure: Failure) -> None:
    """Warn, once per reason, that a Metal kernel failed, and what runs instead."""
    instead = "slower ones run" if failure.launch.instance.mpp else "the pure backend runs"
    what = "a Metal kernel on matrix units" if failure.launch.instance.mpp else "the Metal kernels"
    log_once(
        f"{op}: {what} failed on this machine and {instead} instead. {failure}. "
        f"Please report this, with the output of `{package} doctor`. The plan was: {failure.launch}",
        logging.WARNING,
        about=failure.words,
    )


def warn_of_missing_kernels(package: str, op: str, reason: str) -> None:
    """Warn, once in a process, that calls on a CPU run without its kernels. reason: why."""
    log_once(
        f"{op}: the pure backend runs on this CPU, many times slower than the C++ kernels: {reason}. With a C++ "
        f"compiler, `pip install --force-reinstall --no-deps --no-cache-dir --no-binary {package} {package}` builds "
        "them again; backend='pure' chooses it without this warning",
        logging.WARNING,
        about=f"{package}: kernels for the CPU are missing",
    )


def accept_knobs(op: str, knobs: dict[str, object]) -> None:
    """Log upstream's CUDA arguments once; TypeError for any other name."""
    for name in knobs:
        if name not in UPSTREAM_KNOBS:
            checks.reject_keyword(op, name)
        log_once(f"{op}: '{name}' tunes upstream's CUDA kernels; accepted and ignored")


class _Choice:
    """One ``use_backend``. ended: whether it was exited, in a context other than the one where it is still listed."""

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.ended = False


class Backends:
    """The choice of backend of one package: a process default, and overrides of one context each.

    order: the package's backends in the order in which 'auto' tries them.
    aliases: other words for them ('metal' for natten-mlx's 'fast_metal').
    traced: whether a compiler is tracing that cannot read context variables, but guards on plain attributes. It
    sees what this thread chose last: the same, unless tasks that chose differently share a thread.
    preferences: values of the package's own variable that clients of 0.3 set, when they were only a preference.
    """

    def __init__(
        self,
        package: str,
        order: tuple[str, ...],
        aliases: dict[str, str] | None = None,
        traced: Callable[[], bool] = lambda: False,
        preferences: tuple[str, ...] = (),
    ) -> None:
        self.package = package
        self.order = order
        self.aliases = aliases or {}
        self.preferences = preferences
        self.variable = package.upper().replace("-", "_") + "_BACKEND"
        self.traced = traced
        self._default: str | None = None
        self._environment: str | None = None  # 'auto' if it names none; None: not read yet
        self._choices: ContextVar[tuple[_Choice, ...]] = ContextVar(f"{package} backends", default=())
        self._seen_by_tracer = threading.local()

    def resolve(self, op: str, backend: object) -> str:
        """The backend, or 'auto', that a call with the argument ``backend`` uses."""
        if backend is None:
            return self.get()
        if isinstance(backend, str) and backend in UPSTREAM_BACKENDS:
            log_once(f"{op}: backend='{backend}' is upstream's CUDA kernel; accepted and ignored")
            return self.get()
        return self._known(op, backend)

    def get(self) -> str:
        """The backend in force where no argument is given: 'auto' or one of the package's."""
        if self.traced():
            seen = self._seen_by_tracer
            chosen = getattr(seen, "within", None) or _innermost(getattr(seen, "choices", ()))
            # Not the stored value of the environment: storing it in a first call would force a recompilation.
            return chosen or self._default or self._of_environment() or AUTO
        choices = self._choices.get()
        chosen = _innermost(choices) if choices else None
        return chosen or self._default or self._environment or self._read_environment()

    def set(self, backend: str) -> None:
        """Make ``backend`` the default of the process."""
        self._default = self._known("set_backend", backend)

    @contextmanager
    def use(self, backend: str) -> Iterator[None]:
        """A context in which ``backend`` is the default, in this thread and this task of an event loop only."""
        chosen, seen = self._known("use_backend", backend), self._seen_by_tracer
        if self.traced():
            before = getattr(seen, "within", None)
            seen.within = chosen
            try:
                yield
            finally:
                seen.within = before
            return
        choice = _Choice(chosen)
        self._choose((*self._choices.get(), choice))
        try:
            yield
        finally:
            # Later choices remain in force: generators may end in any order.
            choices = self._choices.get()
            choice.ended = choice not in choices
            self._choose(tuple(other for other in choices if other is not choice))

    def _choose(self, choices: tuple[_Choice, ...]) -> None:
        self._choices.set(choices)
        self._seen_by_tracer.choices = choices

    def _known(self, op: str, backend: object) -> str:
        return checks.backend_name(op, backend, self.aliases, (AUTO, *self.order), self.package)

    def _read_environment(self) -> str:
        """What the environment names, or 'auto'. It is read once, by the first call that needs it: reading it takes
        longer than all other checks of a call."""
        self._environment = self._of_environment() or AUTO
        return self._environment

    def _of_environment(self) -> str | None:
        own = os.environ.get(self.variable)
        if own in self.preferences:
            log_once(
                f"{self.variable}={own} is a word of {self.package} 0.3's clients, read as 'auto'; "
                f"{self.variable}={self.aliases.get(own, self.order[0])} chooses a backend",
                logging.WARNING,
            )
            return AUTO
        if own:
            return self._known(self.variable, own)
        shared = os.environ.get("NATTEN_BACKEND")
        if not shared:
            return None
        name = self.aliases.get(shared, shared)
        if name not in (AUTO, *self.order) and name in BACKENDS:
            log_once(f"NATTEN_BACKEND={shared} names a backend that {self.package} does not have; ignored")
            return None
        return self._known("NATTEN_BACKEND", shared)


def _innermost(choices: tuple[_Choice, ...]) -> str | None:
    """The backend that was chosen last among those that are in force."""
    return next((choice.backend for choice in reversed(choices) if not choice.ended), None)
