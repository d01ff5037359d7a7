"""A module ``natten`` for clients that import it, made of a generation's call forms."""

import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, NoneType
from typing import Any

from .._metal import compat
from .._metal.compat_context import CONTEXT, FLOPS
from .._metal.problem import RANKS

NAME = "natten"
_installed: dict[str, ModuleType] = {}
_finders: list["_Finder"] = []

_SINCE_CONTEXT = ("v017", "v020", "v021")
_SINCE_FUSED = ("v020", "v021")


_ANY = importlib.metadata.DistributionFinder.Context()


class _Distribution(importlib.metadata.Distribution):
    """What importlib.metadata tells of ``natten``."""

    def __init__(self, version: str) -> None:
        text = f"Metadata-Version: 2.1\nName: {NAME}\nVersion: {version}\nSummary: NATTEN's call forms by natten-mps\n"
        self._texts = {"METADATA": text, "top_level.txt": f"{NAME}\n"}

    def read_text(self, filename: str) -> str | None:
        return self._texts.get(filename)

    def locate_file(self, path: Any) -> Any:
        return Path(__file__).parent / path


class _Finder(importlib.metadata.DistributionFinder):
    """Answers importlib.metadata for ``natten``, and finds no module: those are in sys.modules."""

    def __init__(self, version: str) -> None:
        self._distribution = _Distribution(version)

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        return None

    def find_distributions(
        self, context: importlib.metadata.DistributionFinder.Context = _ANY
    ) -> Iterable[importlib.metadata.Distribution]:
        return [self._distribution] if context.name in (None, NAME) else []


def _refuse_beside_natten() -> None:
    """ImportError if NATTEN itself is imported, can be imported, or is registered as installed."""
    advice = "uninstall it, or use natten_mps.compat.for_version(...) in its place"
    module = sys.modules.get(NAME)
    if module is not None:
        where = getattr(module, "__file__", None) or "a module without a file"
        raise ImportError(f"natten_mps.compat.install: natten is imported already, from {where}; {advice}")
    spec = importlib.util.find_spec(NAME)
    # A folder of that name that is no package has no origin.
    if spec is not None and spec.origin is not None:
        raise ImportError(f"natten_mps.compat.install: natten is installed, in {spec.origin}; {advice}")
    try:
        version = importlib.metadata.version(NAME)
    except importlib.metadata.PackageNotFoundError:
        return
    raise ImportError(f"natten_mps.compat.install: natten {version} is installed; {advice}")


def _types() -> dict[str, Any]:
    """Upstream's names for arguments, as annotations use them."""
    made: dict[str, Any] = {"NoneType": NoneType}
    for rank in ("", *(f"{rank}D" for rank in RANKS)):
        for what, kind in (("Dimension", int), ("CausalArg", bool)):
            count = int(rank[0]) if rank else 0
            several: Any = tuple[(kind,) * count] if count else tuple[kind, ...]  # type: ignore[misc,valid-type]
            made |= {f"{what}{rank}Type": several, f"{what}{rank}TypeOrDed": kind | several}
    return made


def _contents(generation: str, made: dict[str, Any], version: str) -> dict[str, dict[str, Any]]:
    """What each submodule holds."""
    forms = compat.forms(generation)
    classes = {name: made[name] for name, form in forms.items() if form.kind == "module"}
    functions = {name: made[name] for name, form in forms.items() if form.kind != "module"}
    found = {"functional": functions, "flops": FLOPS, "version": {"__version__": version}}
    if generation in _SINCE_CONTEXT:
        found |= {"context": CONTEXT[generation], "types": _types()}
    if generation in _SINCE_FUSED:
        from .. import varlen

        configs = {name: value for name, value in made.items() if "configs_for" in name}
        found |= {"modules": classes, "backends": configs, "utils": {}}
        found["utils.varlen"] = {"generate_varlen_parameters": varlen.generate_varlen_parameters}
    # Modules and ops of one rank had a home of their own until 0.17, under two names.
    if generation != "v020":
        for rank in RANKS:
            own = {name: value for name, value in (classes | functions).items() if f"{rank}d" in name.lower()}
            if own:
                found |= {f"natten{rank}d": own, f"na{rank}d": own}
    return found


def _module(name: str, version: str, contents: dict[str, Any]) -> ModuleType:
    """A module that looks imported."""
    module = ModuleType(name, f"NATTEN's call forms ({version}) by natten-mps.")
    # Every one a package, so that an unknown submodule is "No module named ...".
    module.__spec__ = ModuleSpec(name, None, origin="natten_mps.compat", is_package=True)
    module.__path__ = []
    module.__package__ = name
    for each, value in contents.items():
        setattr(module, each, value)
    return module


def install(version: str | None = None) -> ModuleType:
    """The body of :func:`natten_mps.compat.install`."""
    generation = "v021" if version is None else compat.generation_of(version)
    told = compat.LAST[generation]
    if version is not None and version.count(".") == 2:
        told = version.removeprefix("v")
    uninstall()
    _refuse_beside_natten()
    from importlib import import_module

    made = vars(import_module(f".{generation}", __package__))
    public = {name: made[name] for name in made["__all__"]} | {"__version__": told, "__all__": made["__all__"]}
    root = _module(NAME, told, public)
    _installed[NAME] = root
    for name, contents in _contents(generation, made, told).items():
        module = _module(f"{NAME}.{name}", told, contents)
        _installed[module.__name__] = module
        parent, _, child = module.__name__.rpartition(".")
        # natten.na1d is the function where the generation has it at the top; importing from the submodule works.
        if child not in public:
            setattr(_installed[parent], child, module)
    sys.modules.update(_installed)
    _finders.append(_Finder(told))
    sys.meta_path.extend(_finders)
    return root


def uninstall() -> None:
    """The body of :func:`natten_mps.compat.uninstall`."""
    for name, module in _installed.items():
        if sys.modules.get(name) is module:
            del sys.modules[name]
    _installed.clear()
    for finder in _finders:
        sys.meta_path.remove(finder)
    _finders.clear()
