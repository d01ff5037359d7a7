"""Helpers of natten-mlx 0.3: :mod:`.params` and :mod:`.window`."""

from .._metal.compat.earlier import moved
from .params import check_dilation_kernel_vs_input as check_dilation_kernel_vs_input
from .params import check_kernel_size_vs_input as check_kernel_size_vs_input
from .params import check_stride_vs_kernel as check_stride_vs_kernel
from .params import normalize_kernel_size as normalize_kernel_size
from .params import normalize_tuple_param as normalize_tuple_param
from .window import compute_pb_start as compute_pb_start
from .window import compute_window_start_end as compute_window_start_end
from .window import get_pb_start as get_pb_start
from .window import get_window_end as get_window_end
from .window import get_window_start as get_window_start

moved(__name__, "copy the helpers that you need; nothing replaces them")
