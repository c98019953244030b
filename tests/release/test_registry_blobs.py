"""A local registry gives back the space of images that were replaced."""

from __future__ import annotations

import subprocess
import time
import urllib.request
from pathlib import Path

from control_plane import binaries
from control_plane.processes import free_port
from control_plane.registry_blobs import prune


def test_blobs_of_earlier_images_are_deleted(tmp_path: Path) -> None:
    crane = binaries.find("crane")["crane"]
    folder, address = tmp_path / "blobs", f"127.0.0.1:{free_port()}"
    folder.mkdir()
    process = subprocess.Popen(
        [crane, "registry", "serve", f"--disk={folder}", f"--address={address}"],
        stderr=subprocess.DEVNULL,
    )

    def push(name: str, content: str) -> None:
        (tmp_path / "file").write_text(content)
        subprocess.run(["tar", "-C", tmp_path, "-cf", tmp_path / "l.tar", "file"], check=True)
        layer = ["--new_layer", tmp_path / "l.tar", "--new_tag", f"{address}/{name}"]
        subprocess.run([crane, "append", *layer], check=True, capture_output=True)

    try:
        until = time.monotonic() + 30
        while True:
            try:
                urllib.request.urlopen(f"http://{address}/v2/")
                break
            except OSError:
                assert time.monotonic() < until
        push("a/b:1", "old")
        push("a/b:1", "new")
        push("c/d:1", "not kept")
        assert prune(folder, f"http://{address}", ["a/b:1"]) > 0
        pulled = tmp_path / "pulled.tar"
        subprocess.run([crane, "pull", f"{address}/a/b:1", pulled], check=True)
        assert len([path for path in folder.rglob("*") if path.is_file()]) == 2  # layer, config
        assert prune(folder, f"http://{address}", ["a/b:1"]) == 0
    finally:
        process.kill()
        process.wait()
