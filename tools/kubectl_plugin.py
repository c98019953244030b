"""Pack ``kubectl v2w`` for krew: an archive per platform, and the plugin's manifest.

An archive has the command, its Python packages, and their compiled parts for every Python in
``PYTHONS``; Python itself is the user's, as krew plugins cannot depend on one another.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from importlib.metadata import distributions
from pathlib import Path

import yaml

__all__ = ["PLATFORMS", "PYTHONS", "manifest", "pack"]

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
PLATFORMS = {  # krew's names of a platform: uv's
    ("linux", "amd64"): "x86_64-manylinux_2_28",
    ("linux", "arm64"): "aarch64-manylinux_2_28",
    ("darwin", "amd64"): "x86_64-apple-darwin",
    ("darwin", "arm64"): "aarch64-apple-darwin",
}
BIN = "kubectl-v2w"
_WORKERS = ("video2world_preprocess", "video2world_trainer")  # in the wheel, but not for the CLI

_LAUNCHER = Path(__file__).with_name("kubectl_v2w.py")

File = tuple[str, bytes, bool]  # name in the archive, content, whether it is executable


def pack(
    wheel: Path,
    source: Path,
    target: Path,
    version: str,
    write: Callable[[Path, Iterable[File]], None],
) -> list[Path]:
    """Write an archive for every platform to ``target`` and return their paths.

    Args:
        wheel: this project's wheel.
        source: checkout with ``constraints.txt`` and ``LICENSE``.
        write: packs files into an archive at a path.

    Raises:
        SystemExit: a package has no wheel for a platform and Python, or PyPI cannot be reached.
    """
    command = f"video2world[cluster] @ {wheel.resolve().as_uri()}"
    first = next(iter(PLATFORMS.values()))
    with tempfile.TemporaryDirectory() as work:
        all_constraints = ["--constraint", str(source / "constraints.txt")]
        _install(Path(work), first, PYTHONS[0], [*all_constraints, command])
        compiled = _compiled(Path(work))
        skipped = {path for name in compiled.values() for path in name}
        pure = _read(Path(work), skipped)
    made = []
    for (system, machine), platform in PLATFORMS.items():
        files = dict(pure)
        for python in PYTHONS:
            with tempfile.TemporaryDirectory() as work:
                _install(Path(work), platform, python, ["--no-deps", *compiled])
                _merge(files, _read(Path(work)))
        path = target / f"{BIN}-{version}-{system}-{machine}.tar.gz"
        licence = (source / "LICENSE").read_bytes()
        top = [(BIN, _LAUNCHER.read_bytes(), True), ("LICENSE", licence, False)]
        write(path, [*top, *((f"lib/{name}", content, False) for name, content in files.items())])
        made.append(path)
    return made


def _install(folder: Path, platform: str, python: str, what: Sequence[str]) -> None:
    command: list[str | Path] = [Path(sys.executable).parent / "uv", "pip", "install", "--quiet"]
    command += ["--target", folder, "--python-platform", platform, "--python-version", python]
    command += ["--only-binary", ":all:", "--link-mode", "symlink", *what]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"error: {platform}, Python {python}: {done.stderr.strip()[-2000:]}")


def _compiled(folder: Path) -> dict[str, set[str]]:
    """Return the distributions with compiled parts, as name==version, and their files."""
    found = {}
    for one in distributions(path=[str(folder)]):
        if "Root-Is-Purelib: false" in (one.read_text("WHEEL") or ""):
            files = {file.as_posix() for file in one.files or ()}
            found[f"{one.metadata['Name']}=={one.version}"] = files
    return found


def _read(folder: Path, skipped: Container[str] = ()) -> dict[str, bytes]:
    """Return the files of the packages in ``folder`` that the CLI needs."""
    paths = ((path, path.relative_to(folder).as_posix()) for path in folder.rglob("*"))
    return {
        name: path.read_bytes()
        for path, name in paths
        if name not in skipped and path.is_file() and _is_needed(name)
    }


def _merge(files: dict[str, bytes], more: Mapping[str, bytes]) -> None:
    """Add ``more`` to ``files``.

    Compiled parts have the version of Python in their names, and everything else is the same for
    all of them.
    """
    for name, content in more.items():
        if files.setdefault(name, content) != content:
            raise SystemExit(f"error: {name} differs between versions of Python")


def _is_needed(name: str) -> bool:
    """Return whether the CLI needs a file of the installed packages; licences are kept."""
    first, _, rest = name.partition("/")
    if first in (*_WORKERS, "bin") or "__pycache__" in name:
        return False
    if not first.endswith(".dist-info"):
        return True
    licence = rest.rpartition("/")[2].upper().startswith(("LICEN", "COPYING", "NOTICE", "AUTHORS"))
    return licence or rest in ("METADATA", "entry_points.txt")  # not where they were installed from


def manifest(archives: Iterable[Path], version: str, repository: str) -> str:
    """Return krew's manifest of the plugin, whose archives are assets of the GitHub release."""
    base = f"https://github.com/{repository}/releases/download/v{version}"
    platforms = []
    for path, (system, machine) in zip(archives, PLATFORMS, strict=True):
        platforms.append(
            {
                "selector": {"matchLabels": {"os": system, "arch": machine}},
                "uri": f"{base}/{path.name}",
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                "bin": BIN,
            }
        )
    spec = {
        "version": f"v{version}",
        "homepage": f"https://github.com/{repository}",
        "shortDescription": "Follow and diagnose Video2World post-training runs",
        "description": (
            "Validates, previews, follows, explains, suspends and resumes\n"
            "Video2WorldPostTrain resources, which post-train NVIDIA Cosmos-Predict2\n"
            "Video2World models. The cluster needs the Video2World Operator.\n"
        ),
        "caveats": f"Needs Python {PYTHONS[0]} to {PYTHONS[-1]} as python3 on the PATH.\n",
        "platforms": platforms,
    }
    whole = {
        "apiVersion": "krew.googlecontainertools.github.com/v1alpha2",
        "kind": "Plugin",
        "metadata": {"name": "v2w"},
        "spec": spec,
    }
    return yaml.safe_dump(whole, sort_keys=False, width=100)
