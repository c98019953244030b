"""Add the pages in the repository's root to the documentation site (mkdocs hook)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "start.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
_LINK = re.compile(r"(!?\[[^\]]*\])\(([^)#:\s]+)([^):\s]*)\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages, with their links rewritten for the site."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text()
        files.append(File.generated(config, page, content=_rewrite_links(text, ROOT)))
    return files


def on_page_markdown(text: str, page: Any, config: Any, files: Any) -> str:
    """Rewrite links that lead out of docs/."""
    source = page.file.abs_src_path
    return _rewrite_links(text, Path(source).parent) if source else text


def _rewrite_links(text: str, folder: Path) -> str:
    """Rewrite the links of a page in ``folder`` for the site.

    Links to root pages lead to their copies in the site; of links to files that are no pages only
    the text stays. Other links are left to mkdocs, which checks them.
    """

    def rewrite(match: re.Match[str]) -> str:
        words, target, anchor = match.groups()
        path = (folder / target).resolve()
        if path.parent == ROOT and path.name in PAGES:
            return f"{words}({PAGES[path.name]}{anchor})"
        if path.is_relative_to(ROOT / "docs"):
            moved = path.relative_to(ROOT / "docs") if folder == ROOT else target
            return f"{words}({moved}{anchor})"
        return words.lstrip("!")[1:-1] if path.exists() else match[0]

    return _LINK.sub(rewrite, text)
