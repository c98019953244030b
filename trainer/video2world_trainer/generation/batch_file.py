"""Read a batch of samples, the guide's ``--batch_input_json``, and say what is wrong with it."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from video2world_common.events import say
from video2world_common.exit_codes import UserError

__all__ = ["FLAGS", "check_flag", "read_batch"]


def _seed(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**32


def _guidance(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value >= 0


def _steps(value: Any) -> bool:
    return type(value) is int and value >= 1


def _frames(value: Any) -> bool:
    return type(value) is int and value in (1, 5)


FLAGS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "seed": (_seed, "from 0 to 2**32 - 1"),
    "guidance": (_guidance, "0 or more"),
    "num_steps": (_steps, "at least 1"),
    "num_conditional_frames": (_frames, "1 or 5"),
}
"""Numbers that an entry may set for itself as the flags do for all, with what they must be."""

_TEXTS = ("input_video", "prompt", "negative_prompt", "output_video")


def check_flag(name: str, value: Any, where: str) -> None:
    """Refuse a value that the flag ``name`` cannot have.

    Raises:
        UserError: it is out of range; the message begins with ``where``.
    """
    fits, wanted = FLAGS[name]
    if not fits(value):
        raise UserError(f"{where} {value}: {wanted}")


def read_batch(path: Path) -> list[dict[str, Any]]:
    """Return the entries of a batch file: a JSON list, or JSON Lines.

    Unknown keys are named and passed over.

    Raises:
        UserError: the file or an entry is damaged; the message names the entry and the key.
    """
    entries = _parsed(path)
    if not entries:
        raise UserError(f"{path}: the list is empty; name at least one input_video")
    for number, entry in enumerate(entries):
        _check_entry(entry, f"{path}: entry {number}")
    unknown = {key: None for entry in entries for key in entry if key not in (*_TEXTS, *FLAGS)}
    for key in unknown:
        near = difflib.get_close_matches(key, (*_TEXTS, *FLAGS), n=1, cutoff=0.7)
        hint = f"; did you mean {near[0]}?" if near else ""
        say(
            f"note: {path}: the key {key} is not read{hint} (known: {', '.join((*_TEXTS, *FLAGS))})"
        )
    return entries


def _parsed(path: Path) -> list[Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise UserError(f"--batch_input_json {path} cannot be read ({error})") from None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        try:
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        except (ValueError, RecursionError):
            raise UserError(
                f"--batch_input_json {path} is neither a JSON list nor JSON Lines, one object a "
                f"line ({error})"
            ) from None
    if isinstance(value, dict):  # JSON Lines of one line
        return [value]
    if not isinstance(value, list):
        raise UserError(
            f"--batch_input_json {path}: it must be a list of objects with input_video and prompt"
        )
    return value


def _check_entry(entry: Any, where: str) -> None:
    if not isinstance(entry, dict):
        raise UserError(f"{where}: this must be an object with input_video and prompt")
    if not entry.get("input_video"):
        raise UserError(f"{where}: input_video is missing: name the image or video to start from")
    for key in _TEXTS:
        value = entry.get(key)
        if value is not None and not isinstance(value, str):
            kind = "a list" if isinstance(value, list) else f"{json.dumps(value)[:40]}"
            many = "; write an entry for each" if isinstance(value, list) else ""
            raise UserError(f"{where}: {key} must be a text, not {kind}{many}")
    for key in FLAGS:
        if entry.get(key) is not None:
            check_flag(key, entry[key], f"{where}: {key}")
