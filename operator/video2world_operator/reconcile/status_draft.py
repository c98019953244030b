"""Define the draft of a status that one reconciliation edits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DONE = ("Succeeded", "Skipped")
COUNTS = ("active", "ready", "succeeded", "failed")  # pods of the attempt at work
Body = Mapping[str, Any]
