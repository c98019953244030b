"""Write generated files, or compare them with what they should be."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

__all__ = ["generate"]


def generate(files: Mapping[Path, str], *, check: bool) -> int:
    """Write ``files``; with ``check`` return 1 instead if one is not up to date."""
    for path, text in files.items():
        if check:
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                print(f"error: {path} is not up to date; run make generate", file=sys.stderr)
                return 1
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path}")
    return 0
