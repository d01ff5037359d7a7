"""One module for each backend that launches kernels."""
