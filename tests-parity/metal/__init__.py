"""The proof of the Metal kernels where there is no Mac: their text, their work, and their results, executed."""
