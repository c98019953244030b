"""Accept an endpoint's answer as a caption, or say why it is none.

An answer is untrusted text: the endpoint may be wrong, and what a video shows may itself be a text
that instructs the model.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable

from video2world_common.user_text import checked_caption

__all__ = ["MAX_TOKENS", "InvalidAnswer", "caption_of"]

MAX_TOKENS = 512  # T5 reads no more: a longer caption would lose its end
MAX_CHARACTERS = 8000  # more than any 512 tokens; bounds the work on hostile answers

_REASONING = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)
_FAULTS = (  # of the text with its line breaks; the first match counts
    (r"```|~~~", "has a code fence"),
    (r"(?i)\bhttps?://|\bwww\.\w", "has a URL"),
    (r"(?i)<\|[a-z_]+\|>|\[/?INST\]|<</?SYS>>|<start_of_turn>", "has a role marker of a chat"),
    (
        r"(?im)^\W*(system|assistant|user|human|developer|instructions?)\W*:",
        "has a role marker of a chat",
    ),
    (
        r"(?i)\b(ignore|disregard|forget)\b[^.]{0,40}\b(instructions?|prompts?|rules|above)\b",
        "has instructions to a model",
    ),
    (r"(?i)\bas an? (AI|language model|assistant)\b|\b(AI|language) model\b", "speaks of itself"),
    (
        r"(?i)\A\W*(I['’]?m sorry|I am sorry|sorry|I can(no|['’])t|I can not|I['’]?m unable|"
        r"I am unable|unfortunately)\b",
        "is a refusal",
    ),
    (
        r"(?i)\A\W*(sure|certainly|of course|absolutely|okay|here('s| is| are)|caption:)\b",
        "begins with a phrase that is not part of a caption",
    ),
    (r"</?[A-Za-z][^<>]*>|<!--", "has markup"),
    (r"(?m)\*\*|^\s{0,3}(#{1,6}|[-*+]|\d+[.)])\s|^\s*\|.*\|\s*$|!?\[[^\]]*\]\(", "has markup"),
    (r"\A\s*[{\[]", "is JSON or a list, not a text"),
)


class InvalidAnswer(Exception):
    """The answer is not a caption; the message completes "the answer ..."."""


def caption_of(answer: str, *, structured: bool, tokens: Callable[[str], int]) -> str:
    """Return the caption in ``answer``, on one line.

    Args:
        structured: a JSON object with the key ``caption`` was requested.
        tokens: counts the T5 tokens of a text.

    Raises:
        InvalidAnswer: it is not a caption.
    """
    text = _REASONING.sub("", answer, count=1)
    if structured:
        text = _structured(text)
    try:
        text = checked_caption(text)
    except ValueError as error:
        raise InvalidAnswer(str(error)) from None
    if len(text) > MAX_CHARACTERS:
        raise InvalidAnswer(f"is too long ({len(text)} characters)")
    if any(unicodedata.category(c) in ("Cc", "Cf", "Co", "Cn") and c not in "\n\r\t" for c in text):
        raise InvalidAnswer("has control characters")
    for pattern, fault in _FAULTS:
        if re.search(pattern, text):
            raise InvalidAnswer(fault)
    text = " ".join(text.split())
    if (count := tokens(text)) > MAX_TOKENS:
        raise InvalidAnswer(f"is too long ({count} tokens, T5 reads {MAX_TOKENS})")
    return text


def _structured(text: str) -> str:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidAnswer("is not the JSON object that was requested") from None
    caption = value.get("caption") if isinstance(value, dict) else None
    if not isinstance(caption, str):
        raise InvalidAnswer("has no text under the key caption")
    return caption
