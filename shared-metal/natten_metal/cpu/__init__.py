"""The CPU kernels as a shared library."""
