"""Keep answers, so that no request is sent twice, and the captions that a dataset had before.

A dataset folder has ``.captions/<key>.json`` with the answer to one request, and per clip
``{train,val}/captions/<clip>.json`` with the dataset's own caption and the digest of the one that
replaced it in ``metas/``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from video2world_common.exit_codes import UserError
from video2world_common.files import read_json, write_json, write_text
from video2world_common.markers import read_owner
from video2world_common.paths import on_volume
from video2world_common.user_text import caption_in

__all__ = ["FOLDER", "Answers", "ClipCaption", "digest", "restore_own_captions"]

FOLDER = "captions"


def digest(value: object) -> str:
    """Hash a JSON value to 32 hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


class Answers:
    """The accepted answers in a dataset folder, by the digest of what was asked."""

    def __init__(self, dataset: Path) -> None:
        self.folder = dataset / ".captions"

    def get(self, key: str) -> str | None:
        """Return the caption that answered the request ``key``, or None."""
        try:
            return caption_in(self._value(key)["caption"].encode())
        except (ValueError, LookupError, TypeError, AttributeError):
            return None

    def _value(self, key: str) -> Any:
        return read_json(on_volume(self.folder / f"{key}.json"))

    def put(self, key: str, caption: str, model: str) -> None:
        """Keep the answer to the request ``key``."""
        write_json(self.folder / f"{key}.json", {"caption": caption, "model": model})


@dataclass(frozen=True)
class ClipCaption:
    """The caption in ``metas/`` of a clip, and the dataset's own that it replaced.

    ``by_hand``: someone edited the caption after it was replaced; it is to be kept.
    """

    meta: Path
    own: str
    by_hand: bool

    @classmethod
    def read(cls, split: Path, clip: str) -> ClipCaption:
        """Read the state of a clip; a missing caption is empty.

        Raises:
            ValueError: the caption is not text.
        """
        meta = split / "metas" / f"{clip}.txt"
        text = _text(meta)
        own, made = _record(split, clip)
        if own is None or text in ("", own):
            return cls(meta, text or own or "", False)
        return cls(meta, own, digest(text) != made)

    def replace(self, split: Path, caption: str) -> None:
        """Write ``caption`` in place of the current one, after recording the dataset's own."""
        record = {"own": self.own, "made": digest(caption)}
        path = split / FOLDER / f"{self.meta.stem}.json"
        if _record(split, self.meta.stem) != (record["own"], record["made"]):
            write_json(path, record)
        if _text(self.meta) != caption:
            write_text(self.meta, caption)

    def restore(self, split: Path) -> None:
        """Put the dataset's own caption back, unless the current one was edited by hand."""
        if not self.by_hand and _text(self.meta) != self.own:
            write_text(self.meta, self.own)
        (split / FOLDER / f"{self.meta.stem}.json").unlink(missing_ok=True)


def _text(meta: Path) -> str:
    try:
        return caption_in(on_volume(meta).read_bytes())
    except FileNotFoundError:
        return ""
    except ValueError as error:
        if str(error).startswith("is empty"):
            return ""
        raise ValueError(f"its caption {meta.name} {error}") from None


def _record(split: Path, clip: str) -> tuple[str | None, str]:
    """Return the dataset's own caption and the digest of its replacement; None without record."""
    try:
        record = read_json(on_volume(split / FOLDER / f"{clip}.json"))
        if isinstance(record["own"], str) and isinstance(record["made"], str):
            return record["own"], record["made"]
    except (ValueError, LookupError, TypeError):
        pass
    return None, ""


def restore_own_captions(split: Path) -> int:
    """Undo what a captions stage replaced in ``split``, as the resource no longer has that stage.

    What was replaced by hand (without a resource) is kept.

    Returns:
        The number of clips with restored captions.
    """
    folder = split / FOLDER
    if not read_owner(folder).get("resource"):
        return 0
    restored = 0
    for path in folder.glob("[!.]*.json"):
        with contextlib.suppress(ValueError, UserError):  # reported when it is read
            ClipCaption.read(split, path.stem).restore(split)
            restored += 1
    return restored
