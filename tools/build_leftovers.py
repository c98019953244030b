"""Remove the working containers that a killed image build has left in buildah's store.

They hold whole file systems (tens of GB) and have no label of ours, so a build records which
containers existed before it, and the next one removes what came since.
"""

from __future__ import annotations

import fcntl
import json
import subprocess
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from control_plane import binaries

__all__ = ["exclusive_build"]


@contextmanager
def exclusive_build(ours: Collection[str], record: Path | None = None) -> Iterator[None]:
    """Run the only image build of this user inside the block; first clean up after a killed one.

    Args:
        ours: names of the images that our builds start from. Containers of other names are kept,
            but those of a build's own intermediate images have none.
        record: file that lists the containers of others while a build runs.
    """
    record = record or binaries.cache().parent / "image-build.json"
    record.parent.mkdir(parents=True, exist_ok=True)
    with record.with_suffix(".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if record.exists():
            _remove(json.loads(record.read_text()), ours)
        record.write_text(json.dumps([one["id"] for one in _containers()]))
        yield
        record.unlink()


def _remove(kept: Collection[str], ours: Collection[str]) -> None:
    for one in _containers():
        if one["id"] in kept or one["imagename"] not in ("", *ours):
            continue
        print(f"removing {one['containername']}, left by a killed build", flush=True)
        subprocess.run(["buildah", "rm", one["id"]], stdout=subprocess.DEVNULL, check=False)


def _containers() -> list[dict[str, Any]]:
    done = subprocess.run(
        ["buildah", "containers", "--json"], capture_output=True, text=True, check=False
    )
    listed: list[dict[str, Any]] = json.loads(done.stdout or "null") or []
    return [one for one in listed if one["builder"]]
