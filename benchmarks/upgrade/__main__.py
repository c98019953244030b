"""``make bench-upgrade``: upgrade with a hundred resources in every stage (ten minutes).

Writes ``benchmarks/results/upgrade.json``. The previous release comes out of the git history.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from control_plane import binaries

from ..host import facts
from .previous import Unreachable, previous, unpack
from .trial import FAULTS, upgrade

RESULTS = Path(__file__).parents[1] / "results" / "upgrade.json"


def main() -> int:
    """Run the benchmark; the exit code is 1 if the upgrade changed anything."""
    flags = argparse.ArgumentParser(prog="python -m benchmarks.upgrade", description=__doc__)
    flags.add_argument("--resources", type=int, default=100, help="in all situations (100)")
    flags.add_argument("--previous", default="", help="commit or tag to upgrade from")
    flags.add_argument("--dry", action="store_true", help="do not write the record")
    args = flags.parse_args()
    machine = facts(" ".join(["python -m benchmarks.upgrade", *sys.argv[1:]]))
    with tempfile.TemporaryDirectory() as work:
        try:
            release = unpack(args.previous or previous(), Path(work) / "previous")
        except Unreachable as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        figures = upgrade(release, args.resources, Path(work))
    version = f"v{binaries.ALL['kube-apiserver'].version}"
    record = {"machine": machine, "control_plane": version, **figures}
    text = json.dumps(record, indent=1) + "\n"
    print(text, end="")
    if not args.dry:
        RESULTS.write_text(text)
    return 1 if any(figures[fault] for fault in FAULTS) else 0


if __name__ == "__main__":
    sys.exit(main())
