"""Write the settings of the train command, as data for the operator and as a reference page.

The operator validates overrides before a run starts and cannot import the trainer. ``--check``
fails if one of the files is not up to date.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from video2world_operator.api.experiments import DECIDED, OVERRIDES
from video2world_operator.codegen.markdown import HEAD, table
from video2world_operator.codegen.write import generate
from video2world_trainer.training.config import SETTINGS, value_kind
from video2world_trainer.training.config_defaults import defaults_by_size
from video2world_trainer.training.config_help import format_value
from video2world_trainer.training.fixed_settings import FIXED

ROOT = Path(__file__).parents[1]
DATA = ROOT / "operator" / "video2world_operator" / "api" / "train_settings.json"
PAGE = ROOT / "docs" / "reference" / "training.md"


def files() -> dict[Path, str]:
    """Return both files' content by path."""
    settings = {
        one.metadata["key"]: {
            "kind": value_kind(one),
            **{name: one.metadata[name] for name in ("low", "high", "choices")},
        }
        for one in SETTINGS.values()
    }
    fixed = {name: {"reason": one.reason, "values": one.values} for name, one in FIXED.items()}
    data = {"settings": settings, "fixed": fixed}
    return {DATA: json.dumps(data, indent=1) + "\n", PAGE: HEAD + _page()}


def _page() -> str:
    text = "# Settings of training\n\n"
    text += "Lines of `spec.training.overrides`, and arguments of `video2world_trainer.train`. "
    text += "Names are those of the original's configuration, where it has them. In a resource, a "
    text += "setting with a field means that field.\n\n"
    rows = []
    for one in SETTINGS.values():
        key = one.metadata["key"]
        field = f"`spec.{OVERRIDES[key].field}`" if key in OVERRIDES else ""
        rows.append((f"`{key}`", one.metadata["help"], _defaults(one), DECIDED.get(key, field)))
    text += table(("setting", "meaning", "default", "in a resource"), rows)
    text += "\n## Settings of the original that are fixed here\n\n"
    text += "The value shown may be written; it has no effect.\n\n"
    text += table(
        ("setting", "value", "why it is fixed, or what to use"),
        (
            (f"`{name}*`" if name.endswith(".") else f"`{name}`", ", ".join(one.values), one.reason)
            for name, one in FIXED.items()
        ),
    )
    return text


def _defaults(one: Any) -> str:
    values = defaults_by_size(one)
    rest = [f"{size}: {format_value(v)}" for size, v in values.items() if v != values["2B"]]
    return "; ".join([format_value(values["2B"]), *rest])


def main(arguments: list[str] | None = None) -> int:
    """Write the files, or with ``--check`` return 1 if one is not up to date."""
    flags = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[2])
    flags.add_argument("--check", action="store_true", help="only compare")
    return generate(files(), check=flags.parse_args(arguments).check)


if __name__ == "__main__":
    sys.exit(main())
