"""List the usable entries of a folder that users fill, and report why others are unusable."""

from __future__ import annotations

import difflib
import os
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from video2world_common.files import PARTIAL_PREFIX
from video2world_preprocess.stage_report import Report

__all__ = ["entries", "nearest", "normalized", "usable_files", "why_unusable"]


def entries(folder: Path) -> list[Path]:
    """Return the entries of ``folder`` by name, without partial files; none if it is missing."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if not p.name.startswith(PARTIAL_PREFIX))


def why_unusable(path: Path) -> str | None:
    """Return why ``path`` is unusable regardless of its content, or None."""
    name = path.name
    try:
        name.encode()
    except UnicodeEncodeError:
        return "its name is not UTF-8; rename it"
    if any(unicodedata.category(letter) in ("Cc", "Zl", "Zp") for letter in name):
        return "its name has control characters, such as a line break; rename it"
    if name.startswith("."):
        return "it is hidden because its name begins with a dot; rename it to use it"
    try:
        if path.is_dir():
            return "it is a folder, and subfolders are not read; move its files up"
        if path.is_symlink() and not path.exists():
            return f"it is a broken link to {path.readlink()}; copy the file itself here"
        if not path.is_file():
            return "it is not a regular file; copy the file itself here"
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    if not os.access(path, os.R_OK):
        return (
            "it cannot be read (permission denied); make it readable by the stage's user or group"
        )
    return None


def usable_files(folder: Path, label: str, suffix: str, kind: str, report: Report) -> list[Path]:
    """Return the files of ``folder`` that end in ``suffix``; report all other entries.

    ``label`` stands for the folder in the report, and ``kind`` says what a file is.
    """
    found = []
    for path in entries(folder):
        reason = why_unusable(path)
        if reason is None and path.suffix != suffix:
            if path.suffix.lower() == suffix:
                reason = (
                    f"its name ends in {path.suffix}, but only {suffix} is read; rename it to "
                    f"{path.stem}{suffix}"
                )
            else:
                report.note("file", f"{label}/{path.name}", f"is not read: not a {suffix} file")
                continue
        if reason is None:
            found.append(path)
        elif path.name.startswith(".") and path.suffix.lower() != suffix:
            report.note("file", f"{label}/{path.name}", f"is not read: {reason}")
        else:
            report.drop(kind, f"{label}/{path.name}", reason)
    return found


def normalized(name: str) -> str:
    """Return ``name`` in Unicode's composed form (NFC), so that equal-looking names are equal."""
    return unicodedata.normalize("NFC", name)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the one of ``known`` that ``name`` probably means, or None."""
    names = list(known)
    if name.isdigit():
        for other in names:
            if other.isdigit() and int(other) == int(name):
                return other
    for other in names:
        if normalized(other).casefold() == normalized(name).casefold():
            return other
    close: Sequence[str] = difflib.get_close_matches(name, names, 1, 0.8)
    return close[0] if close else None
