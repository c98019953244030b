"""The bill of materials of a file system lists what dpkg and pip report, and no more."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path

import pytest

import images
import sbom

WHEN = datetime(2026, 11, 27, tzinfo=UTC)
STATUS = """\
Package: libc6
Status: install ok installed
Source: glibc (2.36-9)
Architecture: amd64
Version: 2.36-9+deb12u9
Description: a: b
 more: of it

Package: gone
Status: deinstall ok config-files
Architecture: all
Version: 1
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A file system with one Debian package and this environment's Python packages."""
    (tmp_path / "var/lib/dpkg").mkdir(parents=True)
    (tmp_path / "var/lib/dpkg/status").write_text(STATUS)
    packages = tmp_path / "opt/video2world/lib/python3.12"
    packages.mkdir(parents=True)
    (packages / "site-packages").symlink_to(next(p for p in sys.path if p.endswith("-packages")))
    return tmp_path


def test_the_bill_lists_installed_packages(root: Path) -> None:
    bill = json.loads(sbom.bill(root, "registry/operator", "0.1.0", WHEN))
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert bill["metadata"]["component"]["name"] == "registry/operator"
    found = {part["purl"]: part for part in bill["components"]}
    debian = [purl for purl in found if purl.startswith("pkg:deb/")]
    assert debian == ["pkg:deb/debian/libc6@2.36-9%2Bdeb12u9?arch=amd64"]
    assert "source package glibc" in found[debian[0]]["description"]
    python = {one.metadata["Name"].lower().replace("_", "-") for one in distributions()}
    listed = {p.partition("/")[2].partition("@")[0] for p in found if p.startswith("pkg:pypi/")}
    assert {"kopf", "pydantic", "torch"} <= listed <= python
    (graph,) = [one for one in bill["dependencies"] if one["ref"] == "whole"]
    assert sorted(graph["dependsOn"]) == sorted(found)


def test_equal_content_gives_equal_bills(root: Path) -> None:
    command = [sys.executable, sbom.__file__, "a/b:1", f"--root={root}"]
    first, second = (sbom.bill(root, "a/b", "1", WHEN) for _ in range(2))
    assert first == second
    other = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    mine, its = json.loads(first), json.loads(other)
    assert mine["serialNumber"] == its["serialNumber"]
    assert mine["components"] == its["components"]


def test_an_empty_file_system_has_no_bill(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="neither"):
        sbom.bill(tmp_path, "a", "1", WHEN)


@pytest.mark.parametrize("component", ["operator", "preprocess", "trainer"])
def test_base_images_are_pinned_by_digest_or_built_here(component: str) -> None:
    """Every FROM names a stage, or an argument whose default is pinned by digest or is ours."""
    lines = (images.ROOT / "images" / component / "Dockerfile").read_text().splitlines()
    defaults = dict(
        line.removeprefix("ARG ").split("=", 1)
        for line in lines
        if line.startswith("ARG ") and "=" in line
    )
    stages = set()
    for line in (line.split() for line in lines if line.startswith("FROM ")):
        base = line[1]
        if base not in stages:
            value = defaults[base.strip("${}")]
            assert "@sha256:" in value or value in images.names().values(), base
        stages |= {line[3]} if "AS" in line else set()
    assert stages
