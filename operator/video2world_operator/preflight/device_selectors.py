"""Evaluate the part of a CEL device selector that compares driver and attributes for equality.

The scheduler evaluates selectors completely. The CEL packages on PyPI lack the functions that
Kubernetes adds (quantity, semver) and do not fit into the operator's image; so everything but a
conjunction of equalities is reported as not evaluated.
https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/device-class-v1
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Selector", "parse_selector"]

_STRING = r"""(?:"(?:[^"\\])*"|'(?:[^'\\])*')"""
_DRIVER = re.compile(rf"device\.driver\s*==\s*(?P<value>{_STRING})")
_ATTRIBUTE = re.compile(
    rf"device\.attributes\[\s*(?P<domain>{_STRING})\s*\]\.(?P<name>\w+)\s*==\s*"
    rf"(?P<value>{_STRING}|true|false|-?\d+)"
)


@dataclass(frozen=True)
class Selector:
    """A conjunction: the equalities that were understood, and the ``rest`` that was not.

    ``driver`` is the required driver, empty if none is; ``attributes`` are the required values by
    domain and name.
    """

    driver: str
    attributes: Mapping[tuple[str, str], Any]
    rest: tuple[str, ...]

    def matches(self, driver: str, attributes: Mapping[str, Mapping[str, Any]]) -> bool:
        """Return whether a device may match: its ``rest`` is taken to be true.

        ``attributes`` are those of a device in a ResourceSlice; a name without domain has the
        driver's.
        """
        if self.driver and driver != self.driver:
            return False
        for (domain, name), wanted in self.attributes.items():
            found = attributes.get(f"{domain}/{name}")
            if found is None and domain == driver:
                found = attributes.get(name)
            if wanted not in [v for v in (found or {}).values() if type(v) is type(wanted)]:
                return False
        return True


def parse_selector(expression: str) -> Selector:
    """Split a CEL expression into equalities and the rest."""
    driver, attributes, rest = "", dict[tuple[str, str], Any](), list[str]()
    bare = re.sub(_STRING, "", expression)
    plain = not re.search(r"""\|\||\?|["'\\]""", bare) and "&&" not in "".join(
        re.findall(_STRING, expression)
    )
    for part in expression.split("&&") if plain else [expression]:
        one = _unwrapped(part)
        if match := _DRIVER.fullmatch(one):
            value = match["value"][1:-1]
            if driver in ("", value):
                driver = value
                continue
        elif match := _ATTRIBUTE.fullmatch(one):
            attributes[match["domain"][1:-1], match["name"]] = _value(match["value"])
            continue
        rest.append(" ".join(part.split()))
    return Selector(driver, attributes, tuple(rest))


def _unwrapped(part: str) -> str:
    """Return ``part`` without the parentheses around all of it."""
    part = part.strip()
    while part.startswith("(") and part.endswith(")"):
        part = part[1:-1].strip()
    return part


def _value(literal: str) -> str | bool | int:
    if literal in ("true", "false"):
        return literal == "true"
    return literal[1:-1] if literal[0] in "\"'" else int(literal)
