"""Every public name and keyword of every NATTEN release, compared with its stand-in for that release.

``upstream_signatures.tsv`` is made by ``scripts/read_signatures.py`` from the releases' source distributions.
"""

from __future__ import annotations

import csv
import fnmatch
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
from frameworks import FRAMEWORKS, MLX, MPS, Framework

# What is left out, as module/name, and why. A pattern that excuses nothing is stale, and a test fails.
LEFT_OUT = {
    "*/logger": "a module's own logger",
    "*/log_format": "the format of upstream's own log lines",
    "*/amp_[fb]wd": "decorators of upstream's own autograd functions",
    "*/torch_ver": "a number that upstream's own module compares",
    "*/custom_mapping": "a registry of upstream's own module",
    "flops/has_fvcore": "whether upstream's own import of fvcore worked",
    "token_permute*/DISABLE_PADDING_WARNING": "a constant of a warning that is not given here",
    "token_permute*/TOKEN_PERMUTE_PADDING_RATIO_LIMIT_UNTIL_WARNING": "a constant of a warning that is not given here",
    "backends.*/Cutlass*Fn*": "launches one CUDA kernel",
    "backends.*/ReferenceFna*": "launches one CUDA kernel",
    "backends.*/make_*_autograd_fn": "makes what launches one CUDA kernel",
    "backends*/can_run_*": "0.20.0 alone: whether this machine's CUDA card has a kernel",
    "backends/*choose*backend": "0.20.0 alone asked with one tensor, its successor with three",
    "backends/get_compatible_*": "0.20.0 alone asked with one tensor, its successor with three",
    "backends.flex/get_*": "builds flex_attention's masks, which nothing here goes through",
    "backends.flex/idx2crd": "builds flex_attention's masks, which nothing here goes through",
    "backends.flex/run_flex_attn": "calls flex_attention, which nothing here goes through",
    "flex/get_*": "builds flex_attention's masks, which nothing here goes through",
    "flex/can_run_flex_attention": "whether flex_attention can run, which nothing here goes through",
    "experimental/*_op*": "registers one CUDA kernel with torch",
    "experimental/*_flop_count": "registers one CUDA kernel with torch's counter",
    "experimental/FlopCountFn": "registers one CUDA kernel with torch's counter",
    "attn_merge/MergeAttentionsAutogradFn": "corrects a gradient that upstream's kernels get wrong",
    "token_permute.cutlass_impl/*": "launches one CUDA kernel",
    "utils.testing/*": "decorators of upstream's own tests",
    "utils.checks/additional_kv_tensor_checks": "0.20.0 alone took two tensors, its successor three and more",
}
# What makes sense for torch only, and is left out of natten-mlx in addition.
TORCH_ALONE = {
    "*/*Function": "an autograd function of torch",
    "*/FusedNeighborhoodAttention?D": "an autograd function of torch",
    "flops/get_flops": "counts a module of torch",
    "nested*": "nested tensors of torch",
    "ops/*": "writes into buffers of torch",
    "token_permute*": "reorders tensors of torch for CUDA kernels",
    "attn_merge/*compile*": "torch.compile",
    "attn_merge/merge_attentions_fn": "torch.compile's part of merge_attentions",
    "utils*/make_attn_tensor_from_input": "an uninitialised tensor of torch",
    "utils.device/*": "devices of torch",
    "utils.dtype/*": "dtypes of torch",
    "utils.environment/*TORCH*": "a switch of torch.library",
    "utils.environment/is_torch_compiling": "torch.compile",
}


class Row(NamedTuple):
    """One way of calling a name, and the releases that have it."""

    module: str
    name: str
    kind: str
    parameters: str
    releases: str

    @property
    def path(self) -> str:
        return f"{self.module}/{self.name}"

    @property
    def words(self) -> list[str]:
        return [] if self.parameters == "-" else self.parameters.split()


def table() -> Iterator[Row]:
    with (Path(__file__).parent / "upstream_signatures.tsv").open(newline="") as file:
        for fields in list(csv.reader(file, delimiter="\t"))[1:]:
            yield Row(*("" if field == "-" and at < 1 else field for at, field in enumerate(fields)))


ROWS = list(table())
RELEASES = sorted({release for row in ROWS for release in row.releases.split()})


def excuse(path: str, excuses: dict[str, str]) -> str | None:
    """The pattern that excuses a name."""
    return next((pattern for pattern in excuses if fnmatch.fnmatchcase(path, pattern)), None)


def find(root: Any, module: str, name: str) -> Any:
    """The object of that name in a submodule of ``root``; AttributeError names what is missing."""
    holder = root
    for part in module.split(".") if module else ():
        found = getattr(holder, part)
        # In 0.17 natten.na1d is a module; here it is also the function of that name, at the top.
        holder = found if isinstance(found, ModuleType) else inspect.getmodule(found)
    return getattr(holder, name)


