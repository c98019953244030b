"""Build a release in ``dist/``, reproducibly from the committed files (``make dist``).

Source archive, wheel, chart, bills of materials and SHA256SUMS; with ``--images`` also the
container images in buildah's store as OCI archives; with ``--krew`` also ``kubectl v2w`` for krew,
whose packages are downloaded from PyPI.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import images
import kubectl_plugin
import sbom

ROOT = images.ROOT
CHART = "charts/video2world-operator"


def build(target: Path, *, with_images: bool = False, with_krew: bool = False) -> None:
    """Build the release of the checked-out commit in ``target``, which is emptied first.

    Raises:
        SystemExit: a step failed, or this is not a git checkout.
    """
    moment, version = int(_git("log", "-1", "--format=%ct")), images.version()
    if _git("status", "--porcelain", "--untracked-files=no"):
        print("note: uncommitted changes are not included", flush=True)
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as work:
        source = Path(work) / "source"
        _export(source)
        _python(source, Path(work) / "built", target, moment)
        chart = source / CHART
        _pack(target / f"{chart.name}-{version}.tgz", _files(chart, chart.name), moment)
        pinned = sbom.pinned(
            (source / "constraints.txt").read_text(),
            "video2world",
            version,
            datetime.fromtimestamp(moment, UTC),
        )
        (target / f"video2world-{version}.cdx.json").write_text(pinned, encoding="utf-8")
        if with_krew:
            _krew(source, target, version, moment)
    if with_images:
        _images(target, version)
    sums = "".join(f"{_digest(path)}  {path.name}\n" for path in sorted(target.iterdir()))
    (target / "SHA256SUMS").write_text(sums)


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"error: git {arguments[0]}: {done.stderr.strip()}")
    return done.stdout.strip()


def _export(folder: Path) -> None:
    """Extract the committed files, with git's modes instead of this machine's."""
    archive = subprocess.run(
        ["git", "-C", str(ROOT), "archive", "HEAD"], capture_output=True, check=True
    ).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)


def _python(source: Path, built: Path, target: Path, moment: int) -> None:
    """Build source archive and wheel with the pinned setuptools of this environment."""
    uv = Path(sys.executable).parent / "uv"
    command: list[str | Path] = [
        uv,
        "build",
        "--no-build-isolation",
        f"--python={sys.executable}",
        f"--out-dir={built}",
        str(source),
    ]
    done = subprocess.run(
        command,
        env={**os.environ, "SOURCE_DATE_EPOCH": str(moment)},
        umask=0o022,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"error: uv build: {done.stderr.strip()[-2000:]}")
    for path in built.glob("*.whl"):
        shutil.copyfile(path, target / path.name)
    for path in built.glob("*.tar.gz"):  # setuptools records the build time
        with tarfile.open(path) as tar:
            members = [
                (one.name, stream.read(), bool(one.mode & 0o100))
                for one in tar.getmembers()
                if (stream := tar.extractfile(one)) is not None
            ]
        _pack(target / path.name, members, moment)


def _files(folder: Path, name: str) -> list[tuple[str, bytes, bool]]:
    return [
        (f"{name}/{path.relative_to(folder)}", path.read_bytes(), os.access(path, os.X_OK))
        for path in folder.rglob("*")
        if path.is_file()
    ]


def _pack(target: Path, files: Iterable[tuple[str, bytes, bool]], moment: int) -> None:
    """Write a gzipped tar of (name, content, executable) without any other metadata."""
    with (
        target.open("wb") as out,
        gzip.GzipFile("", "wb", 9, out, mtime=moment) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name, content, runs in sorted(files):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime, entry.mode = len(content), moment, 0o755 if runs else 0o644
            tar.addfile(entry, io.BytesIO(content))


def _krew(source: Path, target: Path, version: str, moment: int) -> None:
    """Pack the kubectl plugin and write its manifest."""
    (wheel,) = target.glob("*.whl")
    archives = kubectl_plugin.pack(
        wheel, source, target, version, lambda path, files: _pack(path, files, moment)
    )
    text = kubectl_plugin.manifest(archives, version, repository())
    (target / "v2w.yaml").write_text(text, encoding="utf-8")


def repository() -> str:
    """Return owner and name of the GitHub repository that publishes the release."""
    return os.environ.get("GITHUB_REPOSITORY", "video2world/video2world-operator")


def _images(target: Path, version: str) -> None:
    """Export every image with its bill of materials; a missing image is an error."""
    for component, name in images.names().items():
        if component == "pause":
            continue
        print(f"packing {name} ...", flush=True)
        archive = target / f"{component}-{version}.oci.tar"
        done = subprocess.run(
            ["buildah", "push", "--quiet", name, f"oci-archive:{archive}:{name}"],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"error: {name}: {done.stderr.strip()}; run make images first")
        sbom.write(name, target / f"{component}-{version}.cdx.json", images.commit_time())


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def main() -> int:
    """Build the release and list its files."""
    flags = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[2])
    flags.add_argument("--images", action="store_true", help="include the container images")
    flags.add_argument("--krew", action="store_true", help="include kubectl v2w for krew")
    flags.add_argument("--target", type=Path, default=ROOT / "dist", help="folder (dist)")
    given = flags.parse_args()
    build(given.target, with_images=given.images, with_krew=given.krew)
    for path in sorted(given.target.iterdir()):
        print(f"{path.stat().st_size:>12,}  {path.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
