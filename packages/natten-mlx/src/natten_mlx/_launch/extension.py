"""The C++ extension of MLX (``csrc/``): whether one can be used here, and what was made for it.

There is one for each of several releases of MLX, a module ``_ext_VERSION``. Each fits that release and one version of
the sources, and is loaded only where they match.
"""

from collections.abc import Hashable, Mapping
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol

import mlx.core as mx

from .._metal.api.recall import Recall, Signature
from .._metal.caches import Cache
from .._metal.plan.programs import Program
from .._metal.plan.verdicts import quoted

DTYPES = {
    "float32": mx.float32,
    "float16": mx.float16,
    "bfloat16": mx.bfloat16,
    "float64": mx.float64,
    "int32": mx.int32,
}

Tensor = tuple[str, tuple[int, ...], mx.Dtype]  # the specification that the extension gets
Tensors = tuple[Tensor, ...]


def specs(tensors: Mapping[str, mx.array]) -> Tensors:
    """The specifications of tensors, by which the extension makes a plan before it gets the tensors."""
    return tuple((name, tensor.shape, tensor.dtype) for name, tensor in tensors.items())


class Call(Protocol):
    """One call of an op or of its gradient, as the primitive knows it."""

    @property
    def program(self) -> Program:
        """What it computes."""

    @property
    def stream(self) -> mx.Stream:
        """Where it runs."""

    @property
    def key(self) -> Hashable:
        """Equal for calls that differ only in the stream."""

    def encoded(self) -> bytes:
        """The bytes by which :mod:`natten_mlx._autodiff` finds the call again when the primitive needs a derivative."""


class ExtensionHost:
    """The extension, looked for once, and what was made for it: plans of calls, and kernels that ran once."""

    def __init__(self) -> None:
        self.remembered = Recall("remembered calls")
        self.plans = Cache("extension plans", 1024)
        self.kernels = Cache("extension kernels", 1024)

    @cached_property
    def found(self) -> Any:
        """The extension, or why there is none, in one sentence; ValueError if an environment variable that it reads is
        set to something that it cannot use.
        """
        return _find()

    def unavailable_reason(self) -> str | None:
        """Why the C++ extension is not available; None if it is."""
        return self.found if isinstance(self.found, str) else None

    def missing(self, stream: mx.Stream) -> str | None:
        """Why the extension's kernels cannot run on ``stream``; None if they can."""
        reason = self.unavailable_reason()
        if reason is None and stream.device != mx.cpu and not mx.metal.is_available():
            return "this build of MLX has no Metal back-end"
        return reason

    # --- recalled calls ------------------------------------------------------------------------------

    def signature(
        self, face: str, backend: str, stream: mx.Stream, tensors: tuple[Any, ...], arguments: Hashable | None
    ) -> Signature | None:
        """What decides a call's checks and plan, as a key; None if the call is not kept.

        tensors: query, key, value, and three optional ones. arguments: all others, as values that cannot change, or
        None.
        """
        extension = self.found
        query, key, value, keys, values, rpb = tensors
        if keys is not None or values is not None or rpb is not None or arguments is None or type(extension) is str:
            return None
        try:
            return face, backend, extension.metadata_key(query, key, value, stream), arguments
        except TypeError:  # not arrays
            return None

    def remember(self, signature: Signature, call: Call, tensors: Mapping[str, mx.array]) -> None:
        """Keep the plan of a call that has just been built, if the extension runs it."""
        plan = self.plans.get((call.key, specs(tensors)))
        # Where products read tokens where they lie, tensors may have to be copied first.
        if plan is not None and not call.program.in_rows:
            self.remembered.keep(signature, plan)


def _find() -> Any:
    from .. import _digests  # used once, and not at import

    # MLX's C++ interface changes with every release, and a wrong call of it may crash: only what fits is loaded.
    release: str = mx.__version__  # type: ignore[attr-defined]  # missing in MLX's stubs
    present = _present()
    if not present:
        return (
            "this installation of natten-mlx has no C++ extension: where it was built, CMake, a C++20 compiler or the "
            "matching MLX was missing"
        )
    if release not in present:
        found = ", ".join(sorted(present, key=lambda version: [int(part) for part in version.split(".")]))
        return (
            f"the C++ extensions here were built for MLX {found} and cannot run with MLX {release}; "
            "natten-mlx's README says how one is built for it"
        )
    try:
        extension = import_module(present[release], __package__)
    except ImportError as error:
        return f"the C++ extension does not load: {quoted(error)}"
    if extension.kernels_digest != _digests.kernels_digest():
        return "the C++ extension was built from other kernel sources than this installation has: install it again"
    if _digests.sources_digest() not in (None, extension.sources_digest):
        return "the C++ extension was built from other sources than csrc has now: build it again"
    complaint = extension.complaint()
    if complaint is not None:
        raise ValueError(complaint)
    return extension


def _present() -> dict[str, str]:
    """The modules that this Python can load, by the release of MLX that they were built for."""
    try:
        built_for = import_module(".._build_info", __package__).NANOBIND_INTERNALS
    except ModuleNotFoundError:
        return {}
    modules = {release: f".._ext_{release.replace('.', '_')}" for release in built_for}
    # Those for older releases of MLX are built for each version of Python.
    return {release: module for release, module in modules.items() if find_spec(module, __package__)}
