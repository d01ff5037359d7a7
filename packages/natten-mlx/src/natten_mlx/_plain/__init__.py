"""The backends made of MLX's own operations: pure and dense."""
