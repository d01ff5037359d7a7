"""For mkdocstrings: what it does not know about this project's docstrings.

Roles such as :func:`na2d` become links where the API pages document the name. An entry that lists several arguments on
more than one line gets them on one, because only the first line of an entry is searched for names.
"""

import re

import griffe

ROLE = re.compile(r":(?:func|class|meth|mod|attr|data):`~?([\w.]+)`")
WRAPPED = re.compile(r"^( {4}(?:\*{0,2}\w+, ?)+)\n +(?=(?:\*{0,2}\w+,\s+)*\*{0,2}\w+:)", re.MULTILINE)
HOMES = ("", "varlen.", "distributed.", "compat.", "extras.allin1.")


def documented(package: griffe.Module, name: str) -> str | None:
    """The public path of a name as a docstring writes it, or None."""
    name = name.removeprefix(f"{package.name}.")
    for home in HOMES:
        parts = f"{home}{name}".split(".")
        where: griffe.Object | griffe.Alias = package
        for part in parts:
            if part not in where.members:
                break
            where = where.members[part]
        else:
            return f"{package.name}.{home}{name}"
    return None


class Roles(griffe.Extension):
    """Rewrites the docstrings of a package that was loaded."""

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **kwargs: object) -> None:
        """pkg: with all its modules, none of them imported."""

        def link(role: re.Match[str]) -> str:
            path = documented(pkg, role[1])
            return f"[`{role[1].split('.')[-1]}`][{path}]" if path else f"`{role[1]}`"

        waiting: list[griffe.Object] = [pkg]
        while waiting:
            each = waiting.pop()
            if each.docstring:
                text, wrapped = each.docstring.value, 1
                while wrapped:
                    text, wrapped = WRAPPED.subn(lambda names: f"{names[1].rstrip()} ", text)
                each.docstring.value = ROLE.sub(link, text)
            waiting += [member for member in each.members.values() if isinstance(member, griffe.Object)]
