"""What both packages share: the problem, its rules, the window, the plan, and the reference.

Framework-free: the standard library only (numpy lazily, where :mod:`reference` and :mod:`mask` are
asked for). Data flows one way: face -> Problem -> check -> plan -> launch.
"""
