"""The emulator's own tests: every planted fault is reported as its kind, and clean kernels give numpy's numbers."""
