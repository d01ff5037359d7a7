"""The split ops of the all-in-one music model, which attends over time and over time and instruments.

    from natten_mlx.extras.allin1 import na1d_av_fused, na1d_qk_rpb
    logits = na1d_qk_rpb(query, key, rpb, kernel_size=5, dilation=2)     # [B, L, H, 5]
    out = na1d_av_fused(mx.softmax(logits, -1), value, kernel_size=5, dilation=2)

Heads-last, unlike the ``natten*`` ops that the model itself calls: those are in :mod:`natten_mlx.compat.v014`.
"""

from ...compat._allin1 import na1d_av_fused as na1d_av_fused
from ...compat._allin1 import na1d_qk_rpb as na1d_qk_rpb
from ...compat._allin1 import na2d_av_fused as na2d_av_fused
from ...compat._allin1 import na2d_qk_rpb as na2d_qk_rpb

__all__ = ["na1d_av_fused", "na1d_qk_rpb", "na2d_av_fused", "na2d_qk_rpb"]
