"""Derivatives of the split ops by the split ops: each is linear in each of its two tensors.

With F the op (qk: x is query, y is key, and a bias is added; av: x is attn, y is value) and G its gradients,

    tangent of F(x, y, b)   along (dx, dy, db):        F(dx, y) + F(x, dy) + db
    tangent of G(g, x, y)   along (dg, dx, dy):        G(dg, x, y) + G(g, dx, dy)
    gradients of G(g, x, y) for cotangents (cx, cy):   of g  F(cx, y) + F(x, cy) + cb,  of x and y  G(g, cx, cy)

because <c, G(g, x, y)> is <g, F(cx, y) + F(x, cy) + cb>. So derivatives of any order, forward and reverse, are computed
by the same two kernels. None stands for zero. (The fused op is not linear, so this does not work for it.)
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple


class Split(NamedTuple):
    """The two kernels of a split op, on tensors of either framework.

    op: ``(x, y, rpb or None)`` -> F, with 0 in slots that hold no key. gradients: ``(g, x, y, rpb or None)`` -> G,
    one for each tensor that is given; only the shape of rpb matters.
    """

    op: Callable[[Any, Any, Any], Any]
    gradients: Callable[[Any, Any, Any, Any], Sequence[Any]]
    zeros_like: Callable[[Any], Any]

    def tangent(self, inputs: Sequence[Any], tangents: Sequence[Any]) -> Any:
        """The tangent of F at ``inputs`` (x, y[, rpb]) along ``tangents``, at least one of which is not None."""
        (x, y), (dx, dy, d_rpb) = inputs[:2], _three(tangents)
        if dx is None and dy is None:
            return self.op(self.zeros_like(x), self.zeros_like(y), d_rpb)
        if dx is None or dy is None:
            return self.op(x if dx is None else dx, y if dy is None else dy, d_rpb)
        return self.op(dx, y, d_rpb) + self.op(x, dy, None)

    def tangents_of_gradients(self, g: Any, inputs: Sequence[Any], dg: Any, tangents: Sequence[Any]) -> list[Any]:
        """Tangents of G, one for each input that is given, along ``dg`` and ``tangents``."""
        (x, y, rpb), (dx, dy, _) = _three(inputs), _three(tangents)
        found = [self.zeros_like(tensor) for tensor in (x, y, rpb) if tensor is not None]
        if dg is not None:
            found = list(self.gradients(dg, x, y, rpb))
        if dx is not None or dy is not None:
            for index, more in enumerate(self._mixed(g, x, y, dx, dy)):
                found[index] = found[index] + more
        return found

    def gradients_of_gradients(self, g: Any, inputs: Sequence[Any], cotangents: Sequence[Any]) -> tuple[Any, Any, Any]:
        """Gradients of g, x and y, for cotangents of G, at least one of which is not None."""
        (x, y), (cx, cy, _) = inputs[:2], _three(cotangents)
        of_x, of_y = (None, None) if cx is None and cy is None else self._mixed(g, x, y, cx, cy)
        return self.tangent(inputs, cotangents), of_x, of_y

    def _mixed(self, g: Any, x: Any, y: Any, dx: Any, dy: Any) -> Sequence[Any]:
        """G(g, dx, dy)."""
        return self.gradients(
            g, self.zeros_like(x) if dx is None else dx, self.zeros_like(y) if dy is None else dy, None
        )


def _three(tensors: Sequence[Any]) -> Sequence[Any]:
    """The tensors as x, y and rpb, which may be None."""
    return [*tensors, None] if len(tensors) == 2 else tensors