def misfits(found: Any, row: Row) -> list[str]:
    """Keywords that upstream's callers may pass and ``found`` does not accept."""
    if row.kind == "value" or row.parameters == "-":
        return []
    taken = inspect.signature(found).parameters
    form = getattr(found, "form", None)
    aliases = form.aliases if form is not None else {}
    if any(each.kind is each.VAR_KEYWORD for each in taken.values()):
        return []
    wrong = []
    for word in row.words:
        name = word.removesuffix("=")
        its = taken.get(aliases.get(name, name))
        if name.startswith("*"):
            wrong += [] if any(each.kind is each.VAR_POSITIONAL for each in taken.values()) else [word]
        elif its is None:
            wrong.append(name)
        elif word.endswith("=") and its.default is its.empty:
            wrong.append(f"{name} without a default")
    needed = [
        name for name, each in taken.items() if each.default is each.empty and each.kind is not each.VAR_POSITIONAL
    ]
    given = {aliases.get(word.removesuffix("="), word.removesuffix("=")) for word in row.words}
    return wrong + [f"{name}, which upstream does not have" for name in needed if name not in given]


def test_the_table_is_complete() -> None:
    """Seventeen releases, with the ops of each."""
    assert len(RELEASES) == 17 and {"0.14.4", "0.15.1", "0.17.5", "0.20.0", "0.21.7"} <= set(RELEASES)
    assert len(ROWS) > 600
    for release in RELEASES:
        own = {row.path for row in ROWS if release in row.releases.split()}
        assert "functional/na2d" in own or "functional/natten2dqkrpb" in own or "functional/na2d_qk" in own, release


@pytest.fixture(params=RELEASES)
def installed(request: pytest.FixtureRequest) -> Iterator[tuple[str, Any]]:
    """``natten`` as in a release, through natten_mps."""
    from natten_mps import compat

    yield request.param, compat.install(request.param)
    compat.uninstall()


def complaints(release: str, lookup: Any, excuses: dict[str, str]) -> list[str]:
    """The names and keywords of a release that are missing and not excused."""
    found = []
    for row in ROWS:
        if release not in row.releases.split() or excuse(row.path, excuses):
            continue
        try:
            its = lookup(row.module, row.name)
        except (AttributeError, ImportError) as error:
            found.append(f"{row.path}: {error}")
            continue
        found += [f"{row.path}: {each}" for each in misfits(its, row)]
    return found


def test_every_name_and_keyword_of_a_release(installed: tuple[str, Any]) -> None:
    """`import natten` under install(release): each submodule, each public name, each keyword."""
    import importlib

    release, _ = installed

    def lookup(module: str, name: str) -> Any:
        return getattr(importlib.import_module(f"natten.{module}" if module else "natten"), name)

    assert complaints(release, lookup, LEFT_OUT) == []


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
@pytest.mark.parametrize("release", RELEASES)
def test_every_name_and_keyword_of_for_version(release: str, framework: Framework) -> None:
    """The same for the module of a release, with its submodules as attributes."""
    root = framework.module("compat").for_version(release)
    excuses = LEFT_OUT | (TORCH_ALONE if framework is MLX else {})
    assert complaints(release, lambda module, name: find(root, module, name), excuses) == []


def test_no_excuse_is_stale() -> None:
    """Each pattern excuses something that would be reported otherwise."""
    for excuses, framework in ((LEFT_OUT, MPS), (TORCH_ALONE, MLX)):
        needed = set()
        for row in ROWS:
            pattern = excuse(row.path, excuses)
            for release in row.releases.split() if pattern and pattern not in needed else ():
                root = framework.module("compat").for_version(release)
                try:
                    its = find(root, row.module, row.name)
                except AttributeError:
                    needed.add(pattern)
                    break
                if misfits(its, row):
                    needed.add(pattern)
                    break
        assert set(excuses) - needed == set(), framework


def test_a_release_has_no_younger_ops() -> None:
    """Clients tell releases apart by what can be imported."""
    import importlib

    from natten_mps import compat

    try:
        for release in ("0.14.4", "0.14.6", "0.15.1"):
            natten = compat.install(release)
            for name in ("na1d", "na2d", "na3d"):
                assert not hasattr(natten, name) and not hasattr(natten.functional, name), (release, name)
                with pytest.raises(ModuleNotFoundError):
                    importlib.import_module(f"natten.{name}")
            assert not hasattr(natten, "context")
        natten = compat.install("0.20.1")
        assert not hasattr(natten.functional, "na2d_qk") and not hasattr(natten, "flops")
    finally:
        compat.uninstall()
