"""The backends of this package, in a module that needs nothing: the ops know it before the rest is imported."""

# 'auto' tries them in this order.
TIERS = ("metal", "native", "pure", "dense")
