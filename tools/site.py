"""What the site of mkdocs.yml has beside docs/: pages that lie in the repository's root."""

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
    """Add the pages, their links turned to where the targets lie in the site."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text()
        files.append(File.generated(config, page, content=_turned(text, ROOT)))
    return files


def on_page_markdown(text: str, page: Any, config: Any, files: Any) -> str:
    """Turn links out of docs/ too."""
    place = page.file.abs_src_path
    return _turned(text, Path(place).parent) if place else text


def _turned(text: str, folder: Path) -> str:
    """``text`` of a page in ``folder``: links to root pages lead to those in the site; of a link to
    a file that is no page the text stays; the rest is left to mkdocs, which checks it."""

    def turn(match: re.Match[str]) -> str:
        words, target, anchor = match.groups()
        path = (folder / target).resolve()
        if path.parent == ROOT and path.name in PAGES:
            return f"{words}({PAGES[path.name]}{anchor})"
        if path.is_relative_to(ROOT / "docs"):
            moved = path.relative_to(ROOT / "docs") if folder == ROOT else target
            return f"{words}({moved}{anchor})"
        return words.lstrip("!")[1:-1] if path.exists() else match[0]

    return _LINK.sub(turn, text)
