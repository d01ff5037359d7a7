"""Registers the package's ops as soon as torch is imported, and their counts as soon as torch's counter is.

A program saved by torch.export refers to ops by name, and has to load wherever the package was imported, before torch
or after it; the package imports neither torch nor the counter for that. Modules of the package that need torch find it
imported: otherwise registering the ops, which imports most of those modules, would happen in the middle of the first
one.
"""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

OPS = ("_ops", "_varlen_ops")
# Torch's counter of operations, and the module that teaches it to count the ops: importing it costs 12 ms.
COUNTER, FORMULAS = "torch.utils.flop_counter", "_flop_formulas"
# Modules of the package that do not need torch, at least until something is computed.
TORCH_FREE = frozenset(("_metal", "__main__", "cli", "compat", "extras", "version", "_with_torch"))


def register() -> None:
    """Register the ops now if torch has been imported, otherwise right after it is."""
    if "torch" in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _Torch("torch", _register))


def _register() -> None:
    for name in OPS:
        import_module(f".{name}", __package__)
    if COUNTER in sys.modules:
        _register_formulas()
    else:
        sys.meta_path.insert(0, _After(COUNTER, _register_formulas))


def _register_formulas() -> None:
    import_module(f".{FORMULAS}", __package__)


class _Imported(Loader):
    """Loads a module that another import has loaded in the meantime, without executing it again."""

    def __init__(self, module: ModuleType) -> None:
        self._module, self._spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec


class _After(MetaPathFinder):
    """Finds a module like the other finders, and acts once it has been executed."""

    def __init__(self, module: str, action: Callable[[], None]) -> None:
        self._module, self._action = module, action

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._module:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        found = next(filter(None, (finder.find_spec(fullname, path, target) for finder in others)), None)
        if found is None or found.loader is None:
            return found
        execute = found.loader.exec_module

        def execute_and_act(module: ModuleType) -> None:
            execute(module)
            sys.meta_path.remove(self)
            self._action()

        found.loader.exec_module = execute_and_act  # type: ignore[method-assign]
        return found


class _Torch(_After):
    """Finds torch, and imports it before modules of the package that need it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.rpartition(".")
        if package != __package__ or name in TORCH_FREE:
            return super().find_spec(fullname, path, target)
        import_module("torch")
        imported = sys.modules.get(fullname)  # if registering the ops imported it
        if imported is None:
            return None
        # Python looks for a module's own spec, which may have appeared in the meantime.
        spec = imported.__spec__ = ModuleSpec(fullname, _Imported(imported))
        return spec
