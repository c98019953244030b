"""A local registry gives back the space of images that were replaced."""

from __future__ import annotations

import subprocess
from pathlib import Path

from control_plane import binaries
from control_plane.registry_blobs import prune
from local_registry import registry_on


def test_blobs_of_earlier_images_are_deleted(tmp_path: Path) -> None:
    crane = binaries.find("crane")["crane"]
    folder = tmp_path / "blobs"
    folder.mkdir()

    def push(address: str, name: str, content: str) -> None:
        (tmp_path / "file").write_text(content)
        subprocess.run(["tar", "-C", tmp_path, "-cf", tmp_path / "l.tar", "file"], check=True)
        layer = ["--new_layer", tmp_path / "l.tar", "--new_tag", f"{address}/{name}"]
        subprocess.run([crane, "append", *layer], check=True, capture_output=True)

    with registry_on(folder) as address:
        push(address, "a/b:1", "old")
        push(address, "a/b:1", "new")
        push(address, "c/d:1", "not kept")
        assert prune(folder, f"http://{address}", ["a/b:1"]) > 0
        pulled = tmp_path / "pulled.tar"
        subprocess.run([crane, "pull", f"{address}/a/b:1", pulled], check=True)
        assert len([path for path in folder.rglob("*") if path.is_file()]) == 2  # layer, config
        assert prune(folder, f"http://{address}", ["a/b:1"]) == 0
