"""A repeated call skips its checks; a call that only looks like an earlier one does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from frameworks import FRAMEWORKS, Framework

WRONG: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "bool for int": ({"kernel_size": 1}, {"kernel_size": True}),
    "float for int": ({"kernel_size": 3}, {"kernel_size": 3.0}),
    "inside a tuple": ({"kernel_size": (3,)}, {"kernel_size": (3.0,)}),
    "int for bool": ({"kernel_size": 3, "is_causal": True}, {"kernel_size": 3, "is_causal": 1}),
    "flag": ({"kernel_size": 3, "return_lse": True}, {"kernel_size": 3, "return_lse": 1}),
}


def tensor(framework: Framework, dtype: str = "float32") -> Any:
    return framework.tensor(np.random.default_rng(0).standard_normal((1, 9, 2, 4)), dtype)


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
@pytest.mark.parametrize("backend", ["auto", "pure", "dense"])
@pytest.mark.parametrize(("legal", "wrong"), WRONG.values(), ids=WRONG)
def test_equal_is_not_the_same(
    framework: Framework, backend: str, legal: dict[str, Any], wrong: dict[str, Any]
) -> None:
    """Arguments that are equal but of another type are checked again."""
    x, half, call = tensor(framework), tensor(framework, "float16"), framework.face("na1d")
    for _ in range(2):
        call(x, x, x, **legal, backend=backend)
    with pytest.raises(TypeError):
        call(x, x, x, **wrong, backend=backend)
    with pytest.raises(TypeError, match="share one dtype"):
        call(x, x, half, **legal, backend=backend)
    with pytest.raises(ValueError, match="additional_keys and additional_values"):
        call(x, x, x, **legal, backend=backend, additional_keys=x)


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_a_list_that_changes(framework: Framework) -> None:
    """Each call reads its numbers again."""
    x, call, size = tensor(framework), framework.face("na1d"), [3]
    narrow = framework.numpy(call(x, x, x, 3))
    assert np.array_equal(framework.numpy(call(x, x, x, size)), narrow)
    size[0] = 5
    wide = framework.numpy(call(x, x, x, size))
    assert np.array_equal(wide, framework.numpy(call(x, x, x, 5)))
    assert not np.array_equal(wide, narrow)


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
def test_memory_is_bounded(framework: Framework, monkeypatch: pytest.MonkeyPatch) -> None:
    """Distinct calls beyond the limit are not kept."""
    checked = framework.module("_metal.api.attention").checked
    monkeypatch.setattr(checked, "max_size", 4)
    checked.clear()
    x, call = tensor(framework), framework.face("na1d")
    for kernel_size in (*range(1, 9), 8):
        call(x, x, x, kernel_size, backend="pure")
        assert 0 < len(checked) <= 4
    assert len(checked) == 4
