"""A module ``natten`` for clients that import it, made of a generation's call forms."""

import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from .. import varlen
from .._metal.compat import generations as compat
from .._metal.compat import modules as compat_modules
from .._metal.problem.ops import FUSED
from .._metal.problem.problem import RANKS
from ._build import GENERATIONS

NAME = "natten"
_installed: dict[str, ModuleType] = {}
_finders: list["_Finder"] = []

_ANY = importlib.metadata.DistributionFinder.Context()


class _Distribution(importlib.metadata.Distribution):
    """What importlib.metadata reports of ``natten``."""

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
    advice = "uninstall it, or use natten_mps.compat.for_version(...) instead"
    module = sys.modules.get(NAME)
    if module is not None:
        where = getattr(module, "__file__", None) or "a module without a file"
        raise ImportError(f"natten_mps.compat.install: natten is imported already, from {where}; {advice}")
    spec = importlib.util.find_spec(NAME)
    # A folder of that name that is not a package has no origin.
    if spec is not None and spec.origin is not None:
        raise ImportError(f"natten_mps.compat.install: natten is installed, in {spec.origin}; {advice}")
    try:
        version = importlib.metadata.version(NAME)
    except importlib.metadata.PackageNotFoundError:
        return
    raise ImportError(f"natten_mps.compat.install: natten {version} is installed; {advice}")


def _all_submodules(newest: dict[str, Any]) -> compat_modules.Submodules:
    """Those of all generations; names of the newest, also in its modules, mean what they mean there."""
    found: compat_modules.Submodules = {}
    for generation in compat.SINCE:
        import_module(f".{generation}", __package__)
        for name, its in GENERATIONS.submodules[generation].items():
            found[name] = found.get(name, {}) | its
    ranked = {*FUSED.faces[1:], *(f"natten{rank}d" for rank in RANKS)}
    for name in ("functional", *ranked):
        found[name] |= {each: newest[each] for each in found[name] if each in newest}
    # In no release of NATTEN yet, but in its repository.
    found["varlen"] = {each.__name__: each for each in (varlen.configure_varlen, varlen.neighborhood_attention_varlen)}
    return found


def install(version: str | None = None) -> ModuleType:
    """The body of :func:`natten_mps.compat.install`."""
    generation = "v021" if version is None else compat.generation_of(version)
    named = compat.LAST[generation]
    if version is not None and version.count(".") == 2:
        named = version.removeprefix("v")
    uninstall()
    _refuse_beside_natten()
    made = vars(import_module(f".{generation}", __package__))
    # A given release has only its own names. Without one, the additions of 0.3 are there too.
    additions = set() if version is None else set(compat.ADDED[generation])
    names = [name for name in made["__all__"] if name not in additions]
    public = {name: made[name] for name in names} | {"__version__": named, "__all__": names}
    found = _all_submodules(public) if version is None else dict(GENERATIONS.submodules[generation])
    found["version"] = {"__version__": named}
    text = f"NATTEN's call forms ({named}) by natten-mps."
    root = compat_modules.new_module(NAME, text, public)
    _installed[NAME] = root
    for name, module in compat_modules.as_modules(NAME, text, found).items():
        _installed[module.__name__] = module
        # natten.na1d is the function where the generation has it at the top; importing from the submodule works.
        if "." not in name and name not in public:
            setattr(root, name, module)
    sys.modules.update(_installed)
    _finders.append(_Finder(named))
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
