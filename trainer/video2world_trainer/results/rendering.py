"""Render the package's HTML and SVG templates, with every value escaped."""

from __future__ import annotations

import base64
import hashlib
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

__all__ = ["render", "script"]


def _url(path: str) -> str:
    """Quote a relative path for ``href`` and ``src``."""
    return quote(path, errors="replace")


_LOADER = PackageLoader(__package__)
_ENVIRONMENT = Environment(
    loader=_LOADER,
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_ENVIRONMENT.filters["url"] = _url


def render(template: str, **values: Any) -> Markup:
    """Render ``templates/<template>``; the result is not escaped again inside another template."""
    return Markup(_ENVIRONMENT.get_template(template).render(values))


def script(name: str) -> tuple[Markup, str]:
    """Return ``templates/<name>`` for a ``<script>``, and the source of the policy that allows it.

    It is a hash (https://www.w3.org/TR/CSP3/#match-element-to-source-list), so that no other script
    can run: not even a text that was not escaped.
    """
    code, _, _ = _LOADER.get_source(_ENVIRONMENT, name)
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    return Markup(code), f"'sha256-{digest}'"
