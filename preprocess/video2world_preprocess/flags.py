"""Report flags that were set but have no effect."""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from video2world_common.events import say

__all__ = ["note_unused_flags"]


def note_unused_flags(
    args: argparse.Namespace, flags: argparse.ArgumentParser, names: Iterable[str], why: str
) -> None:
    """Print a note for each of ``names`` that is set to a value other than its default.

    Args:
        args: the parsed flags.
        flags: their parser.
        names: attributes of ``args`` that are not used.
        why: completes the sentence "--flag has no effect ...".
    """
    wanted = set(names)
    for action in flags._actions:
        if action.dest in wanted and getattr(args, action.dest) != action.default:
            say(f"note: {action.option_strings[0]} has no effect {why}")
