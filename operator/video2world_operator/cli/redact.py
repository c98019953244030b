"""Remove what may be a secret from text that leaves the machine."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["REDACTED", "redact"]

REDACTED = "[redacted]"
_NAMES = r"[\w.-]*(?:token|secret|passw(?:or)?d|api[_-]?key|access[_-]?key)[\w-]*"
_PATTERNS: Sequence[tuple[str, str]] = (
    (r"-----BEGIN [^-]*PRIVATE KEY-----.*?-----END [^-]*PRIVATE KEY-----", REDACTED),
    (r"\bhf_\w{8,}", REDACTED),
    (r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*", REDACTED),  # a JSON Web Token (RFC 7519)
    (r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b", REDACTED),
    (r"\b(?:gh[pousr]_|github_pat_|glpat-|xox[abprs]-|sk-)[\w-]{16,}", REDACTED),
    (r"((?:https?|s3|ftp)://)[^/@\s]+@", rf"\1{REDACTED}@"),
    (r"([?&](?:X-Amz-)?(?:Signature|Credential|token|sig)=)[^&\s\"']+", rf"\1{REDACTED}"),
    (r"(authorization[\"']?\s*[:=]\s*[\"']?(?:bearer|basic)\s+)[^\s\"']+", rf"\1{REDACTED}"),
    (rf"(\b{_NAMES}[\"']?[ \t]*[:=][ \t]*([\"']))(?:(?!\2)[^\n])+", rf"\1{REDACTED}"),
    (rf"(\b{_NAMES}[\"']?[ \t]*[:=][ \t]*)[^\s\"'{{\[,;}}]+", rf"\1{REDACTED}"),
    # an environment variable of a container, as YAML
    (rf"(name: {_NAMES}\n\s+value: )[^\n]+", rf"\1{REDACTED}"),
)
_COMPILED = [(re.compile(pattern, re.I | re.S), to) for pattern, to in _PATTERNS]


def redact(text: str, known: Sequence[str] = ()) -> str:
    """Return ``text`` without the ``known`` secrets, and without what looks like one.

    Tokens are recognized by their form, values by the name that they are assigned to.
    """
    for secret in filter(None, known):
        text = text.replace(secret, REDACTED)
    for pattern, to in _COMPILED:
        text = pattern.sub(to, text)
    return text
