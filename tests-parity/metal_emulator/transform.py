"""From Metal source to the C++ that clang compiles: what a host would compile, with Metal's own syntax replaced.

The preprocessor runs first, so macros are gone. Then, token by token: kernel signatures and explicit instantiations are
read, attributes dropped, threadgroup variables bound to memory of the group, program-scope constants made static, and
half literals spelled as casts. Lines stay where they are, so messages point into the Metal source.
"""

import re
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from .overloads import drop_address_space_twins
from .signature import Binding, parse_parameters
from .tokens import after_match, is_blank, lines_only, next_significant, split_list, statement_end, tokenize
from .toolchain import METAL_HEADERS, TENSOR_HEADERS, cache_folder, run_clang_or_raise

SOURCE_NAME = "kernel.metal"
METAL_VERSION, TENSOR_VERSION = 310, 400
SUFFIXED_LITERAL = re.compile(r"((?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)(h|bf)$")
OPENCL_WORDS = ("global", "local", "private", "generic")


class Mode(Enum):
    """What the C++ is for."""

    CPU = "cpu"
    STRICT = "strict"
    PTX = "ptx"


@dataclass
class Translation:
    """The C++ text, the bindings of each kernel function, and the function behind each kernel name of the host."""

    text: str = ""
    functions: dict[str, tuple[Binding, ...]] = field(default_factory=dict)
    templates: set[str] = field(default_factory=set)
    instances: dict[str, str] = field(default_factory=dict)

    def kernels(self) -> dict[str, str]:
        """C++ expression of every kernel by the name a host asks for."""
        plain = {name: name for name in self.functions if name not in self.templates}
        return plain | self.instances

    def bindings(self, kernel: str) -> tuple[Binding, ...]:
        """Parameters of a kernel, by the name a host asks for."""
        return self.functions[base_name(self.kernels()[kernel])]


def base_name(expression: str) -> str:
    """`f` of `ns::f<float, 3>`."""
    return expression.partition("<")[0].strip().rpartition("::")[2].strip()


def stub_folder() -> Path:
    """A folder with empty files named like Metal's headers."""
    folder = cache_folder() / "empty_metal_headers"
    folder.mkdir(exist_ok=True)
    for name in (*METAL_HEADERS, *TENSOR_HEADERS):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    return folder


def preprocess(source: str, mode: Mode, include_dirs: tuple[str, ...] = ()) -> str:
    """The source after the preprocessor, with line markers."""
    arguments = ["-E", "-x", "c++", "-std=c++17", "-nostdinc", "-Wno-everything", "-I", str(stub_folder())]
    tensors = re.search(r"#\s*include\s*<metal_tensor>", source) is not None
    version = TENSOR_VERSION if tensors else METAL_VERSION
    arguments += ["-D__METAL__", f"-D__METAL_VERSION__={version}", "-D__HAVE_BFLOAT__=1"]
    arguments += ["-D__HAVE_TENSOR__=1"] if tensors else []
    if mode is Mode.CPU:
        arguments.append("-DMETAL_EMULATOR_COUNT(event)=metal_emulator_count(#event)")
    for folder in include_dirs:
        arguments += ["-I", folder]
    return run_clang_or_raise([*arguments, "-"], f'#line 1 "{SOURCE_NAME}"\n{source}')


def translate(source: str, mode: Mode, include_dirs: tuple[str, ...] = ()) -> Translation:
    """C++ of a whole Metal source."""
    tokens = tokenize(preprocess(source, mode, include_dirs))
    tokens = drop_address_space_twins(tokens, strict=mode is Mode.STRICT)
    return Translator(tokens, mode).run()


