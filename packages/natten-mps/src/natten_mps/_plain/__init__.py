"""The paths that are torch's own operations: pure and dense."""
