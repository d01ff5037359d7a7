"""Window arguments, checked and expanded to one per axis, as in natten-mps 0.3."""

from .._metal.compat.earlier import check_dilation_kernel_vs_input as check_dilation_kernel_vs_input
from .._metal.compat.earlier import check_kernel_size_vs_input as check_kernel_size_vs_input
from .._metal.compat.earlier import check_stride_vs_kernel as check_stride_vs_kernel
from .._metal.compat.earlier import normalize_kernel_size as normalize_kernel_size
from .._metal.compat.earlier import normalize_tuple_param as normalize_tuple_param