class Translator:
    """One pass over the tokens. Each step either handles the token at `at` and moves on, or leaves it to the next."""

    def __init__(self, tokens: list[str], mode: Mode) -> None:
        self.tokens = tokens
        self.mode = mode
        self.at = 0
        self.previous = ";"
        self.out: list[str] = []
        self.result = Translation()

    def run(self) -> Translation:
        steps = (
            self.blank,
            self.threadgroup_variable,
            self.instantiation,
            self.program_constant,
            self.kernel,
            self.attribute,
            self.word,
        )
        while self.at < len(self.tokens):
            for step in steps:
                if step():
                    break
        self.result.text = "".join(self.out)
        return self.result

    def emit(self, text: str, next_at: int, previous: str) -> bool:
        self.out.append(text)
        self.at = next_at
        self.previous = previous
        return True

    def starts_statement(self) -> bool:
        return self.previous in (";", "{", "}", ")")

    def blank(self) -> bool:
        token = self.tokens[self.at]
        return is_blank(token) and self.emit(token, self.at + 1, self.previous)

    def threadgroup_variable(self) -> bool:
        """threadgroup T name[N], other;  ->  references to memory of the group"""
        if self.tokens[self.at] != "threadgroup" or not self.starts_statement():
            return False
        end = self.at + 1
        while self.tokens[end] not in (";", "=", "{", "}", ")"):
            end = after_match(self.tokens, end) if self.tokens[end] in ("(", "[", "[[") else end + 1
        declarators = split_list(self.tokens[self.at + 1 : end])
        first = re.match(
            r"\s*(.*?)\b(\w+)\s*((?:\[.*\])*)\s*$", "".join(declarators[0]) if declarators else "", re.DOTALL
        )
        if self.tokens[end] != ";" or first is None or re.search(r"[*&]", first[1]):
            return False
        aligned = re.search(r"alignas\s*\(\s*(\d+)\s*\)", first[1])
        type_text = re.sub(r"alignas\s*\(\s*\d+\s*\)", "", first[1]).strip()
        text = ""
        for declarator in declarators:
            named = re.search(r"(\w+)\s*((?:\[.*\])*)\s*$", "".join(declarator), re.DOTALL)
            if named is None:
                raise ValueError(f"cannot read this threadgroup variable: {''.join(declarator).strip()}")
            text += self.group_memory(type_text, named[1], named[2], aligned[1] if aligned else None)
        return self.emit(text + lines_only(self.tokens[self.at : end]), end + 1, ";")

    def group_memory(self, type_text: str, name: str, dimensions: str, alignment: str | None) -> str:
        """Declaration of one threadgroup variable."""
        kind = f"threadgroup_type_{name}"
        declare = f"typedef {type_text} {kind} {dimensions}; "
        if self.mode is Mode.STRICT:
            return declare + f"threadgroup {kind}& {name} = *(threadgroup {kind}*)0; "
        align = alignment or f"alignof({kind})"
        if self.mode is Mode.PTX:
            raw = (
                f"static __attribute__((shared)) __attribute__((aligned(16))) char "
                f"threadgroup_bytes_{name}[sizeof({kind})]; "
            )
            return declare + raw + f"{kind}& {name} = *({kind}*)threadgroup_bytes_{name}; "
        key = f"static char threadgroup_key_{name}; "
        return (
            declare
            + key
            + (
                f"{kind}& {name} = metal_emulator::threadgroup_variable<{kind}>(threadgroup_key_{name}, "
                f'{align}, "{name}"); '
            )
        )

    def instantiation(self) -> bool:
        """template [[host_name("x")]] [[kernel]] decltype(f<..>) f<..>;  or  ... void f<..>(...);"""
        tokens = self.tokens
        if tokens[self.at] != "template" or tokens[next_significant(tokens, self.at + 1)] != "[[":
            return False
        end = statement_end(tokens, self.at)
        attributes = ""
        rest = []
        at = self.at + 1
        while at < end:
            if tokens[at] == "[[":
                attributes += "".join(tokens[at : after_match(tokens, at)])
                at = after_match(tokens, at)
            else:
                rest += [tokens[at]] if not tokens[at].startswith("#") else []
                at += 1
        expression = instantiated(rest)
        quoted = re.search(r"host_name\s*\(((?:\s*\"[^\"]*\"\s*)+)\)", attributes)
        host_name = "".join(re.findall(r'"([^"]*)"', quoted[1])) if quoted else expression
        self.result.instances[host_name] = expression
        if self.mode is Mode.STRICT:
            return self.emit("template ", self.at + 1, "template")
        return self.emit(lines_only(tokens[self.at : end]), end + 1, ";")

    def program_constant(self) -> bool:
        """constant T name = ...;  ->  static const T name = ...;  (a pointer or reference to constant stays)"""
        if self.tokens[self.at] != "constant" or not self.starts_statement() or self.mode is Mode.STRICT:
            return False
        end = statement_end(self.tokens, self.at)
        declaration = "".join(self.tokens[self.at : end])
        if "function_constant" in declaration:
            raise ValueError(f"function constants are not supported: {declaration.strip()}")
        if re.search(r"[*&]", declaration.partition("=")[0]):
            return False
        words = "static " if re.search(r"\bconst(expr)?\b", declaration.partition("=")[0]) else "static const "
        return self.emit(words, self.at + 1, "static")

    def kernel(self) -> bool:
        """Reads a kernel's parameters; the word or attribute becomes `static`, so unused kernels cost nothing."""
        tokens = self.tokens
        token = tokens[self.at]
        is_attribute = token == "[[" and "kernel" in tokens[self.at : after_match(tokens, self.at)]
        if token != "kernel" and not is_attribute:
            return False
        after = after_match(tokens, self.at) if is_attribute else self.at + 1
        if "(" not in tokens[after:]:
            return False  # a declaration without parameters declares no kernel
        open_at = tokens.index("(", after)
        head = re.sub(r"\[\[.*?\]\]", "", "".join(tokens[after:open_at]), flags=re.DOTALL)
        name = re.match(r"\s*void\s+(\w+)\s*$", head)
        if name:
            close_at = after_match(tokens, open_at) - 1
            self.result.functions[name[1]] = parse_parameters(name[1], tokens[open_at + 1 : close_at])
            if self.previous == ">":  # template <...> kernel void ...
                self.result.templates.add(name[1])
        word = "static" if name and self.mode is not Mode.STRICT else ""
        return self.emit(word + lines_only(tokens[self.at : after]), after, "static")

    def attribute(self) -> bool:
        if self.tokens[self.at] != "[[":
            return False
        after = after_match(self.tokens, self.at)
        return self.emit(lines_only(self.tokens[self.at : after]), after, self.previous)

    def word(self) -> bool:
        token = self.tokens[self.at]
        literal = SUFFIXED_LITERAL.match(token)
        if literal:
            digits = literal[1] if re.search(r"[.eE]", literal[1]) else literal[1] + "."
            text = f"(({'half' if literal[2] == 'h' else 'bfloat'}){digits}f)"
        elif self.mode is Mode.STRICT and token in OPENCL_WORDS and not self.is_access_word():
            text = token + "_word"
        elif self.mode is Mode.STRICT and token == "thread" and self.is_constructor_space():
            text = ""
        else:
            text = token
        return self.emit(text, self.at + 1, token)

    def is_access_word(self) -> bool:
        return self.tokens[self.at] == "private" and self.tokens[next_significant(self.tokens, self.at + 1)] == ":"

    def is_constructor_space(self) -> bool:
        """`thread` between a constructor's parameters and its initialisers, which clang's OpenCL mode cannot take"""
        return self.previous == ")" and self.tokens[next_significant(self.tokens, self.at + 1)] == ":"


def instantiated(tokens: list[str]) -> str:
    """`f<float>` of `decltype(f<float>) f<float>` or `void f<float>(device float*)`."""
    tokens = [token for token in tokens if not token.isspace() and token != "kernel"]
    if tokens[0] == "decltype":
        return " ".join(tokens[after_match(tokens, 1) :])
    if tokens[0] != "void":
        raise ValueError(f"not an instantiation of a kernel: {' '.join(tokens)}")
    depth = 0
    for i, token in enumerate(tokens):
        if token == "(" and depth == 0:
            return " ".join(tokens[1:i])
        depth += {"<": 1, ">": -1}.get(token, 0)
    raise ValueError(f"not an instantiation of a kernel: {' '.join(tokens)}")
