"""The next image build removes the containers of a killed one, and no others."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import build_leftovers

BUILDAH = """\
#!/bin/sh
case $1 in
containers) cat "$CONTAINERS" ;;
rm) echo "$2" >> "$CONTAINERS.removed" ;;
esac
"""


def container(name: str, image: str, builder: bool = True) -> dict[str, object]:
    return {"id": name, "containername": name, "imagename": image, "builder": builder}


def test_only_containers_of_the_killed_build_are_removed(tmp_path: Path, monkeypatch) -> None:
    """A stand-in for buildah answers, as its store needs root."""
    program = tmp_path / "buildah"
    program.write_text(BUILDAH)
    program.chmod(0o755)
    listed = tmp_path / "containers"
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("CONTAINERS", str(listed))
    record = tmp_path / "record.json"
    before = container("mine", "base")
    listed.write_text(json.dumps([before]))
    with (
        pytest.raises(KeyboardInterrupt),
        build_leftovers.exclusive_build(("base",), record),
    ):
        raise KeyboardInterrupt
    assert record.exists()
    later = [
        container("first-stage", "base"),
        container("second-stage", ""),
        container("someone-elses", "other"),
        container("podmans", "base", builder=False),
    ]
    listed.write_text(json.dumps([before, *later]))
    with build_leftovers.exclusive_build(("base",), record):
        removed = Path(f"{listed}.removed").read_text().split()
        assert removed == ["first-stage", "second-stage"]
    assert not record.exists()
