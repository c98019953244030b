"""Write CycloneDX bills of materials: Debian packages and Python distributions of an image.

``python tools/sbom.py IMAGE`` prints that of an image in buildah's store, with ``--root DIR`` that
of an unpacked file system. The same content gives the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import Distribution, distributions
from pathlib import Path

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import License
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

__all__ = ["bill", "mounted", "pinned", "write"]

DPKG = "var/lib/dpkg/status"
PLACES = (  # Python packages in our images and in Debian's Python
    "opt/*/lib/python3*/site-packages",
    "opt/source",
    "usr/local/lib/python3*/site-packages",
    "usr/local/lib/python3*/dist-packages",
    "usr/lib/python3/dist-packages",
)


def bill(root: Path, name: str, version: str, moment: datetime) -> str:
    """Return the bill of the file system below ``root`` as JSON, dated ``moment``.

    Raises:
        SystemExit: no Debian or Python package was found, so that the bill would be wrong.
    """
    parts = {str(part.purl): part for part in (*_debian(root), *_python(root))}
    if not parts:
        raise SystemExit(f"error: {root} holds neither {DPKG} nor a Python package")
    return _written(parts, name, version, moment, ComponentType.CONTAINER)


def pinned(constraints: str, name: str, version: str, moment: datetime) -> str:
    """Return the bill of a Python distribution: the versions it was tested with."""
    parts = {}
    for line in constraints.splitlines():
        if line and not line.startswith("#"):
            package, _, number = line.partition("==")
            part = _distribution(package, number)
            parts[str(part.purl)] = part
    return _written(parts, name, version, moment, ComponentType.LIBRARY)


def _written(
    parts: Mapping[str, Component], name: str, version: str, moment: datetime, kind: ComponentType
) -> str:
    bom = Bom(components=parts.values())
    root = Component(name=name, version=version, type=kind, bom_ref="whole")
    bom.metadata.component = root
    bom.register_dependency(root, parts.values())
    bom.metadata.timestamp = moment
    content = "\n".join([name, version, *sorted(parts)])
    bom.serial_number = uuid.UUID(bytes=hashlib.sha256(content.encode()).digest()[:16], version=4)
    return JsonV1Dot6(bom).output_as_string(indent=1) + "\n"


def _debian(root: Path) -> Iterator[Component]:
    """Yield the installed packages from dpkg's list."""
    status = root / DPKG
    if not status.is_file():
        return
    for stanza in status.read_text(encoding="utf-8", errors="replace").split("\n\n"):
        fields = dict(
            line.split(": ", 1) for line in stanza.splitlines() if line[:1] != " " and ": " in line
        )
        if fields.get("Status", "").split()[-1:] != ["installed"]:
            continue
        name, version, machine = (fields[key] for key in ("Package", "Version", "Architecture"))
        source = fields.get("Source", name).split()[0]
        purl = PackageURL("deb", "debian", name, version, {"arch": machine})
        yield Component(
            name=name,
            version=version,
            purl=purl,
            bom_ref=str(purl),
            type=ComponentType.LIBRARY,
            description=f"from the Debian source package {source}",
        )


def _python(root: Path) -> Iterator[Component]:
    folders = [str(folder) for place in PLACES for folder in sorted(root.glob(place))]
    for one in distributions(path=folders):
        name = one.metadata["Name"]
        if name is not None:
            yield _distribution(name, one.version, _licences(one))


def _distribution(name: str, version: str, licences: Iterable[License] = ()) -> Component:
    purl = PackageURL("pypi", None, name.lower().replace("_", "-"), version)
    return Component(
        name=name,
        version=version,
        purl=purl,
        bom_ref=str(purl),
        type=ComponentType.LIBRARY,
        licenses=licences,
    )


def _licences(one: Distribution) -> list[License]:
    """Return the licence, if it is named in a few words; many packages put the full text there."""
    fields = one.metadata
    names = fields.get_all("License-Expression") or fields.get_all("License") or [""]
    return [LicenseFactory().make_from_string(names[0])] if 0 < len(names[0]) < 100 else []


@contextmanager
def mounted(image: str) -> Iterator[Path]:
    """Mount an image from buildah's store and yield its file system."""
    container = _buildah("from", "--pull-never", image)
    try:
        yield Path(_buildah("mount", container))
    finally:
        _buildah("rm", container)


def _buildah(*arguments: str) -> str:
    done = subprocess.run(["buildah", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"error: buildah {arguments[0]}: {done.stderr.strip()}")
    return done.stdout.strip()


def write(image: str, target: Path, moment: datetime) -> None:
    """Write the bill of ``image``, such as ``registry/name:1.0``, to ``target``."""
    name, _, version = image.rpartition(":")
    with mounted(image) as root:
        text = bill(root, name, version, moment)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")


def main() -> int:
    """Print the bill of an image."""
    flags = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[2])
    flags.add_argument("image", help="full name of the image")
    flags.add_argument("--root", type=Path, help="the image's unpacked file system")
    given = flags.parse_args()
    name, _, version = given.image.rpartition(":")
    now = datetime.now(UTC).replace(microsecond=0)
    if given.root is None:
        with mounted(given.image) as root:
            text = bill(root, name, version, now)
    else:
        text = bill(given.root, name, version, now)
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
