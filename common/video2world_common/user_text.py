"""Read captions and JSON that users write: UTF-8, with or without a byte order mark."""

from __future__ import annotations

import codecs
import json
import unicodedata
from typing import Any

__all__ = ["caption_in", "checked_caption", "decode", "parse_json"]

OTHER_ENCODINGS = {  # UTF-32 first, whose marks start like those of UTF-16
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
BLANK = "\u115f\u1160\u2800\u3164\uffa0"  # letters and symbols without a visible glyph
EDGES = "\ufeff\u200b\u2060\0 \t\r\n\v\f"  # invisible characters to strip around a text


def decode(data: bytes) -> str:
    """Decode UTF-8 text, dropping a byte order mark.

    Raises:
        ValueError: another encoding; the message completes "the file ...".
    """
    for mark, name in OTHER_ENCODINGS.items():
        if data.startswith(mark):
            raise ValueError(f"is not UTF-8 text but {name}; save it as UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 text; save it as UTF-8 (byte {error.start})") from None
    if "\0" in text:
        raise ValueError("is not UTF-8 text but has NUL bytes, as UTF-16 does; save it as UTF-8")
    return text


def checked_caption(value: object) -> str:
    """Return ``value`` as a caption, without invisible characters around it.

    Raises:
        ValueError: not a text, or nothing visible in it; the message completes "the caption ...".
    """
    if not isinstance(value, str):
        raise ValueError(f"is not a text but {_kind(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("has half of a surrogate pair, which is not valid text") from None
    text = value.strip().strip(EDGES).strip()
    if not any(unicodedata.category(c)[0] in "LNPS" and c not in BLANK for c in text):
        raise ValueError("is empty" if not text else "is empty (it has invisible characters only)")
    return text


def caption_in(data: bytes) -> str:
    """Return the caption in a caption file with the content ``data``.

    Raises:
        ValueError: there is none; the message completes "the file ...".
    """
    try:
        return checked_caption(decode(data))
    except ValueError as error:
        words = str(error)
        hint = "; write what the video shows" if words.startswith("is empty") else ""
        raise ValueError(words + hint) from None


def parse_json(text: str | bytes) -> Any:
    """Parse one JSON value.

    Raises:
        ValueError: not JSON; the message recognizes JSON Lines.
    """
    text = decode(text) if isinstance(text, bytes) else text
    try:
        # int() fails for numbers of thousands of digits, for which the whole file would be refused
        return json.loads(text, parse_int=lambda s: int(s) if len(s) < 1000 else float(s))
    except RecursionError:
        raise ValueError("is not valid JSON: it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"is not valid JSON: {error}{_lines_hint(text)}") from None


def _lines_hint(text: str) -> str:
    """Explain how to fix a file of JSON Lines."""
    lines = [line for line in text.split("\n") if line.strip()][:2]
    try:
        values = [json.loads(line) for line in lines]
    except (ValueError, RecursionError):
        return ""
    if len(values) < 2 or not all(isinstance(value, dict | list) for value in values):
        return ""
    return (
        "; it has one JSON value per line (JSON Lines): put [ before the first, ] after the last, "
        "and commas between them"
    )


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
