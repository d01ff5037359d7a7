"""Key masks are packed into the words that the kernels read, in both packages."""

from __future__ import annotations

import numpy as np
import pytest
from frameworks import FRAMEWORKS, Framework

from .launch import words_of


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_masks_become_words(framework: Framework) -> None:
    """A bit for each key: lines shorter and longer than a word of 32 bits, and the sign bit."""
    pack, operations = framework.module("_metal.api.key_words").key_words, framework.module("_operations")
    random = np.random.default_rng(0)
    for shape in ((2, 1), (1, 31), (3, 2, 32), (2, 3, 33), (1, 2, 2, 100)):
        key_mask = random.random(shape) < 0.5
        words = pack(operations, framework.tensor(key_mask, "bool_" if framework.name == "mlx" else "bool"))
        assert framework.dtype_of(words) == "int32"
        assert np.array_equal(framework.numpy(words), words_of(key_mask)), shape
    assert words_of(np.ones((1, 32), bool)).item() == -1
