"""What both packages share, independent of a framework.

Only the standard library is imported (numpy inside functions, for the reference, masks and slabs). A call flows one
way: face -> Problem -> checks -> plan -> launch. Each room imports only from the rooms before it: caches, problem,
metal, plan, api; then cpu, compat, slabs, weights and tools, which do not import each other.
"""
