"""The paths that are MLX's own operations: pure and dense."""
