"""Serve an empty OCI registry on loopback."""

from __future__ import annotations

import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from control_plane import binaries
from control_plane.processes import free_port


@contextmanager
def registry_on(blobs: Path) -> Iterator[str]:
    """Serve a registry that keeps its blobs in a folder; yield its address."""
    address = f"127.0.0.1:{free_port()}"
    command = [binaries.find("crane")["crane"], "registry", "serve", f"--disk={blobs}"]
    process = subprocess.Popen([*command, f"--address={address}"], stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 30
        while True:
            try:
                urllib.request.urlopen(f"http://{address}/v2/")
                break
            except OSError:
                assert time.monotonic() < until
                time.sleep(0.1)
        yield address
    finally:
        process.kill()
        process.wait()
