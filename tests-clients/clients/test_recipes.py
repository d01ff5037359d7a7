"""The recipes of the documents for the clients of this environment."""

from __future__ import annotations

import pytest
import recipes


@pytest.mark.parametrize("title", ["allin1", "diffusers", "hdit"])
def test_a_recipe(title: str) -> None:
    recipes.run(title)
