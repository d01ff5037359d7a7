"""Strict check: the language rules of Metal, through clang's C++ for OpenCL front end with real address spaces.

Nothing is executed. Every explicit instantiation is checked; a template without one only as far as it can be parsed.
"""

import re
from collections.abc import Sequence

from .build import shim_flags
from .findings import Finding
from .toolchain import require, run_clang
from .transform import SOURCE_NAME, Mode, translate

FLAGS = (
    "-x",
    "clcpp",
    "-cl-std=clc++2021",
    "-target",
    "x86_64-unknown-linux-gnu",
    "-DMETAL_EMULATOR_STRICT",
    "-nostdinc",
    "-cl-no-stdinc",
    "-fsyntax-only",
    "-ferror-limit=0",
    "-Xclang",
    "-cl-single-precision-constant",
    "-Wno-everything",
    # float -> bfloat is implicit in clang and an error in Metal
    "-Wimplicit-float-conversion",
)
DIAGNOSTIC = re.compile(r"^(?P<file>[^\n:]+):(?P<line>\d+):\d+: (?P<level>error|warning|note): (?P<message>.*)$")
# The first rule whose words occur in clang's message; anything else is "language"
RULES = (
    ("address-space", re.compile(r"address space|__private|__global|__local|__constant|__generic")),
    ("const", re.compile(r"const-qualified|read-only|drops? .*const")),
    (
        "conversion",
        re.compile(
            r"no viable|cannot convert|cannot initialize|no matching|candidate|incompatible type|call to "
            r"deleted|ambiguous"
        ),
    ),
)


def check(source: str, include_dirs: Sequence[str] = ()) -> list[Finding]:
    """Everything in a Metal source that clang's front end rejects; empty if the source is clean.

    Rules: address-space, const, conversion, bfloat, language. Raises CompileError if the preprocessor fails.
    """
    require()
    translation = translate(source, Mode.STRICT, tuple(map(str, include_dirs)))
    text = f'#include <metal.h>\n#line 1 "{SOURCE_NAME}"\n{translation.text}'
    done = run_clang([*FLAGS, *shim_flags(), "-"], text)
    return sorted(set(read_diagnostics(done.stderr)))


def read_diagnostics(output: str) -> list[Finding]:
    """Findings in clang's output. An error inside the shim is reported at the line of the source that led there."""
    findings = []
    pending = ""
    for line in output.splitlines():
        match = DIAGNOSTIC.match(line)
        if match is None:
            continue
        in_source = match["file"].rpartition("/")[2] == SOURCE_NAME
        message = match["message"]
        if match["level"] == "warning":
            if re.search(r"to '[^']*(bfloat|__bf16)'", message):
                findings.append(Finding(int(match["line"]), "bfloat", "float to bfloat must be written out: bfloat(x)"))
        elif match["level"] == "error":
            if pending:
                findings.append(Finding(0, rule_of(pending), pending))
            pending = "" if in_source else message
            if in_source:
                findings.append(Finding(int(match["line"]), rule_of(message), message))
        elif pending and in_source:
            findings.append(Finding(int(match["line"]), rule_of(pending), pending))
            pending = ""
    if pending:
        findings.append(Finding(0, rule_of(pending), pending))
    return findings


def rule_of(message: str) -> str:
    """The rule that one of clang's messages belongs to."""
    for rule, words in RULES:
        if words.search(message):
            return rule
    return "language"
