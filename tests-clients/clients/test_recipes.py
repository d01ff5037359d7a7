"""The recipes of the documents for the clients of this environment."""

from __future__ import annotations

import sys

import pytest
import recipes
from diffusers.models.autoencoders import ltx2_diffusion_decoder as ltx2
from frameworks import MPS


@pytest.mark.parametrize("title", ["allin1", "diffusers", "hdit"])
def test_a_recipe(title: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # What the recipe for diffusers replaces is put back.
    monkeypatch.setitem(sys.modules, "kernels", sys.modules.get("kernels"))
    monkeypatch.setattr(ltx2, "is_kernels_available", ltx2.is_kernels_available)
    with MPS.watch() as ran:
        recipes.run(title)
    assert ran == {"native"}
