"""Measuring a device: which kernels are timed, how unit costs are fitted to the times, and what is kept."""
