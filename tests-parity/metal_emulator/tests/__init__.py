"""The emulator's own tests: every planted fault is caught as the kind it is, and clean kernels give numpy's numbers."""
