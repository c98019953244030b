"""Define errors in a resource: the field, what is wrong with it, and the remedy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

__all__ = ["NO_CLUSTER", "InvalidResource", "Problem", "either", "nearest"]

NO_CLUSTER = (
    "no cluster is configured: set KUBECONFIG, or run in a pod with a service account; to run on "
    "this machine, pass --volume"
)


@dataclass(frozen=True, order=True)
class Problem:
    """One mistake: ``path`` as the user wrote it (``spec.training.nodes``) and the remedy.

    ``line`` is its line in the file, 0 if there is no file.
    """

    path: str
    message: str
    line: int = 0

    def __str__(self) -> str:
        place = f"line {self.line}: " if self.line else ""
        return f"{place}{self.path}: {self.message}"


class InvalidResource(ValueError):
    """The resource is not valid; ``str()`` lists all its ``problems``."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


def nearest(word: object, known: Iterable[str]) -> str:
    """Suggest the closest known word (``did you mean X?``), or else list all known words."""
    known = sorted(known)
    by_lower = {name.lower(): name for name in known}
    found = get_close_matches(str(word).lower(), by_lower, n=1, cutoff=0.6)
    if found:
        return f"did you mean {by_lower[found[0]]}?"
    return "use one of " + ", ".join(known) if known else "remove it"


def either(numbers: Sequence[int]) -> str:
    """Write the possible ``numbers`` as ``1, 2 or 4``."""
    *first, last = map(str, numbers)
    return f"{', '.join(first)} or {last}" if first else last
