"""Upstream's checks of tensors, and its queries for backends, over a package's specs and planner."""

from collections.abc import Callable
from typing import Any

from ..problem import checks, faces
from ..problem.problem import RANKS, Problem, TensorSpec
from .checks import log_or_raise_error

Spec = Callable[[str, str, Any], TensorSpec]
# What the rules raise.
REFUSALS = (TypeError, ValueError, NotImplementedError)


class TensorHelpers:
    """The helpers of one package.

    spec: its description of a tensor. takers: the backends that take a problem, best first. generate: makes the
    arguments of packed attention from lengths.
    """

    def __init__(
        self,
        spec: Spec,
        takers: Callable[[Problem, Any], list[str]],
        generate: Callable[..., tuple[Any, Any, int, int]],
    ) -> None:
        self.spec = spec
        self.takers = takers
        self.generate = generate

    def _specs(self, face: str, query: Any, key: Any, value: Any) -> tuple[TensorSpec, TensorSpec, TensorSpec]:
        return self.spec(face, "query", query), self.spec(face, "key", key), self.spec(face, "value", value)

    def _neighborhood(self, face: str, query: Any, key: Any, value: Any) -> Problem:
        """The problem with a window of one token, which fits any tensors that fit each other."""
        return faces.fused(face, *self._specs(face, query, key, value), 1, 1, 1, False, None)

    def _attention(self, face: str, query: Any, key: Any, value: Any, is_causal: Any = False) -> Problem:
        return faces.full(face, *self._specs(face, query, key, value), is_causal, None)

    def _check(
        self,
        build: Callable[..., Problem],
        face: str,
        tensors: tuple[Any, ...],
        must_match_head_dims: bool,
        supports_gqa_mqa: bool,
        raise_error: bool,
        backend_name: str | None,
    ) -> bool:
        try:
            problem = build(face, *tensors)
            if must_match_head_dims and problem.head_dim != problem.head_dim_v:
                dims = f"{problem.head_dim} and {problem.head_dim_v}"
                raise ValueError(f"{backend_name or face}: query and value must have equal head dims; got {dims}")
            if not supports_gqa_mqa and problem.heads != problem.kv_heads:
                heads = f"{problem.heads} and {problem.kv_heads}"
                raise ValueError(f"{backend_name or face}: query and key must have equally many heads; got {heads}")
        except REFUSALS as error:
            log_or_raise_error(str(error), raise_error, type(error))
            return False
        return True

    def na_tensor_checks(
        self,
        query: Any,
        key: Any,
        value: Any,
        must_match_head_dims: bool = False,
        supports_gqa_mqa: bool = True,
        raise_error: bool = True,
        backend_name: str | None = None,
    ) -> bool:
        """Whether ``[B, *shape, H, D]`` tensors fit each other; with raise_error, raise the reason."""
        wanted = (must_match_head_dims, supports_gqa_mqa, raise_error, backend_name)
        return self._check(self._neighborhood, "na_tensor_checks", (query, key, value), *wanted)

    def fmha_tensor_checks(
        self,
        query: Any,
        key: Any,
        value: Any,
        must_match_head_dims: bool = False,
        supports_gqa_mqa: bool = True,
        raise_error: bool = True,
        backend_name: str | None = None,
    ) -> bool:
        """Whether ``[B, S, H, D]`` tensors fit each other; with raise_error, raise the reason."""
        wanted = (must_match_head_dims, supports_gqa_mqa, raise_error, backend_name)
        return self._check(self._attention, "fmha_tensor_checks", (query, key, value), *wanted)

    def additional_kv_tensor_checks(
        self,
        query: Any,
        key: Any,
        value: Any,
        add_key: Any = None,
        add_value: Any = None,
        must_match_head_dims: bool = False,
        supports_gqa_mqa: bool = True,
    ) -> None:
        """Raise if additional keys and values ``[B, S, H_kv, D]`` are invalid, or only one of them is given."""
        face = "additional_kv_tensor_checks"
        more = (
            None if each is None else self.spec(face, name, each)
            for name, each in (("additional_keys", add_key), ("additional_values", add_value))
        )
        faces.fused(face, *self._specs(face, query, key, value), 1, 1, 1, False, None, *more)
        if add_key is not None:
            tensors = (query, key, value)
            self._check(self._neighborhood, face, tensors, must_match_head_dims, supports_gqa_mqa, True, None)

    def get_compatible_backends(self, query: Any, key: Any, value: Any, torch_compile: bool = False) -> list[str]:
        """This package's backends for such tensors, best first, with any window that fits."""
        return self.takers(self._neighborhood("get_compatible_backends", query, key, value), query)

    def choose_backend(self, query: Any, key: Any, value: Any, torch_compile: bool = False) -> str:
        """The backend that 'auto' picks for such tensors."""
        return self.get_compatible_backends(query, key, value)[0]

    def get_compatible_fmha_backends(
        self,
        query: Any,
        key: Any,
        value: Any,
        is_causal: bool = False,
        is_varlen: bool = False,
        torch_compile: bool = False,
    ) -> list[str]:
        """This package's backends for full attention of such tensors, best first."""
        return self.takers(self._attention("get_compatible_fmha_backends", query, key, value, is_causal), query)

    def choose_fmha_backend(
        self,
        query: Any,
        key: Any,
        value: Any,
        is_causal: bool = False,
        is_varlen: bool = False,
        torch_compile: bool = False,
    ) -> str:
        """The backend that 'auto' picks for full attention of such tensors."""
        return self.get_compatible_fmha_backends(query, key, value, is_causal)[0]

    def varlen_tensor_checks(
        self,
        query: Any,
        key: Any,
        value: Any,
        seqlens_Q: Any = None,
        seqlens_KV: Any = None,
        cumulative_seqlen_Q: Any = None,
        cumulative_seqlen_KV: Any = None,
        max_seqlen_Q: int | None = None,
        max_seqlen_KV: int | None = None,
    ) -> tuple[Any, Any, int, int]:
        """The four arguments of packed attention, made from lengths or as given; (None, None, 0, 0) without any."""
        packed = (cumulative_seqlen_Q, cumulative_seqlen_KV, max_seqlen_Q, max_seqlen_KV)
        if seqlens_Q is not None or seqlens_KV is not None or all(not isinstance(each, int) for each in packed[2:]):
            return self.generate(query, key, value, seqlens_Q, seqlens_KV)
        specs = self._specs("varlen_tensor_checks", query, key, value)
        checks.varlen.packed_call("varlen_tensor_checks", [each.shape for each in specs], (None, None), packed)
        return cumulative_seqlen_Q, cumulative_seqlen_KV, int(max_seqlen_Q or 0), int(max_seqlen_KV or 0)

    def varlen(self) -> dict[str, Any]:
        """The checks of packed attention in ``natten.utils.checks``."""
        return {**named(self.varlen_tensor_checks), "generate_varlen_parameters": self.generate}

    def checks(self) -> dict[str, Any]:
        """The checks of ``natten.utils.checks``."""
        return named(self.na_tensor_checks, self.fmha_tensor_checks, self.additional_kv_tensor_checks)

    def backends(self) -> dict[str, Any]:
        """The queries of ``natten.backends``."""
        return named(
            self.get_compatible_backends,
            self.choose_backend,
            self.get_compatible_fmha_backends,
            self.choose_fmha_backend,
        )


def named(*functions: Callable[..., Any]) -> dict[str, Any]:
    """Functions by their names."""
    return {function.__name__: function for function in functions}


def dimension_types() -> dict[str, Any]:
    """Upstream's names for arguments, as annotations use them."""
    made: dict[str, Any] = {}
    for rank in ("", *(f"{rank}D" for rank in RANKS)):
        for what, kind in (("Dimension", int), ("CausalArg", bool)):
            count = int(rank[0]) if rank else 0
            several: Any = tuple[(kind,) * count] if count else tuple[kind, ...]  # type: ignore[misc,valid-type]
            made |= {f"{what}{rank}Type": several, f"{what}{rank}TypeOrDed": kind | several}
    return made
