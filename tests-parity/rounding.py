"""The error that rounding explains: attention on dense matrices in float64, with a bound for each element.

The bounds are derived element by element from the unit roundoff u of the dtype in which a backend accumulates. A logit
that is off by e changes a weight P by at most P (1 - P) (exp(2 e) - 1): a key that has all the weight keeps it,
whatever its logit. A backward that recomputed weights from other products, or from a rounded lse, would change P by a
factor of about 1 + e; no backend does that.

Independent of the packages: which query sees which key, and the slot or rpb entry of each pair, are inputs.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = Any
Tensors = dict[str, Array]
Wanted = dict[str, tuple[Array, Array]]
ROUNDING = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
SMALLEST = {"float64": 2.0**-1022, "float32": 2.0**-126}


def accumulator(dtype: str) -> str:
    """The dtype of sums, and of lse."""
    return "float64" if dtype == "float64" else "float32"


def assert_explained(found: Tensors, wanted: Wanted, dtype: str, where: str) -> None:
    """Assert that what is found differs from the truth by no more than its error and one rounding of the result."""
    assert found.keys() == wanted.keys()
    for name, (truth, error) in wanted.items():
        last = ROUNDING[accumulator(dtype) if name == "lse" else dtype]
        smallest = 2.0**-24 if dtype == "float16" else 0.0  # the smallest positive float16
        finite = np.isfinite(truth)
        assert np.array_equal(found[name][~finite], truth[~finite]), f"{where}: {name} where the truth is not finite"
        # Twice, because the truth of float64 is itself computed in float64.
        allowed = (2 * (error + last * (abs(truth) + error)) + smallest)[finite]
        apart = abs(found[name] - truth)[finite] if finite.all() else abs(found[name][finite] - truth[finite])
        worst = np.max(apart / np.maximum(allowed, 1e-300), initial=0.0)
        assert worst <= 1, f"{where}: {name} is off by {worst:.3g} times what rounding explains"


class Dense:
    """One problem on dense matrices ``[B, H, queries, keys]``.

    mask: ``[queries, keys]``, which query sees which key; all see additional keys. offsets: the same shape, the pair's
    entry in flattened rpb. equal: all keys are equal, so all logits have the same error and the weights have none.
    rounded_weights: weights are rounded to the dtype where they are multiplied by values and by gradients of the
    output, as in the Metal kernels; sums are not. roundings: how often a gradient of keys or values is rounded to the
    dtype before its last rounding: a key that is repeated has a gradient for each repetition, and these are added.
    """

    def __init__(
        self,
        arrays: Tensors,
        mask: Array,
        offsets: Array,
        scale: float,
        dtype: str,
        equal: bool = False,
        rounded_weights: bool = False,
        roundings: int = 0,
    ) -> None:
        self.arrays, self.mask, self.offsets, self.scale, self.equal = arrays, mask, offsets, scale, equal
        self.u, self.last = ROUNDING[accumulator(dtype)], ROUNDING[dtype]
        self.smallest, self.roundings = SMALLEST[accumulator(dtype)], roundings
        self.weight = (ROUNDING[dtype], 2.0**-25 * (dtype == "float16")) if rounded_weights else (0.0, 0.0)
        self.heads = arrays["query" if "query" in arrays else "d_out"].shape[-2]
        self.group = self.heads // arrays["key" if "key" in arrays else "value"].shape[-2]
        self.keys = mask.shape[1]

    def flat(self, name: str) -> Array:
        """``[B, *shape, H, D]`` -> ``[B, H, tokens, D]``; a key/value head is repeated for each of its query heads."""
        tensor = self.arrays[name]
        moved = tensor.reshape(tensor.shape[0], -1, *tensor.shape[-2:]).transpose(0, 2, 1, 3)
        return moved.repeat(self.heads // moved.shape[1], axis=1)

    def logits(self, q: Array, k: Array) -> tuple[Array, Array]:
        """Logits of all pairs, masked or not, and the size of their terms."""
        logits, size = self.scale * q @ k.mT, self.scale * abs(q) @ abs(k).mT
        if "rpb" in self.arrays:
            entries = self.arrays["rpb"].reshape(self.heads, -1)[:, self.offsets]
            logits[..., : self.keys] += entries
            size[..., : self.keys] += abs(entries)
        return logits, size

    def product(self, left: Array, error: Array, right: Array, factor: float) -> tuple[Array, Array]:
        """A sum over keys, and its error before the last rounding."""
        terms = left.shape[-1] * self.u
        return factor * left @ right, factor * (error + terms * abs(left)) @ abs(right)

    def product_of_keys(self, left: Array, error: Array, right: Array, factor: float) -> tuple[Array, Array]:
        """A sum over queries, and over the query heads of a key/value head, with its error."""
        terms = left.shape[-2] * self.group * self.u + self.roundings * self.last
        sums = factor * left.mT @ right, factor * (error + terms * abs(left)).mT @ abs(right)
        whole, off = (part.reshape(len(part), -1, self.group, *part.shape[2:]).sum(2) for part in sums)
        return whole, off

    def shaped(self, found: Wanted) -> Wanted:
        """``[B, H, tokens, D]`` -> the shape of the tensor that the result belongs to."""
        like = {"out": "d_out", "lse": "d_lse", "logits": "d_logits"}
        return {
            name: tuple(part.transpose(0, 2, 1, 3).reshape(self.arrays[like.get(name, name)].shape) for part in pair)
            for name, pair in found.items()
        }  # type: ignore[misc]  # mypy cannot see that there are two

    def by_entry(self, part: Array) -> Array:
        """For each entry of rpb, the sum over its pairs: ``[H, ...]``."""
        rpb = self.arrays["rpb"]
        found = np.zeros((self.heads, rpb[0].size))
        for head in range(self.heads):
            np.add.at(found[head], self.offsets[self.mask], part[..., : self.keys].sum(0)[head][self.mask])
        return found.reshape(rpb.shape)

    def rpb_grad(self, flow: Array, error: Array) -> tuple[Array, Array]:
        terms = len(self.mask) * len(flow) * self.u
        return self.by_entry(flow), self.by_entry(error) + terms * self.by_entry(abs(flow))

    # --- fused attention

    def fused(self) -> Wanted:
        """Truth and error of results and gradients by name."""
        q, k, v, g = (self.flat(name) for name in ("query", "key", "value", "d_out"))
        mask, additional = self.mask, "additional_keys" in self.arrays
        if "key_mask" in self.arrays:
            mask = mask & self.arrays["key_mask"].reshape(len(q), 1, 1, -1)
        if additional:
            k = np.concatenate([k, self.flat("additional_keys")], 2)
            v = np.concatenate([v, self.flat("additional_values")], 2)
            mask = np.concatenate([mask, np.ones((*mask.shape[:-1], k.shape[2] - self.keys), dtype=bool)], -1)
        p, dp, lse, lse_error = self.weights(q, k, mask)
        terms = mask.sum(-1).max()
        dp_rounded = dp + self.weight[0] * p + self.weight[1]
        out, out_error = p @ v, dp_rounded @ abs(v) + terms * self.u * p @ abs(v)
        ds, ds_error = self.flow(p, dp, out, out_error, v, g)
        key_grad, value_grad = (
            self.product_of_keys(ds, ds_error, q, self.scale),
            self.product_of_keys(p, dp_rounded, g, 1),
        )
        found = {
            "out": (out, out_error),
            "lse": (lse, lse_error),
            "query": self.product(ds, ds_error, k, self.scale),
            "key": (key_grad[0][:, :, : self.keys], key_grad[1][:, :, : self.keys]),
            "value": (value_grad[0][:, :, : self.keys], value_grad[1][:, :, : self.keys]),
        }
        if additional:
            found["additional_keys"] = (key_grad[0][:, :, self.keys :], key_grad[1][:, :, self.keys :])
            found["additional_values"] = (value_grad[0][:, :, self.keys :], value_grad[1][:, :, self.keys :])
        wanted = self.shaped(found)
        if "rpb" in self.arrays:
            wanted["rpb"] = self.rpb_grad(ds, ds_error)
        return wanted

    def weights(self, q: Array, k: Array, mask: Array) -> tuple[Array, Array, Array, Array]:
        """Weights and lse, each with its error. A query that sees no key has no weights, and lse -inf."""
        logits, size = self.logits(q, k)
        logits = np.where(mask, logits, -np.inf)
        empty = ~mask.any(-1, keepdims=True)
        top = np.where(empty, 0.0, logits.max(-1, keepdims=True))
        weights = np.exp(logits - top)
        total = np.where(empty, 1.0, weights.sum(-1, keepdims=True))
        lse, p, terms = np.where(empty, -np.inf, top + np.log(total)), weights / total, mask.sum(-1).max()
        # A dot product of D terms is off by D + 2 roundings of its terms' size; the largest of a row bounds the others.
        off = (q.shape[-1] + 4) * self.u * np.where(mask, size, 0).max(-1, keepdims=True)
        moved = p * (1 - p) * np.expm1(np.minimum(2 * off, 600)) * (not self.equal)
        # A weight that is too small for the dtype is 0.
        dp = moved + (terms + 8) * self.u * p + self.smallest
        return p, dp, lse, off + 4 * self.u * abs(lse) + (terms + 8) * self.u

    def flow(self, p: Array, dp: Array, out: Array, out_error: Array, v: Array, g: Array) -> tuple[Array, Array]:
        """Gradients of the logits, with their error."""
        towards, size = g @ v.mT, abs(g) @ abs(v).mT
        delta = (g * out).sum(-1, keepdims=True) - self.flat_lse()
        # delta is computed from the rounded output.
        delta_error = (abs(g) * (out_error + self.last * abs(out))).sum(-1, keepdims=True)
        sizes = size + (abs(g) * abs(out)).sum(-1, keepdims=True) + abs(delta)
        error = (v.shape[-1] + 4) * self.u * sizes
        return p * (towards - delta), dp * abs(towards - delta) + (p + dp) * (error + delta_error)

    def flat_lse(self) -> Array:
        d_lse = self.arrays["d_lse"]
        return d_lse.reshape(len(d_lse), -1, self.heads).transpose(0, 2, 1)[..., None]

    # --- split ops; slots: [queries, window], the key of each slot, -1 where there is none

    def of_slots(self, name: str, slots: Array) -> Array:
        """``[B, *shape, H, window]`` -> ``[B, H, queries, keys]``."""
        flat = self.flat(name)
        found = np.zeros((*flat.shape[:2], *self.mask.shape))
        row, slot = np.nonzero(slots >= 0)
        found[:, :, row, slots[row, slot]] = flat[:, :, row, slot]
        return found

    def to_slots(self, part: Array, slots: Array, empty: float) -> Array:
        found = part[:, :, np.arange(len(slots))[:, None], slots]
        return np.where(slots >= 0, found, empty)

    def qk(self, slots: Array) -> Wanted:
        """Logits of window slots, and their gradients."""
        q, k = self.flat("query"), self.flat("key")
        logits, size = self.logits(q, k)
        error = (q.shape[-1] + 4) * self.u * size
        flow = self.of_slots("d_logits", slots)
        none = np.zeros_like(flow)
        found = {
            "logits": (self.to_slots(logits, slots, -np.inf), self.to_slots(error, slots, 0.0)),
            "query": self.product(flow, 4 * self.u * abs(flow), k, self.scale),
            "key": self.product_of_keys(flow, 4 * self.u * abs(flow), q, self.scale),
        }
        wanted = self.shaped(found)
        if "rpb" in self.arrays:
            wanted["rpb"] = self.rpb_grad(flow, none)
        return wanted

    def av(self, slots: Array) -> Wanted:
        """Values weighted by window slots, and the gradients."""
        g, v, p = self.flat("d_out"), self.flat("value"), self.of_slots("attn", slots)
        towards, size = g @ v.mT, abs(g) @ abs(v).mT
        error = (v.shape[-1] + 4) * self.u * size
        none = np.zeros_like(p)
        return self.shaped(
            {
                "out": self.product(p, none, v, 1),
                "attn": (self.to_slots(towards, slots, 0.0), self.to_slots(error, slots, 0.0)),
                "value": self.product_of_keys(p, none, g, 1),
            }
        )
