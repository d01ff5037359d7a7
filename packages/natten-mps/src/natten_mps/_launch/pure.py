"""Runs the pure backend on torch tensors: blocks of queries, in torch's own operations."""

from functools import partial

from .._metal.api import walks
from .._plain import walk

run = partial(walks.run, walk)
