"""What both packages share, framework-free: problem, Metal launches, plan, shared bodies, compatibility, tools.

The standard library only (numpy lazily, for the reference and masks). A call flows one way: face ->
Problem -> check -> plan -> launch; of the rooms, each imports only from those before it in this order: problem, metal,
plan, api, and cpu, compat, weights, tools.
"""
