"""Put robot video on a node's volume, as a user would for the demo."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

USER = 1000  # UID of our containers


def draw(volume: Path) -> None:
    """Draw a task in AgiBotWorld-Alpha's layout where manifests/samples/demo.yaml expects it."""
    module = "video2world_preprocess.demo"
    where = ("--data_dir", "datasets/agibot")
    subprocess.run([sys.executable, "-m", module, *where], cwd=volume, check=True)
    make_writable(volume)


def make_writable(volume: Path) -> None:
    """Make the volume writable for our containers' user."""
    subprocess.run(["chown", "-R", f"{USER}:{USER}", str(volume)], check=True)
