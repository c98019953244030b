"""Robot video on a node's volume, for the demo: what a user would have uploaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

USER = 1000  # of our containers


def draw(volume: Path) -> None:
    """Draw a task in AgiBotWorld-Alpha's layout where manifests/samples/demo.yaml expects it."""
    module = "video2world_preprocess.demo"
    where = ("--data_dir", "datasets/agibot")
    subprocess.run([sys.executable, "-m", module, *where], cwd=volume, check=True)
    give(volume)


def give(volume: Path) -> None:
    """Let our containers' user write there."""
    subprocess.run(["chown", "-R", f"{USER}:{USER}", str(volume)], check=True)
