"""Token lint: rules of Metal that clang's front ends do not know, and rules of this project's kernels.

banned          words of C++ that Metal lacks (double, goto, new, virtual, std, ...)
static-local    static variables inside a function
program-scope   variables outside functions that are not in the constant address space
address-space   a pointer or reference without device, constant, threadgroup or thread
recursion       a function that may reach itself
name-clash      a function or program-scope variable named like one of Metal's own
fast-math       INFINITY, NAN, isinf, isnan: undefined under fast math
literal         a floating-point literal without f, h or bf
volatile        has little meaning here; use atomics
buffer-index    [[buffer(31)]] and above
include         an #include of other than Metal's own headers: hosts compile from memory, with no include path
non-ascii       a character outside ASCII: hosts pass the source through ASCII
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from .findings import Finding
from .signature import MAX_BUFFERS
from .tokens import ADDRESS_SPACES, WORD, is_blank, tokenize
from .toolchain import METAL_HEADERS, TENSOR_HEADERS, require
from .transform import Mode, preprocess

BANNED = {
    "double": "Metal has no double",
    "goto": "Metal has no goto",
    "throw": "Metal has no exceptions",
    "try": "Metal has no exceptions",
    "catch": "Metal has no exceptions",
    "new": "Metal has no new",
    "delete": "Metal has no delete",
    "virtual": "Metal has no virtual functions",
    "dynamic_cast": "Metal has no run-time type information",
    "typeid": "Metal has no run-time type information",
    "thread_local": "Metal has no thread_local",
    "printf": "Metal has no printf",
    "asm": "Metal has no inline assembly",
    "alloca": "Metal has no alloca",
    "std": "Metal has no C++ standard library",
}
METAL_NAMES = frozenset(
    [
        "abs",
        "all",
        "any",
        "array",
        "atomic",
        "barrier",
        "ceil",
        "clamp",
        "cos",
        "cross",
        "distance",
        "dot",
        "exp",
        "exp2",
        "floor",
        "fma",
        "fract",
        "fragment",
        "half",
        "kernel",
        "length",
        "log",
        "log2",
        "matrix",
        "max",
        "min",
        "mix",
        "normalize",
        "pow",
        "round",
        "rsqrt",
        "sampler",
        "select",
        "sign",
        "simd_max",
        "simd_min",
        "simd_shuffle",
        "simd_sum",
        "sin",
        "sqrt",
        "step",
        "texture",
        "trunc",
        "uniform",
        "vec",
        "vertex",
        "visible",
    ]
)
FAST_MATH_WORDS = frozenset({"INFINITY", "NAN", "HUGE_VALF", "isinf", "isnan", "isfinite"})
SCALARS = (
    "float",
    "half",
    "bfloat",
    "int",
    "uint",
    "short",
    "ushort",
    "char",
    "uchar",
    "long",
    "ulong",
    "bool",
    "void",
)
TYPE_WORD = re.compile(rf"(?:{'|'.join(SCALARS)})[234]?$|T$")
BARE_FLOAT = re.compile(r"(?:\d+\.\d*|\.\d+|\d+(?=[eE]))(?:[eE][+-]?\d+)?$")
CONTROL_WORDS = frozenset({"if", "for", "while", "switch", "return", "sizeof", "alignof", "decltype"})


def lint(source: str, include_dirs: Sequence[str] = ()) -> list[Finding]:
    """Findings of all rules, by line; empty if the source is clean."""
    require()
    findings = text_findings(source)
    findings += Scan(preprocess(source, Mode.STRICT, tuple(map(str, include_dirs)))).run()
    return sorted(set(findings))


def strip_comments(source: str) -> str:
    """The source with comments blanked and every line kept."""
    return re.sub(r"//[^\n]*|/\*.*?\*/", lambda comment: "\n" * comment[0].count("\n"), source, flags=re.DOTALL)


def text_findings(source: str) -> list[Finding]:
    """Rules that look at the source before the preprocessor."""
    findings = []
    lines = zip(source.split("\n"), strip_comments(source).split("\n"), strict=True)
    for number, (line, uncommented) in enumerate(lines, 1):
        included = re.match(r"\s*#\s*include\s*[<\"]([^>\"]*)", line)
        if included and included[1] not in (*METAL_HEADERS, *TENSOR_HEADERS):
            findings.append(
                Finding(
                    number, "include", f"#include of {included[1]}: hosts compile from memory, with no include path"
                )
            )
        if not line.isascii():
            findings.append(Finding(number, "non-ascii", "hosts pass the source through ASCII"))
        for word in re.findall(r"\b[A-Za-z_]\w*", uncommented):
            if word in FAST_MATH_WORDS:
                findings.append(
                    Finding(
                        number,
                        "fast-math",
                        f"{word} is undefined under fast math: use a finite minimum and integer flags",
                    )
                )
        for index in re.findall(r"\[\[\s*buffer\s*\(\s*(\d+)", uncommented):
            if int(index) >= MAX_BUFFERS:
                findings.append(
                    Finding(number, "buffer-index", f"buffer({index}): there are only 0..{MAX_BUFFERS - 1}")
                )
    return findings


@dataclass
class Function:
    """A function definition, by name: overloads share one."""

    line: int
    calls: set[str] = field(default_factory=set)


class Scan:
    """One pass over the tokens that tracks braces: which open brace is a namespace, a type, a function, or other."""

    def __init__(self, text: str) -> None:
        self.tokens: list[str] = []
        self.lines: list[int] = []
        self.findings: list[Finding] = []
        self.scopes: list[str] = []
        self.functions: dict[str, Function] = {}
        self.current: Function | None = None
        self.number_lines(text)

    def number_lines(self, text: str) -> None:
        line = 1
        for token in tokenize(text):
            marker = re.match(r"# (\d+) ", token)
            if marker:
                line = int(marker[1])
                continue
            if not is_blank(token):
                self.tokens.append(token)
                self.lines.append(line)
            line += token.count("\n")

    def run(self) -> list[Finding]:
        rules: tuple[Callable[[int], None], ...] = (
            self.scope,
            self.banned,
            self.static_local,
            self.call,
            self.program_scope,
            self.address_space,
            self.name_clash,
            self.literal,
            self.volatile,
        )
        for at in range(len(self.tokens)):
            for rule in rules:
                rule(at)
        self.recursion()
        return self.findings

    def add(self, at: int, rule: str, message: str) -> None:
        self.findings.append(Finding(self.lines[at], rule, message))

    def token(self, at: int) -> str:
        return self.tokens[at] if 0 <= at < len(self.tokens) else ";"

    def statement(self, at: int) -> list[str]:
        """Tokens of the statement up to `at`."""
        begin = at
        while self.token(begin - 1) not in (";", "{", "}"):
            begin -= 1
        return self.tokens[begin:at]

    def in_function(self) -> bool:
        return "function" in self.scopes

    def at_program_scope(self) -> bool:
        return all(scope == "namespace" for scope in self.scopes)

    # ---- rules, each looking at one token -------------------------------------------------------------------------
    def scope(self, at: int) -> None:
        if self.tokens[at] == "}" and self.scopes and self.scopes.pop() == "function":
            self.current = None
        if self.tokens[at] != "{":
            return
        head = self.statement(at)
        kind = "other"
        if "namespace" in head:
            kind = "namespace"
        elif {"struct", "class", "union", "enum"} & set(head) and "(" not in head:
            kind = "type"
        elif "(" in head and "=" not in head[: head.index("(")] and not self.in_function():
            kind = "function"
            name = self.function_name(head)
            self.current = self.functions.setdefault(name, Function(self.lines[at]))
            if name in METAL_NAMES:
                self.add(at, "name-clash", f"function {name!r} is named like one of Metal's own")
        self.scopes.append(kind)

    @staticmethod
    def function_name(head: list[str]) -> str:
        """The word before the parameter list; attributes are skipped."""
        depth = 0
        for i, token in enumerate(head):
            depth += {"[[": 1, "]]": -1}.get(token, 0)
            if token == "(" and depth == 0 and i and WORD.match(head[i - 1]):
                return head[i - 1]
        return ""

    def banned(self, at: int) -> None:
        word = self.tokens[at]
        is_member = self.token(at - 1) in (".", "->", "::")
        is_deleted = word == "delete" and self.token(at - 1) == "="
        if word in BANNED and not is_member and not is_deleted:
            self.add(at, "banned", f"{word!r}: {BANNED[word]}")

    def static_local(self, at: int) -> None:
        constant = {"constexpr", "constant"} & set(self.tokens[at : at + 6])
        if self.tokens[at] == "static" and self.in_function() and not constant:
            self.add(at, "static-local", "a function has no static variables")

    def call(self, at: int) -> None:
        word = self.tokens[at]
        follows = self.token(at + 1) == "(" or (self.token(at + 1) == "<" and self.token(at - 1) not in (".", "->"))
        if self.current and follows and WORD.match(word) and self.token(at - 1) not in (".", "->"):
            self.current.calls.add(word)

    def program_scope(self, at: int) -> None:
        ends_declarator = self.tokens[at] in ("=", ";")
        if not ends_declarator or not self.at_program_scope():
            return
        head = self.statement(at)
        not_a_variable = {
            "(",
            "constant",
            "using",
            "typedef",
            "struct",
            "class",
            "enum",
            "union",
            "template",
            "namespace",
            "static_assert",
            "=",
        }
        if len(head) >= 2 and not not_a_variable & set(head):
            self.add(at, "program-scope", f"a variable outside functions must be constant: {' '.join(head)[:60]}")

    def address_space(self, at: int) -> None:
        """<type> [const] (* or &) where a declaration may stand, with no address space in it"""
        if self.tokens[at] not in ("*", "&") or not re.match(r"[A-Za-z_]\w*$|[),>]$", self.token(at + 1)):
            return
        begin = at - 1
        while begin >= 0 and re.match(r"[A-Za-z_]\w*$|::$|[<>*&]$", self.tokens[begin]):
            begin -= 1
        words = self.tokens[begin + 1 : at]
        if not words or self.token(begin) not in ("(", ",", ";", "{", "}", "<") or words[0] in CONTROL_WORDS:
            return
        is_type = any(TYPE_WORD.match(word) or word in ("const", "auto") for word in words)
        if is_type and not ADDRESS_SPACES & set(words) and "operator" not in words:
            self.add(
                at,
                "address-space",
                (
                    f"pointer or reference without an address space: {' '.join(words)} {self.tokens[at]} "
                    f"{self.token(at + 1)}"
                ),
            )

    def name_clash(self, at: int) -> None:
        declares = TYPE_WORD.match(self.token(at - 1)) and self.token(at + 1) in ("=", ";", "[")
        if self.tokens[at] in METAL_NAMES and declares and self.at_program_scope():
            self.add(at, "name-clash", f"variable {self.tokens[at]!r} is named like one of Metal's own")

    def literal(self, at: int) -> None:
        if BARE_FLOAT.match(self.tokens[at]):
            self.add(at, "literal", f"floating-point literal without a suffix: {self.tokens[at]}")

    def volatile(self, at: int) -> None:
        if self.tokens[at] == "volatile":
            self.add(at, "volatile", "volatile has little meaning here; use atomics")

    # ---- rule over all functions ------------------------------------------------------------------------------------
    def recursion(self) -> None:
        for name, function in self.functions.items():
            if name and name in self.reachable(name):
                self.findings.append(
                    Finding(
                        function.line, "recursion", f"function {name!r} may call itself, or an overload of its name"
                    )
                )

    def reachable(self, name: str) -> set[str]:
        """Functions that `name` calls, directly or not."""
        found: set[str] = set()
        waiting = [name]
        while waiting:
            for callee in self.functions[waiting.pop()].calls & set(self.functions):
                if callee not in found:
                    found.add(callee)
                    waiting.append(callee)
        return found
