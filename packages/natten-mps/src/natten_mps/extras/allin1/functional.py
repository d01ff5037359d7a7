"""The split ops by the names of NATTEN 0.14, heads-last and unscaled, as natten-mps 0.3 had them here.

``natten{1,2}dqkrpb(query, key, rpb, kernel_size, dilation)`` are the logits ``q.k + rpb`` of the window slots,
``[B, *shape, H, D]`` -> ``[B, *shape, H, slots]``; ``natten{1,2}dav(attention_probs, value, kernel_size, dilation)``
their weights times values. Heads-first ones, as NATTEN itself had them, are in :mod:`natten_mps.compat.v014`.
"""

from ...compat._allin1 import natten1dav as natten1dav
from ...compat._allin1 import natten1dqkrpb as natten1dqkrpb
from ...compat._allin1 import natten2dav as natten2dav
from ...compat._allin1 import natten2dqkrpb as natten2dqkrpb

__all__ = ["natten1dav", "natten1dqkrpb", "natten2dav", "natten2dqkrpb"]
