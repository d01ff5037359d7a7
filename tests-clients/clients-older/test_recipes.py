"""The recipe of the documents for the client of this environment."""

from __future__ import annotations

import recipes
from frameworks import MPS


def test_a_recipe() -> None:
    with MPS.watch() as ran:
        recipes.run("transformers 4.53")
    assert ran == {"native"}
