"""The rules of a legal call, and all errors of ops; a module for each thing checked.

Each message names the op, the rule, what came, and (for axes) which axis breaks it. TypeError: a
wrong type. ValueError: everything else that is illegal. NotImplementedError: legal, but no backend
takes it; the message names the alternative. Items of different sizes: :mod:`.varlen`. Rules that only some callers
need are imported by name: :mod:`.cache`, :mod:`.modules`, :mod:`.shards`, :mod:`.slabs`.
"""

from . import arguments as arguments
from . import varlen as varlen
from .arguments import bools_per_axis as bools_per_axis
from .arguments import flag as flag
from .arguments import ints_per_axis as ints_per_axis
from .arguments import reject_type as reject_type
from .arguments import scale_or_default as scale_or_default
from .backends import backend_name as backend_name
from .backends import check_explained as check_explained
from .backends import check_explained_arguments as check_explained_arguments
from .backends import no_backend as no_backend
from .backends import reject_keyword as reject_keyword
from .backends import reject_problem as reject_problem
from .merge import check_merge as check_merge
from .merge import merge_parts as merge_parts
from .merge import merged_lses as merged_lses
from .ops import av_problem as av_problem
from .ops import full_problem as full_problem
from .ops import fused_problem as fused_problem
from .ops import qk_problem as qk_problem
from .piece import axes_of as axes_of
from .piece import axis_ranges as axis_ranges
from .piece import piece_arguments as piece_arguments
from .tensors import check_key_mask as check_key_mask
from .tensors import reject_freed as reject_freed
from .tensors import reject_layout as reject_layout
from .tensors import reject_nested as reject_nested
from .tensors import reject_wrapper as reject_wrapper
from .tensors import require_dtype as require_dtype
from .tensors import same as same
from .tensors import tensor_rank as tensor_rank
from .transforms import NO_VMAP as NO_VMAP
from .transforms import reject_batched as reject_batched
from .transforms import reject_forward_mode as reject_forward_mode
from .transforms import reject_recorder as reject_recorder
from .transforms import reject_second_derivative as reject_second_derivative
from .transforms import reject_shapeless as reject_shapeless
from .transforms import reject_vmap as reject_vmap
from .window import Window as Window
from .window import check_axes as check_axes
from .window import check_rpb_stride as check_rpb_stride
from .window import check_window as check_window
from .window import check_wrap as check_wrap
from .window import window_arguments as window_arguments
