"""Hooks of mkdocs: README.md is the start page, and files that lie outside docs/ become pages and pictures of the site.

mkdocs takes pages from docs/ alone. README.md, CONTRIBUTING.md, CHANGELOG.md and kernels/README.md stay where a reader
of the repository expects them; here their links are written as the site needs them.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "kernels/README.md": "kernels.md",
}
_PICTURES = "benchmarks/results"
_LINK = re.compile(r"(\]\()([^)#\s]+)((?:#[^)\s]*)?\))")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages and pictures that lie outside docs/."""
    for source, target in PAGES.items():
        files.append(File.generated(config, target, content=rewrite_links((ROOT / source).read_text("utf-8"), source)))
    for picture in sorted((ROOT / _PICTURES).glob("*.png")):
        files.append(File.generated(config, f"{_PICTURES}/{picture.name}", abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Return the text of a page of docs/ with links out of docs/ as the site needs them."""
    source = page.file.src_uri
    return markdown if source in PAGES.values() else rewrite_links(markdown, f"docs/{source}")


def rewrite_links(text: str, source: str) -> str:
    """Return `text` with each link to a file of the repository as a link between pages of the site.

    Args:
        source: the file's path in the repository.
    """
    page = PurePosixPath(_to_site(source))

    def change(match: re.Match[str]) -> str:
        link = match[2]
        if "://" in link or link.startswith("mailto:"):
            return match[0]
        target = (ROOT / source).parent.joinpath(link).resolve()
        if not target.is_relative_to(ROOT):
            return match[0]
        site = PurePosixPath(_to_site(target.relative_to(ROOT).as_posix()))
        up = "../" * (len(page.parts) - 1)
        return f"{match[1]}{up}{site}{match[3]}"

    return _LINK.sub(change, text)


def _to_site(path: str) -> str:
    """Return where the site has a file of the repository."""
    return PAGES.get(path, path.removeprefix("docs/"))
