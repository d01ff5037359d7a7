"""Weights between NATTEN's checkpoints, natten-mps and natten-mlx, and the files that hold them."""
