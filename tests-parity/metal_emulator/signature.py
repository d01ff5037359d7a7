"""Where the parameters of a Metal kernel come from, read from its declaration."""

import re
from dataclasses import dataclass

from .tokens import is_blank, split_list

# Position values by the numbers of runtime.h and kernel_arguments.h
POSITIONS = {
    "thread_position_in_grid": 0,
    "thread_position_in_threadgroup": 1,
    "threadgroup_position_in_grid": 2,
    "threads_per_threadgroup": 3,
    "threadgroups_per_grid": 4,
    "threads_per_grid": 5,
    "thread_index_in_threadgroup": 6,
    "thread_index_in_simdgroup": 7,
    "simdgroup_index_in_threadgroup": 8,
    "threads_per_simdgroup": 9,
    "thread_execution_width": 9,
    "simdgroups_per_threadgroup": 10,
    "dispatch_threads_per_threadgroup": 11,
}
BUFFER, THREADGROUP_MEMORY, POSITION = range(3)
MAX_BUFFERS = 31


@dataclass(frozen=True)
class Binding:
    """One kernel parameter: a buffer, a [[threadgroup(n)]] pointer, or a position value."""

    source: int
    index: int
    read_only: bool = False


def parse_parameters(kernel: str, tokens: list[str]) -> tuple[Binding, ...]:
    """Bindings of the tokens between a kernel's parentheses; buffers without a number take the next free one."""
    bindings = []
    next_buffer = 0
    for part in split_list(tokens):
        text = "".join(token for token in part if not is_blank(token) or token.isspace())
        binding = parse_parameter(kernel, text, next_buffer)
        if binding.source == BUFFER:
            next_buffer = binding.index + 1
        bindings.append(binding)
    return tuple(bindings)


def parse_parameter(kernel: str, text: str, next_buffer: int) -> Binding:
    """Binding of one parameter; ValueError if its attribute is not one the emulator knows."""
    attributes = " ".join(re.findall(r"\[\[(.*?)\]\]", text, re.DOTALL))
    declaration = re.sub(r"\[\[.*?\]\]", "", text, flags=re.DOTALL)
    if "function_constant" in attributes:
        raise ValueError(f"{kernel}: function constants are not supported: {text.strip()}")
    threadgroup_index = re.search(r"\bthreadgroup\s*\(\s*(\d+)", attributes)
    if threadgroup_index:
        return Binding(THREADGROUP_MEMORY, int(threadgroup_index[1]))
    for word in re.findall(r"\w+", attributes):
        if word in POSITIONS:
            return Binding(POSITION, POSITIONS[word])
    if re.search(r"\bdevice\b|\bconstant\b", declaration) and re.search(r"[*&]", declaration):
        given = re.search(r"\bbuffer\s*\(\s*(\d+)", attributes)
        index = int(given[1]) if given else next_buffer
        if index >= MAX_BUFFERS:
            raise ValueError(f"{kernel}: buffer({index}) is past the last one, buffer({MAX_BUFFERS - 1})")
        return Binding(BUFFER, index, read_only=bool(re.search(r"\bconst\b|\bconstant\b", declaration)))
    raise ValueError(f"{kernel}: cannot tell where this parameter comes from: {text.strip()}")
