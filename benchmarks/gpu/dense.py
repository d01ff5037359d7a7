"""Float64 references: dense attention on the GPU for large plain problems, the numpy reference for small ones."""

import math

import torch
from jobs import Job
from torch import Tensor

from natten_metal.problem import reference
from natten_metal.problem.problem import Problem

BLOCK_BYTES = 4 << 30


def _seen(problem: Problem, rows: Tensor) -> Tensor:
    """``[rows, keys]`` bool: what the query tokens ``rows`` attend to, from the definition at stride and dilation 1."""
    seen, rest = None, rows
    parts = []
    for axis in reversed(problem.axes):
        token, rest = rest % axis.queries, rest // axis.queries
        start = (token - axis.window // 2).clamp(0, axis.keys - axis.window)[:, None]
        key = torch.arange(axis.keys, device=rows.device)
        parts.append((key >= start) & (key < start + axis.window))
    for part in reversed(parts):
        seen = part if seen is None else (seen[:, :, None] & part[:, None, :]).flatten(1)
    assert seen is not None
    return seen


def dense(problem: Problem, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """out, lse and gradients of a fused problem at stride and dilation 1, not causal, one head at a time."""
    batch, heads, tokens = problem.batch, problem.heads, problem.queries

    def heads_first(t: Tensor) -> Tensor:
        return t.double().reshape(batch, tokens, heads, -1).transpose(1, 2).reshape(batch * heads, tokens, -1)

    q, k, v, g = (heads_first(tensors[name]) for name in ("query", "key", "value", "out_grad"))
    made = {"out": torch.empty_like(v), "lse": torch.empty_like(q[..., :1])}
    made |= {"query_grad": torch.empty_like(q), "key_grad": torch.zeros_like(k), "value_grad": torch.zeros_like(v)}
    step = max(1, min(tokens, BLOCK_BYTES // (8 * problem.keys)))
    for first in range(0, tokens, step):
        rows = slice(first, min(first + step, tokens))
        seen = _seen(problem, torch.arange(rows.start, rows.stop, device=q.device))
        for h in range(batch * heads):
            s = (q[h, rows] @ k[h].T).mul_(problem.scale).masked_fill_(~seen, -math.inf)
            lse = torch.logsumexp(s, -1, keepdim=True)
            p = s.sub_(lse).exp_()
            out = p @ v[h]
            ds = (g[h, rows] @ v[h].T).sub_((g[h, rows] * out).sum(-1, keepdim=True)).mul_(p).mul_(problem.scale)
            made["out"][h, rows], made["lse"][h, rows] = out, lse
            made["query_grad"][h, rows] = ds @ k[h]
            made["key_grad"][h] += ds.T @ q[h, rows]
            made["value_grad"][h] += p.T @ g[h, rows]
    shape = (batch, *problem.query_shape, heads)
    last = {n: t.reshape(batch, heads, tokens, -1).transpose(1, 2).reshape(*shape, -1) for n, t in made.items()}
    return last | {"lse": last["lse"][..., 0]}


def small(job: Job, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the job's launches should make, by name, from the numpy reference."""
    p = job.problem_in_dtype
    given = {name: t.double().cpu().numpy() for name, t in tensors.items()}
    optional = {name: given.get(name) for name in ("additional_keys", "additional_values", "rpb")}
    if p.op == "qk":
        operands = (given["query"], given["key"], given.get("rpb"))
        made = {"logits": reference.qk(p, *operands)}
        gradients = reference.qk_backward(p, given["logits_grad"], *operands)
    elif p.op == "av":
        made = {"out": reference.av(p, given["attn"], given["value"])}
        gradients = reference.av_backward(p, given["out_grad"], given["attn"], given["value"])
    else:
        operands = (given["query"], given["key"], given["value"])
        made = dict(zip(("out", "lse"), reference.forward(p, *operands, **optional), strict=True))
        gradients = reference.backward(p, given["out_grad"], given["lse_grad"], *operands, **optional)
    made |= {f"{name}_grad": gradient for name, gradient in gradients.items()}
    return {name: torch.from_numpy(value).to("cuda") for name, value in made.items()}
