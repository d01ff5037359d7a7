"""A pytest plugin: NATTEN's own tests of one release, unmodified, on natten-mps and a CPU.

``NATTEN_UPSTREAM_VERSION`` names the release. ``natten`` is the module that :func:`natten_mps.compat.install` makes for
it, plus the modules that only NATTEN's tests import. A device called "cuda" is the CPU. Tests that cannot pass are in
:mod:`left_out`, with the reason.
"""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch._dynamo
from left_out import reason_for

from natten_mps import compat

VERSION = os.environ["NATTEN_UPSTREAM_VERSION"]
RESULTS = os.environ.get("NATTEN_UPSTREAM_RESULTS")

# --- devices: "cuda" is the CPU ----------------------------------------------------------------------


def on_cpu(device: Any) -> Any:
    """The CPU for anything that names a CUDA device; everything else unchanged."""
    if isinstance(device, str) and device.split(":")[0] == "cuda":
        return "cpu"
    if isinstance(device, torch.device) and device.type == "cuda":
        return torch.device("cpu")
    return device


def translated(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` with the devices among its arguments translated."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*map(on_cpu, args), **{name: on_cpu(value) for name, value in kwargs.items()})

    return call


FACTORIES = (
    "arange",
    "empty",
    "empty_like",
    "eye",
    "full",
    "full_like",
    "linspace",
    "ones",
    "ones_like",
    "rand",
    "rand_like",
    "randint",
    "randn",
    "randn_like",
    "randperm",
    "tensor",
    "zeros",
    "zeros_like",
    "set_default_device",
)
NOTHING = ("empty_cache", "synchronize", "manual_seed", "manual_seed_all", "reset_peak_memory_stats")


def translate_devices() -> None:
    """Replace torch's ways of naming a device; this process runs only NATTEN's tests."""
    with torch.autograd.forward_ad.dual_level():
        # torch compiles its derivatives on first use, and must not find replaced functions then.
        torch.autograd.forward_ad.make_dual(torch.zeros(1), torch.zeros(1))
    for name in FACTORIES:
        setattr(torch, name, translated(getattr(torch, name)))
    for owner in (torch.Tensor, torch.nn.Module):
        owner.to = translated(owner.to)  # type: ignore[method-assign]
        owner.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign]
    torch.Tensor.is_cuda = property(lambda self: True)  # type: ignore[assignment,misc]
    for name in NOTHING:
        setattr(torch.cuda, name, lambda *args, **kwargs: None)


# --- modules that only NATTEN's tests import ---------------------------------------------------------


def runs(*arguments: Any, **options: Any) -> Callable[[Any], Any]:
    """A decorator of NATTEN's tests that would skip them without its kernels: here they run."""
    return lambda test: test


def skips(why: str) -> Callable[..., Any]:
    """A decorator of NATTEN's tests that does skip them here."""
    return lambda *arguments, **options: pytest.mark.skip(reason=why)


def flag(name: str) -> bool:
    return os.environ.get(name, "0") == "1"


EXTENDED = flag("NATTEN_RUN_EXTENDED_TESTS")
TESTING: dict[str, Any] = {
    **dict.fromkeys(
        (
            "skip_if_cuda_is_not_supported",
            "skip_if_libnatten_is_not_supported",
            "skip_if_fna_is_not_supported",
            "skip_if_hopper_kernels_not_supported",
            "skip_if_blackwell_kernels_not_supported",
            "skip_if_flex_is_not_supported",
            "skip_if_flex_compile_is_not_supported",
            "skip_if_nested_is_not_supported",
            "skip_if_torch_compile_is_not_supported",
            "skip_if_experimental_ops_are_not_supported",
            "skip_if_torch_flop_count_is_not_supported",
            "skip_if_triton_is_not_supported",
            "skip_if_fvcore_is_not_available",
        ),
        runs,
    ),
    "skip_if_gemm_is_not_supported": skips("has_gemm() is False: it asks for kernels of one kind"),
    "skip_if_gemm_does_not_support_double_precision": skips("has_gemm() is False: it asks for kernels of one kind"),
    "skip_if_not_running_extended_tests": runs if EXTENDED else skips("NATTEN_RUN_EXTENDED_TESTS=1 runs it"),
    "supports_float16": lambda device: True,
    "supports_bfloat16": lambda device: True,
    "fna_supports_additional_kv": lambda *arguments, **options: True,
}
ENVIRONMENT = {
    "HAS_LIBNATTEN": True,
    "_IS_CUDA_AVAILABLE": True,
    "_IS_TORCH_COMPILE_SUPPORTED": True,
    "_RUN_EXTENDED_TESTS": EXTENDED,
    "_RUN_ADDITIONAL_KV_TESTS": True,
    "_RUN_FLEX_TESTS": True,
    "_NUM_RAND_SWEEP_TESTS": int(os.environ.get("NATTEN_RAND_SWEEP_TESTS", "1000")),
    "_TORCH_VERSION": [int(part) for part in torch.__version__.split(".")[:2]],
}


def configs(splits: bool, schedule: bool) -> dict[str, Any]:
    """A single tile shape wherever tests iterate over all that a CUDA kernel has; it is accepted and ignored.

    splits: whether a backward's has key/value splits and a reduction; schedule: whether a forward's has a schedule.
    """

    def forward(tile: Any) -> list[Any]:
        return [((tile, tile), None)] if schedule else [(tile, tile)]

    def backward(tile: Any, ones: Any) -> list[Any]:
        return [(tile, tile, ones, False)] if splits else [(tile, tile)]

    def sizes(query: torch.Tensor, size: int) -> tuple[int, ...]:
        return (size,) * (query.dim() - 3)

    return {
        "get_all_forward_configs": lambda query, *rest: forward(sizes(query, 8)),
        "get_all_backward_configs": lambda query, *rest: backward(sizes(query, 8), sizes(query, 1)),
        "get_all_fmha_forward_configs": lambda query, *rest: forward(64),
        "get_all_fmha_backward_configs": lambda query, *rest: backward(64, 1),
    }


CONFIGS = {
    "cutlass": configs(splits=True, schedule=False),
    "cutlass_hopper": configs(splits=False, schedule=True),
    "cutlass_blackwell": configs(splits=False, schedule=False),
    "flex": configs(splits=False, schedule=False)
    | {"FLEX_FORWARD_TILE_SHAPES": {1: [((64,), (64,))], 2: [((8, 8), (8, 8))], 3: [((4, 4, 4), (4, 4, 4))]}},
}


def add_module(name: str, contents: dict[str, Any]) -> None:
    """A module below ``natten`` that a release's tests import."""
    module = ModuleType(f"natten.{name}")
    module.__path__ = []
    for each, value in contents.items():
        setattr(module, each, value)
    sys.modules[module.__name__] = module
    above, _, child = module.__name__.rpartition(".")
    setattr(sys.modules[above], child, module)


def install() -> None:
    """``natten`` of the release, and the other modules that its tests import."""
    translate_devices()
    compat.install(VERSION)
    if "natten.utils" in sys.modules:
        add_module("utils.testing", TESTING)
    if "natten.backends" in sys.modules:
        add_module("_environment", ENVIRONMENT)
        add_module("_libnatten", {"HAS_LIBNATTEN": True})
        add_module("backends.configs", {})
        for kernels, contents in CONFIGS.items():
            add_module(f"backends.configs.{kernels}", contents)


install()

# --- pytest ------------------------------------------------------------------------------------------


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what cannot pass, with the reason."""
    for item in items:
        why = reason_for(VERSION, item.nodeid)
        if why is not None:
            item.add_marker(pytest.mark.skip(reason=why))


LIMITS = ("recompile_limit", "accumulated_recompile_limit", "fail_on_recompile_limit_hit")


@pytest.fixture(autouse=True)
def torch_settings() -> Iterator[None]:
    """Reset what a test changed in torch, including limits of recompilation."""
    config = torch._dynamo.config
    limits = {name: getattr(config, name) for name in LIMITS}
    yield
    for name, value in limits.items():
        setattr(config, name, value)
    torch.use_deterministic_algorithms(False)
    torch.set_default_device("cpu")


START = time.monotonic()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """One line of the table that dev.sh prints."""
    if RESULTS is None:
        return
    counts = {kind: len(terminalreporter.stats.get(kind, [])) for kind in ("passed", "failed", "error", "skipped")}
    line = [VERSION, *map(str, counts.values()), f"{time.monotonic() - START:.0f} s"]
    with Path(RESULTS).open("a") as file:
        file.write("\t".join(line) + "\n")
