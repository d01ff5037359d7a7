"""The recipe of the documents for the client of this environment."""

from __future__ import annotations

import recipes


def test_a_recipe() -> None:
    recipes.run("transformers 4.53")
