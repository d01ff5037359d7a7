"""The Metal kernels, verified without a Mac: their text, their work, and the results of executing them."""
