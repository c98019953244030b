"""Format the tables of generated pages."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["HEAD", "table"]

HEAD = "<!-- Generated from the code by `make generate`; do not edit. -->\n"


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """Format a Markdown table."""
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(map(_cell, line))} |\n" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
