"""Generate the CustomResourceDefinition.

``python -m video2world_operator.codegen.crd`` writes manifests/crd.yaml and the chart's copy,
``--check`` fails if they are not up to date.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from video2world_operator.api.crd_schema import build
from video2world_operator.codegen.write import generate

__all__ = ["PATH", "main", "render"]

_ROOT = Path(__file__).parents[3]
PATH = _ROOT / "manifests" / "crd.yaml"
CHART_PATH = _ROOT / "charts" / "video2world-operator" / "files" / "crd.yaml"


def render() -> str:
    """Return the text of manifests/crd.yaml."""
    import yaml

    head = "# Generated from operator/video2world_operator/api by `make generate`.\n"
    return head + yaml.safe_dump(build(), sort_keys=False, width=100, allow_unicode=True)


def main(arguments: list[str] | None = None) -> int:
    """Write the files, or with ``--check`` return 1 if one is not up to date."""
    flags = argparse.ArgumentParser(prog="video2world_operator.codegen.crd", description=__doc__)
    flags.add_argument("--check", action="store_true", help="only compare")
    return generate({PATH: render(), CHART_PATH: render()}, check=flags.parse_args(arguments).check)


if __name__ == "__main__":
    sys.exit(main())
