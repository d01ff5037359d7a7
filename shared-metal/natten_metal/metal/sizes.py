"""The largest sizes that the kernels are built for.

The planner reads these whenever a package is imported, so they are kept apart from what makes launches.
"""

DIMS = (16, 32, 64, 96, 128, 192, 256)  # head dims that kernels are built for
MAX_RPB = 4096  # entries per head of a relative positional bias
# Rows of a patch, and columns of a brick, on matrix units; and the dtypes that their kernels are built for.
WIDE_SIDE, WIDE_DTYPES = 16, ("float16", "bfloat16")
