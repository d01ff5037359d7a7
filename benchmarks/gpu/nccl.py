"""natten_mps.distributed over NCCL, one process for each NVIDIA GPU, against one process with the whole problem.

CUDA tensors run on the backend ``pure``. Each process computes the whole problem by itself, then its own shard with the
others; results and all gradients of the shard must equal slices of the whole problem's up to rounding, in float64 and
in float32. Prints a line for each case, and ends with an error if one differs.

    PYTHONPATH=packages/natten-mps/src python benchmarks/gpu/nccl.py            # needs two GPUs or more
"""

import argparse
import os
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

# shape, window, heads, key/value heads, additional keys, tokens of each process but the last along the axis
CASES = {
    "2-D, halo on one side": ((48, 40), {"kernel_size": (7, 5)}, 4, 4, 0, 24),
    "2-D, stride and dilation": (
        (50, 24),
        {"kernel_size": (6, 5), "stride": (2, 1), "dilation": (2, 3)},
        4,
        2,
        3,
        18,
    ),
    "1-D, causal": ((4096,), {"kernel_size": 129, "is_causal": True}, 8, 2, 0, 2048),
    "1-D, window wider than a shard": ((300,), {"kernel_size": 251}, 2, 1, 5, 40),
    "3-D, causal in time": ((12, 16, 16), {"kernel_size": (3, 5, 5), "is_causal": (True, False, False)}, 2, 2, 0, 5),
}


def inputs(name: str, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """The whole problem's tensors, the same in every process."""
    shape, _, heads, kv_heads, additional, _ = CASES[name]
    generator = torch.Generator().manual_seed(7)
    sizes = {"query": (*shape, heads, 32), "key": (*shape, kv_heads, 32), "value": (*shape, kv_heads, 32)}
    if additional:
        sizes |= dict.fromkeys(("additional_keys", "additional_values"), (additional, kv_heads, 32))
    return {
        key: torch.randn((2, *size), generator=generator, dtype=torch.float64).to(device, dtype).requires_grad_()
        for key, size in sizes.items()
    }


def compare(name: str, rank: int, processes: int, dtype: torch.dtype) -> float:
    """The largest difference of a result or gradient, relative to the largest number of its tensor."""
    import natten_mps

    shape, window, _, _, _, length = CASES[name]
    first, last = rank * length, shape[0] if rank == processes - 1 else (rank + 1) * length
    whole = inputs(name, dtype, torch.device("cuda", rank))
    face = f"na{len(shape)}d"
    out = getattr(natten_mps, face)(**whole, **window, backend="pure")
    weight = torch.linspace(-1, 1, out.numel(), dtype=dtype, device=out.device).reshape(out.shape)
    grads = torch.autograd.grad((out * weight).sum(), list(whole.values()))
    local = {
        key: tensor.detach() if "additional" in key else tensor.detach()[:, first:last].contiguous()
        for key, tensor in whole.items()
    }
    local = {key: tensor.requires_grad_() for key, tensor in local.items()}
    own = getattr(natten_mps.distributed, face)(**local, **window, backend="pure")
    own_grads = torch.autograd.grad((own * weight[:, first:last]).sum(), list(local.values()))
    worst = apart(own, out[:, first:last])
    for key, mine, wanted in zip(whole, own_grads, grads, strict=True):
        worst = max(worst, apart(mine, wanted if "additional" in key else wanted[:, first:last]))
    return worst


def apart(found: Tensor, wanted: Tensor) -> float:
    """max|found - wanted| / max|wanted|"""
    return float((found - wanted).detach().abs().max() / wanted.detach().abs().max())


def member(rank: int, processes: int) -> None:
    """One process."""
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", rank=rank, world_size=processes, timeout=timedelta(minutes=2))
    for dtype, bound in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        for name in CASES:
            worst = torch.tensor(compare(name, rank, processes, dtype), device="cuda")
            dist.all_reduce(worst, dist.ReduceOp.MAX)
            if rank == 0:
                print(
                    f"{name:<34}{str(dtype).removeprefix('torch.'):<10}{float(worst):.2e}  (at most {bound})",
                    flush=True,
                )
            assert float(worst) <= bound, name
    dist.destroy_process_group()


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    processes = torch.cuda.device_count()
    if processes < 2:
        raise SystemExit("nccl.py: two GPUs or more are needed; found " + str(processes))
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29541")
    mp.spawn(member, (processes,), nprocs=processes)
    print(f"{processes} processes on {torch.cuda.get_device_name()}, torch {torch.__version__}, NCCL: all agree")


if __name__ == "__main__":
    main()
