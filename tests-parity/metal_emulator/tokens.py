"""Tokens of preprocessed Metal source: splitting, bracket matching, top-level lists."""

import re

TOKEN = re.compile(
    r"""\#[^\n]*\n                                       # line marker or pragma
    | "(?:\\.|[^"\\])*" | '(?:\\.|[^'\\])*'              # string, character
    | \[\[ | \]\] | :: | -> | && | \|\| | <<= | >>=      # operators that must stay whole
    | [A-Za-z_]\w*                                       # word
    | (?:0[xX][\da-fA-F]+ | (?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\w*   # number with suffix
    | \s+ | .""",
    re.VERBOSE | re.DOTALL,
)
WORD = re.compile(r"[A-Za-z_]\w*$")
OPENING = ("(", "[", "{", "[[")
CLOSING = (")", "]", "}", "]]")
ADDRESS_SPACES = frozenset(
    {"device", "constant", "threadgroup", "thread", "threadgroup_imageblock", "ray_data", "object_data"}
)


def tokenize(text: str) -> list[str]:
    """All tokens, spaces and line markers included: joined, they are the original text."""
    return split_double_brackets(TOKEN.findall(text))


def split_double_brackets(tokens: list[str]) -> list[str]:
    """Undo `]]` where it closes two plain brackets, as in a[b[0]]."""
    fixed: list[str] = []
    open_brackets: list[str] = []
    for token in tokens:
        if token == "]]" and open_brackets[-1:] != ["[["]:
            fixed += ["]", "]"]
            del open_brackets[-2:]
            continue
        if token in OPENING:
            open_brackets.append(token)
        elif token in CLOSING and open_brackets:
            open_brackets.pop()
        fixed.append(token)
    return fixed


def is_blank(token: str) -> bool:
    """Space, or a line marker or pragma of the preprocessor."""
    return token.isspace() or token.startswith("#")


def significant(tokens: list[str]) -> list[int]:
    """Indices of the tokens that are not blank."""
    return [i for i, token in enumerate(tokens) if not is_blank(token)]


def next_significant(tokens: list[str], start: int) -> int:
    """Index of the first token at or after `start` that is not blank."""
    while is_blank(tokens[start]):
        start += 1
    return start


def after_match(tokens: list[str], start: int) -> int:
    """Index just past the bracket that closes tokens[start]."""
    depth = 0
    for i in range(start, len(tokens)):
        if tokens[i] in OPENING:
            depth += 1
        elif tokens[i] in CLOSING:
            depth -= 1
            if depth == 0:
                return i + 1
    raise ValueError(f"no bracket closes {tokens[start]!r}: ...{''.join(tokens[start : start + 12])!r}")


def statement_end(tokens: list[str], start: int) -> int:
    """Index of the `;` that ends the statement at `start`; what stands in brackets is skipped."""
    i = start
    while tokens[i] != ";":
        i = after_match(tokens, i) if tokens[i] in OPENING else i + 1
    return i


def split_list(tokens: list[str]) -> list[list[str]]:
    """The parts between top-level commas; (), [], {} and <> nest."""
    parts: list[list[str]] = [[]]
    depth = 0
    for token in tokens:
        if token in OPENING or token == "<":
            depth += 1
        elif token in CLOSING or token == ">":
            depth -= 1
        if token == "," and depth == 0:
            parts.append([])
        else:
            parts[-1].append(token)
    return [part for part in parts if "".join(part).strip()]


def lines_only(tokens: list[str]) -> str:
    """The line breaks of some tokens, to keep later lines where they are."""
    return "\n" * "".join(tokens).count("\n")
