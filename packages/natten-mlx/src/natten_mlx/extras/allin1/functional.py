"""The split ops of NATTEN 0.14, heads-first and unscaled, where natten-mlx 0.3 had them."""

from ...compat.v014 import natten1dav as natten1dav
from ...compat.v014 import natten1dqkrpb as natten1dqkrpb
from ...compat.v014 import natten2dav as natten2dav
from ...compat.v014 import natten2dqkrpb as natten2dqkrpb

__all__ = ["natten1dav", "natten1dqkrpb", "natten2dav", "natten2dqkrpb"]
