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
_LINK = re.compile(r"(?<=\]\()([^)#:]+)")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages, their links turned to where the targets lie in the site."""
    for source, page in PAGES.items():
        text = _LINK.sub(lambda match: _moved(match[1]), (ROOT / source).read_text())
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(text: str, page: Any, config: Any, files: Any) -> str:
    """Turn links out of docs/ to the pages that stand for their targets."""
    return _LINK.sub(lambda match: PAGES.get(match[1].removeprefix("../"), match[1]), text)


def _moved(target: str) -> str:
    return PAGES.get(target, target.removeprefix("docs/"))
