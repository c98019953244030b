"""Read and check a batch of samples, the guide's ``--batch_input_json``."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from video2world_common.events import say
from video2world_common.exit_codes import UserError

__all__ = ["NUMBERS", "check_number", "read_batch"]


def _is_seed(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**32


def _is_guidance(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value >= 0


def _is_step_count(value: Any) -> bool:
    return type(value) is int and value >= 1


def _is_frame_count(value: Any) -> bool:
    return type(value) is int and value in (1, 5)


NUMBERS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "seed": (_is_seed, "from 0 to 2**32 - 1"),
    "guidance": (_is_guidance, "0 or more"),
    "num_steps": (_is_step_count, "at least 1"),
    "num_conditional_frames": (_is_frame_count, "1 or 5"),
}
"""Numeric flags that an entry may override: a check, and the allowed values for messages."""

_TEXTS = ("input_video", "prompt", "negative_prompt", "output_video", "actions")


def check_number(name: str, value: Any, where: str) -> None:
    """Check the value of the flag or key ``name``.

    Raises:
        UserError: the value is out of range; the message begins with ``where``.
    """
    is_valid, allowed = NUMBERS[name]
    if not is_valid(value):
        raise UserError(f"{where} {value}: {allowed}")


def read_batch(path: Path) -> list[dict[str, Any]]:
    """Read the entries of a batch file: a JSON list, or JSON Lines.

    Unknown keys are reported and ignored.

    Raises:
        UserError: the file or an entry is invalid; the message names the entry and the key.
    """
    entries = _parse(path)
    if not entries:
        raise UserError(f"{path}: the list is empty; name at least one input_video")
    for number, entry in enumerate(entries):
        _check_entry(entry, f"{path}: entry {number}")
    known = (*_TEXTS, *NUMBERS)
    for key in dict.fromkeys(key for entry in entries for key in entry if key not in known):
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.7)
        hint = f"; did you mean {near[0]}?" if near else ""
        say(f"note: {path}: the key {key} is not read{hint} (known: {', '.join(known)})")
    return entries


def _parse(path: Path) -> list[Any]:
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
                f"--batch_input_json {path} is neither a JSON list nor JSON Lines, one object per "
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
            remedy = "; write one entry for each" if isinstance(value, list) else ""
            raise UserError(f"{where}: {key} must be a string, not {kind}{remedy}")
    for key in NUMBERS:
        if entry.get(key) is not None:
            check_number(key, entry[key], f"{where}: {key}")
