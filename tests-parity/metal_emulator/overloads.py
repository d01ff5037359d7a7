"""Members, functions and partial specialisations that differ only in an address space.

Without address spaces they are duplicates. The `thread` one is kept; its device, threadgroup and constant twins are
removed. Our own kernels have none; MLX's prelude does.
"""

from .tokens import ADDRESS_SPACES, CLOSING, OPENING, after_match, is_blank, lines_only, significant

TWINS = ("device", "threadgroup", "constant")


def drop_address_space_twins(tokens: list[str], *, strict: bool) -> list[str]:
    """The tokens without the twins; with `strict` only constructors go (clang's OpenCL mode cannot overload those)."""
    where = significant(tokens)
    drop = []
    for n in range(2, len(where) - 2):
        if tokens[where[n]] not in TWINS:
            continue
        span = member_span(tokens, where, n, strict) or specialisation_span(tokens, where, n, strict)
        if span:
            drop.append(span)
    if not strict:
        drop += function_twins(tokens, where)
    tokens = list(tokens)
    for begin, end in sorted(drop, reverse=True):
        tokens[begin:end] = [lines_only(tokens[begin:end])]
        after = begin + 1
        while is_blank(tokens[after]):
            after += 1
        if tokens[after] == ";":
            tokens[after] = " "
    return tokens


def member_span(tokens: list[str], where: list[int], n: int, strict: bool) -> tuple[int, int] | None:
    """Span of a member function whose parameter list is followed by the address space where[n], or None."""
    before, before_that, after = (tokens[where[n + k]] for k in (-1, -2, 1))
    follows_parameters = before == ")" or (before == "const" and before_that == ")")
    if not follows_parameters or not (after == ":" or (after == "{" and not strict)):
        return None
    begin = member_begin(tokens, where, n - 1)
    return where[begin] + 1, body_end(tokens, where, n)


def member_begin(tokens: list[str], where: list[int], n: int) -> int:
    """Position (in `where`) of the token just before the member that contains where[n]."""
    depth = 0
    while True:
        token = tokens[where[n]]
        if token in CLOSING:
            depth += 1
        elif token in OPENING:
            depth -= 1
        at_member_start = (depth <= 0 and token in (";", "{")) or (depth == 1 and token == "}")
        after_access_word = depth == 0 and token == ":" and tokens[where[n - 1]] in ("public", "private")
        if at_member_start or after_access_word:
            return n
        n -= 1


def specialisation_span(tokens: list[str], where: list[int], n: int, strict: bool) -> tuple[int, int] | None:
    """Span of `struct X<device T> {...}`, or None."""
    if strict or tokens[where[n - 1]] != "<" or n < 3 or tokens[where[n - 3]] != "struct":
        return None
    begin = n - 3
    while tokens[where[begin]] not in (";", "}", "{"):
        begin -= 1
    return where[begin] + 1, body_end(tokens, where, n)


def function_twins(tokens: list[str], where: list[int]) -> list[tuple[int, int]]:
    """Spans of functions outside types that repeat an earlier one, address spaces aside."""
    seen: set[str] = set()
    twins = []
    begin = n = 0  # positions in `where`: of the declaration, and of the token at hand
    while n < len(where):
        token = tokens[where[n]]
        head = [tokens[i] for i in where[begin:n]]
        if token == "{" and "namespace" not in head:
            end = after_match(tokens, where[n])
            text = "".join(
                tokens[i]
                for i in range(where[begin], end)
                if not is_blank(tokens[i]) and tokens[i] not in ADDRESS_SPACES
            )
            if "(" in head and ADDRESS_SPACES & set(head):
                if text in seen:
                    twins.append((where[begin], end))
                seen.add(text)
            while n + 1 < len(where) and where[n + 1] < end:
                n += 1
        if token in (";", "{", "}"):
            begin = n + 1
        n += 1
    return twins


def body_end(tokens: list[str], where: list[int], n: int) -> int:
    """Index just past the first {...} after where[n]."""
    while tokens[where[n]] != "{":
        n += 1
    return after_match(tokens, where[n])
