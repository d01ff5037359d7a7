"""Results of ``bench`` as tests need them: made up, with times that are known."""

from dataclasses import replace

from natten_mps._metal.bench import results
from natten_mps._metal.bench.results import Entry, Machine, Peak, Results, Row

MACHINE = Machine("macOS 26.3", "arm64", "Apple M4 Max", 40, "mps", 16, 12, "", 64 << 30, (0.5, 0.75))
OWN = Entry("natten-mps", results.TIMED, (100.0, 101.0, 99.0, 100.0, 100.0), 1 << 20, 0.0, "")
SDPA = Entry("sdpa", results.TIMED, (400.0, 404.0, 396.0, 410.0, 390.0), 1 << 24, None, "")
NOISY = Entry("sdpa-masked", results.TIMED, (100.0, 900.0, 90.0, 20.0, 200.0), 1 << 26, 1e-6, "")
MISSING = Entry("gathered", results.LEFT_OUT, (), None, None, "needs at least 900 GB, and there is room for 32")
ROW = Row(
    problem="nat",
    quick=True,
    dtype="float16",
    direction=results.FORWARD,
    shape=(56, 56),
    kernel_size=(7, 7),
    stride=(1, 1),
    dilation=(1, 1),
    is_causal=(False, False),
    batch=1,
    heads=2,
    kv_heads=2,
    head_dim=32,
    pairs=56 * 56 * 49,
    flops=4 * 56 * 56 * 49 * 2 * 32,
    least_bytes=4 * 56 * 56 * 2 * 32 * 2,
    backend="metal",
    plan="the fastest backend that takes this problem",
    predicted_us=80.0,
    entries=(OWN, SDPA, NOISY, MISSING),
)
SERIES = tuple(
    replace(
        ROW,
        problem=f"windows-{size}",
        kernel_size=(size, size),
        pairs=56 * 56 * size**2,
        entries=(replace(OWN, times_us=(size**2, size**2 + 1.0, size**2)), replace(SDPA, times_us=(9e3, 9e3, 9e3))),
    )
    for size in (3, 7, 13)
)
RESULTS = Results(
    results.FORMAT,
    results.VERSION,
    "natten-mps",
    "0.4.0",
    "torch 2.13.0",
    "3.13.5",
    "2026-01-02T03:04:05Z",
    MACHINE,
    {"quick": "True"},
    {"float16": Peak(10_000.0, 400.0)},
    (ROW, *SERIES),
)
