"""The problem of a call, its rules, its window, and the correct result. Independent of any device."""
