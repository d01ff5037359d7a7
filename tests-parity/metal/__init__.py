"""The Metal kernels verified without a Mac: their text, their work, and their results, executed."""
