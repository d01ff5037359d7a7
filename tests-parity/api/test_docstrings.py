"""What a user reads with ``help()``: public names say what they take, return and raise, and where they come from."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest

PACKAGES = ("natten_mps", "natten_mlx")
# Public names besides those that a package exports at its top.
MORE = {
    "varlen": ("configure_varlen", "neighborhood_attention_varlen"),
    "extras.allin1": None,
    "compat": ("for_version",),
}
# These follow no source: what they do is this project's own.
WITHOUT_SOURCE = {
    "explain",
    "export_mode",
    "export_function",
    "save_weights",
    "get_backend",
    "set_backend",
    "use_backend",
    "get_support_matrix",
    "has_metal",
    "has_mps",
    "has_nanobind",
    "nanobind_unavailable_reason",
    "for_version",
}


def public(package: str) -> Iterator[tuple[str, Any]]:
    """Public functions and classes by name."""
    top = import_module(package)
    for name in top.__all__:
        if name != "__version__":
            yield name, getattr(top, name)
    for home, names in MORE.items():
        module = import_module(f"{package}.{home}")
        for name in names or module.__all__:
            yield name, getattr(module, name)


def missing(name: str, value: Any) -> list[str]:
    """The parts that a docstring must have and lacks."""
    text = inspect.getdoc(value) or ""
    signature = inspect.signature(value)
    takes, gives = bool(signature.parameters), signature.return_annotation not in (None, "None")
    wanted = {
        "Args:": takes,
        "Returns:": takes and gives and not inspect.isclass(value),
        "Raises:": takes,
        "Source:": name not in WITHOUT_SOURCE and not name.startswith("_"),
    }
    found = [part for part, needed in wanted.items() if needed and not re.search(rf"^{part}", text, re.MULTILINE)]
    named = set(re.findall(r"\w+", text))
    return found + [f"argument {each}" for each in signature.parameters if each not in named and each != "self"]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_says_what_it_does(package: str) -> None:
    seen = dict(public(package))
    assert len(seen) > 30
    assert {name: lacks for name, value in seen.items() if (lacks := missing(name, value))} == {}


@pytest.mark.parametrize("package", PACKAGES)
def test_modules_say_what_they_compute(package: str) -> None:
    modules = import_module(f"{package}.modules")
    for rank in (1, 2, 3):
        kind = getattr(modules, f"NeighborhoodAttention{rank}D")
        compute = getattr(kind, "forward", None) or kind.__call__
        assert missing("_", compute) == []


def test_the_packages_have_the_same_names() -> None:
    mps, mlx = (dict(public(package)) for package in PACKAGES)
    own = {"has_mps", "export_mode"}, {"has_nanobind", "nanobind_unavailable_reason", "export_function"}
    assert (mps.keys() - mlx.keys(), mlx.keys() - mps.keys()) == own


def test_a_docstring_that_lacks_something_is_found() -> None:
    def scaled(x: int, factor: int) -> int:
        """Args:
            x: a number.
        Raises: nothing.
        """
        return x * factor

    assert missing("scaled", scaled) == ["Returns:", "Source:", "argument factor"]
    assert missing("_", lambda: None) == []
