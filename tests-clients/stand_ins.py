"""Modules that clients import but that their networks never call.

They require compilers, audio codecs or a CUDA build, and one of them does not install on any recent Python.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from unittest.mock import MagicMock

# allin1: reading, separating and plotting music, and the registration of its configurations.
MUSIC = frozenset({"demucs", "hydra", "librosa", "madmom", "matplotlib", "omegaconf"})
# hdit: image files and samplers.
SAMPLING = frozenset({"dctorch", "torchdiffeq", "torchsde", "torchvision"})
# physicsnemo and earth2studio: data, their downloads, checkpoints, sharding, and a spherical transform of noise.
WEATHER = frozenset(
    {
        "cftime",
        "dotenv",
        "fsspec",
        "gcsfs",
        "git",
        "h5py",
        "hydra",
        "importlib_metadata",
        "nvtx",
        "omegaconf",
        "onnx",
        "pandas",
        "requests",
        "rich",
        "s3fs",
        "tensordict",
        "termcolor",
        "torch_harmonics",
        "torchvision",
        "treelib",
        "warp",
        "xarray",
        "zarr",
    }
)
# cosmos-predict2: CUDA's layers, images, configurations, and what describes the machine.
COSMOS = frozenset(
    {
        "PIL",
        "attrs",
        "boto3",
        "botocore",
        "cv2",
        "fvcore",
        "hydra",
        "imageio",
        "iopath",
        "megatron",
        "omegaconf",
        "pandas",
        "psutil",
        "pynvml",
        "termcolor",
        "torchvision",
        "transformer_engine",
        "transformers",
        "wandb",
        "webdataset",
    }
)


class _StandIns(MetaPathFinder, Loader):
    """Finds the named packages, and everything below them, as objects that take any call."""

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if fullname.partition(".")[0] not in self._names:
            return None
        return ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return MagicMock(name=spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run."""


@contextlib.contextmanager
def stand_in(names: frozenset[str]) -> Iterator[None]:
    """Inside the context the packages ``names`` import as stand-ins, installed or not; other code does not see them."""
    finder, before = _StandIns(names), set(sys.modules)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in set(sys.modules) - before:
            if name.partition(".")[0] in names:
                del sys.modules[name]
