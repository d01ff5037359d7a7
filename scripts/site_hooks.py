"""Hooks of mkdocs: links that leave docs/, what griffe cannot read, the page of `viz`, and that nothing is loaded from
elsewhere.
"""

import logging
import posixpath
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "shared-metal"))

from natten_metal.viz.page import page as viz_page  # noqa: E402

# The screenshot in docs/viz.md, in whose place the site shows the page itself, and its file there.
SCREENSHOT, PAGE_FILE = re.compile(r"^!\[The page: .*\]\(viz\.png\)$", re.MULTILINE), "windows.html"
SHOWN = f"""
[Open it on its own]({PAGE_FILE}){{ .md-button }}

<iframe src="../{PAGE_FILE}" title="The page of viz" style="width: 100%; height: 1100px; border: 0"></iframe>
"""
LINK = re.compile(r"\[([^\]]+)\]\(((?:\.\./)+[^)#\s]*)([^)]*)\)")
BOTH = re.compile(r"^::: both\.(\S+)$", re.MULTILINE)
ELSEWHERE = r"[\"']?(?:https?:)?//"
LOADED = re.compile(
    rf"<(?:script|img|iframe|source)\b[^>]*\ssrc={ELSEWHERE}|<link rel=\"stylesheet\"[^>]*href={ELSEWHERE}"
)


def repository() -> str | None:
    """The project's address, from the packages' metadata, where it stands once; None if it is not set."""
    with open(ROOT / "packages" / "natten-mps" / "pyproject.toml", "rb") as file:
        urls = tomllib.load(file)["project"].get("urls", {})
    return next((url.rstrip("/") for name, url in urls.items() if name.lower() in ("repository", "source")), None)


def side_by_side(entry: re.Match[str]) -> str:
    """`::: both.na2d`: a heading, and the name as each package documents it, in tabs."""
    name = entry[1]
    tabs = [
        f'=== "{package.replace("_", "-")}"\n\n    ::: {package}.{name}\n' for package in ("natten_mps", "natten_mlx")
    ]
    return "\n".join([f"### {name.removeprefix('modules.')}\n", *tabs])


def on_startup(**_: Any) -> None:
    """The packages' `__all__` holds names that are computed; their stubs for type checkers are what griffe reads."""
    unread = "Unsupported item in"
    logging.getLogger("mkdocs.plugins.griffe").addFilter(lambda record: unread not in record.getMessage())


def on_config(config: Any) -> Any:
    """The address of the repository, for the link in the header."""
    config.repo_url = repository()
    return config


def on_files(files: Any, config: Any) -> Any:
    """The page of ``natten-mps viz --page`` is a file of the site."""
    files.append(File.generated(config, PAGE_FILE, content=viz_page()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links to files outside docs/ lead to the repository; mkdocs checks those inside."""
    here = posixpath.dirname(f"docs/{page.file.src_uri}")

    def outside(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(here, link[2]))
        if path.startswith("docs/"):
            return link[0]
        if not (ROOT / path).exists():
            raise FileNotFoundError(f"{page.file.src_uri} links to {path}, which does not exist")
        address = repository()
        return f"[{link[1]}]({address}/blob/main/{path}{link[3]})" if address else link[1]

    return BOTH.sub(side_by_side, LINK.sub(outside, SCREENSHOT.sub(SHOWN, markdown)))


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Readers' browsers ask no other host for anything."""
    found = LOADED.search(output)
    if found:
        raise ValueError(f"{page.file.src_uri} loads {found[0]!r} from another host")
    return output
