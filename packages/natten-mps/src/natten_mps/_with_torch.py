"""Registers the package's ops as soon as torch is imported, without importing it.

A program saved by torch.export refers to ops by name, and has to load wherever the package was imported, before torch
or after it. Modules of the package that need torch find it imported: otherwise registering the ops, which imports most
of those modules, would happen in the middle of the first one.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

OPS = ("_ops", "_varlen_ops")
# Modules of the package that do not need torch, at least until something is computed.
TORCH_FREE = frozenset(("_metal", "__main__", "cli", "compat", "extras", "version", "_with_torch"))


def register() -> None:
    """Register the ops now if torch has been imported, otherwise right after it is."""
    if "torch" in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _Torch())


def _register() -> None:
    for name in OPS:
        import_module(f".{name}", __package__)


class _Imported(Loader):
    """Loads a module that another import has loaded in the meantime, without executing it again."""

    def __init__(self, module: ModuleType) -> None:
        self._module, self._spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec


class _Torch(MetaPathFinder):
    """Finds torch like the other finders, and registers the ops once it has been executed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.rpartition(".")
        if package == __package__ and name not in TORCH_FREE:
            import_module("torch")
            imported = sys.modules.get(fullname)  # if registering the ops imported it
            if imported is None:
                return None
            # Python looks for a module's own spec, which may have appeared in the meantime.
            spec = imported.__spec__ = ModuleSpec(fullname, _Imported(imported))
            return spec
        if fullname != "torch":
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        found = next(filter(None, (finder.find_spec(fullname, path, target) for finder in others)), None)
        if found is None or found.loader is None:
            return found
        execute = found.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            sys.meta_path.remove(self)
            _register()

        found.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return found
