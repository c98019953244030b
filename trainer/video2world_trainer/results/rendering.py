"""Render the package's HTML and SVG templates, with every value escaped."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

__all__ = ["render"]


def _url(path: str) -> str:
    """Quote a relative path for ``href`` and ``src``."""
    return quote(path, errors="replace")


_ENVIRONMENT = Environment(
    loader=PackageLoader(__package__),
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
