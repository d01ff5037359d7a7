"""The swizzle members of vectors (v.xy, v.zyx, v.rgba, ...), written as macros for shim/vector.h."""

import itertools

LETTERS = ("xyzw", "rgba")


def swizzle_members(width: int) -> list[str]:
    """Declarations of every swizzle of 2 to 4 letters of a vector of `width` components."""
    members = []
    for letters in LETTERS:
        for length in (2, 3, 4):
            for picks in itertools.product(range(width), repeat=length):
                name = "".join(letters[pick] for pick in picks)
                indices = ", ".join(map(str, picks))
                members.append(f"::metal::swizzle<T, {width}, {indices}> {name};")
    return members


def swizzle_header() -> str:
    """Text of the header that shim/vector.h includes as swizzles.h."""
    text = "#pragma once\n"
    for width in (2, 3, 4):
        text += f"#define METAL_EMULATOR_SWIZZLES_{width}(T) " + " ".join(swizzle_members(width)) + "\n"
    return text
