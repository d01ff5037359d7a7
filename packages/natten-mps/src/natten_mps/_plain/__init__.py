"""The backends made of torch's own operations: pure and dense."""
