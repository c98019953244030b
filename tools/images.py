"""Build the container images with buildah, from Debian packages and PyPI only (``make images``).

The base image is built with debootstrap unless ``--base`` names one (``pinned``: that of the
Dockerfiles). A missing buildah or
debootstrap is installed from Debian. The images get their public names, so that the chart and the
samples find them where they are imported; nothing is pushed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from datetime import UTC, datetime
from pathlib import Path

import build_leftovers
import sbom
from control_plane.node import PAUSE

ROOT = Path(__file__).resolve().parents[1]
BILLS = ROOT / "build" / "sbom"  # CycloneDX bill of materials of each image
REGISTRY = "ghcr.io/video2world"
SUITE, MIRROR = "bookworm", "http://deb.debian.org/debian"
BASE = f"localhost/video2world/base:{SUITE}"
COMPONENTS = ("operator", "preprocess", "trainer")
VARIANTS = ("portable", "ampere", "hopper", "blackwell")  # the trainer's attention kernels
# Folders of the base image that containers do not need.
_UNNEEDED = (
    "var/cache/apt",
    "var/lib/apt/lists",
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "usr/share/info",
    "usr/share/lintian",
    "var/log",
)


def version() -> str:
    """Return the version of the distribution, which is the images' tag."""
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])


def names() -> dict[str, str]:
    """Return the images' full names by component; ``pause`` is for nodes only."""
    ours = {one: f"{REGISTRY}/{one}:{version()}" for one in COMPONENTS}
    return ours | {"pause": PAUSE}


def build(base: str = "", variant: str = "portable", builder: str = "", only: str = "") -> None:
    """Build all images, or one and what it is built on.

    Args:
        base: base image with Python 3.11 or newer; default: built here; ``pinned``: that of the
            Dockerfiles.
        variant: the trainer's attention kernels, one of ``VARIANTS``.
        builder: image with the same Python and, for kernels without a wheel, CUDA's compiler;
            default: the base.
        only: one of ``COMPONENTS``; default: all of them, and the image that nodes need.

    Raises:
        SystemExit: a step failed; its output has been printed.
    """
    install("buildah")
    base = pinned_base() if base == "pinned" else base
    with build_leftovers.exclusive_build((BASE, base, builder, *names().values())):
        _build_all(base or _debian_base(), variant, builder, only)


def _build_all(base: str, variant: str, builder: str, only: str) -> None:
    images = names()
    before = _identity(images["preprocess"])
    if only in ("", "operator"):
        _build("operator", images["operator"], BASE=base)
    if only != "operator":
        _build("preprocess", images["preprocess"], BASE=base)
    if only in ("", "trainer"):
        arguments = {"BASE": images["preprocess"], "BUILDER": builder or base, "VARIANT": variant}
        _build("trainer", images["trainer"], **arguments)
    if before and before != _identity(images["preprocess"]):
        # frees several GB without a name; also drops the cache of the small stages
        subprocess.run(["buildah", "rmi", "--prune"], capture_output=True, check=False)
    for component in (only,) if only else COMPONENTS:
        sbom.write(images[component], BILLS / f"{component}.cdx.json", commit_time())
    print(f"bills of materials in {BILLS.relative_to(ROOT)}", flush=True)
    if only:
        return
    with tempfile.TemporaryDirectory() as context:
        (Path(context) / "Dockerfile").write_text(f'FROM {base}\nCMD ["sleep", "infinity"]\n')
        _run("buildah", "build", "--layers", "--quiet", "--tag", PAUSE, context)


def pinned_base() -> str:
    """Return the base image of the Dockerfiles, which names its digest."""
    text = (ROOT / "images" / "operator" / "Dockerfile").read_text()
    found = re.search(r"^ARG BASE=(\S+@sha256:[0-9a-f]{64})$", text, re.MULTILINE)
    assert found is not None
    return found[1]


def _identity(name: str) -> str:
    """Return the image's id; empty if it does not exist."""
    done = subprocess.run(
        ["buildah", "inspect", "--type", "image", "--format", "{{.FromImageID}}", name],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() if done.returncode == 0 else ""


def _build(component: str, name: str, **arguments: str) -> None:
    started = time.monotonic()
    arguments |= {"VERSION": version(), "REVISION": _revision()}
    flags = [f"--build-arg={key}={value}" for key, value in arguments.items()]
    # the machine's CA certificates, so that a registry behind a proxy is trusted in the build
    flags += ["--volume=/etc/ssl/certs:/etc/ssl/certs:ro", "--network=host", "--isolation=chroot"]
    dockerfile = ROOT / "images" / component / "Dockerfile"
    _run(
        "buildah",
        "build",
        "--layers",
        "--quiet",
        *flags,
        f"--file={dockerfile}",
        f"--tag={name}",
        str(ROOT),
    )
    print(f"{name}: {_size(name) / 1e6:,.0f} MB, {time.monotonic() - started:.0f} s", flush=True)


def _size(name: str) -> int:
    done = subprocess.run(
        ["buildah", "images", "--json", name], capture_output=True, text=True, check=True
    )
    text = json.loads(done.stdout)[0]["size"]
    number, unit = text.split()
    return int(float(number) * {"KB": 1e3, "MB": 1e6, "GB": 1e9}[unit])


def commit_time() -> datetime:
    """Return the commit's time, so that bills of the same commit are identical."""
    done = subprocess.run(
        ["git", "-C", str(ROOT), "log", "-1", "--format=%ct"],
        capture_output=True,
        text=True,
        check=False,
    )
    return datetime.fromtimestamp(int(done.stdout.strip() or 0), UTC)


def _revision() -> str:
    done = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def _debian_base() -> str:
    """Return the image ``BASE``, built once: Debian with Python, without compilers."""
    if _identity(BASE):
        return BASE
    install("debootstrap")
    print(f"building {BASE} with debootstrap (once; a minute) ...", flush=True)
    with tempfile.TemporaryDirectory() as work:
        root = Path(work) / "root"
        _run(
            "debootstrap",
            "--variant=minbase",
            "--include=ca-certificates,python3,python3-venv",
            SUITE,
            str(root),
            os.environ.get("DEBIAN_MIRROR", MIRROR),
        )
        for folder in _UNNEEDED:
            shutil.rmtree(root / folder, ignore_errors=True)
        (root / "var/log").mkdir()
        context = Path(work) / "context"
        context.mkdir()
        _run("tar", "-C", str(root), "-cf", str(context / "root.tar"), ".")
        (context / "Dockerfile").write_text("FROM scratch\nADD root.tar /\n")
        _run("buildah", "build", "--quiet", "--tag", BASE, str(context))
    return BASE


def install(*packages: str, programs: tuple[str, ...] = ()) -> None:
    """Install Debian packages unless their programs (default: of the same names) exist.

    Raises:
        SystemExit: they are missing, and this is not Debian or not run as root.
    """
    missing = [one for one in programs or packages if shutil.which(one) is None]
    if not missing:
        return
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        raise SystemExit(
            f"error: {', '.join(missing)} missing: install {' '.join(packages)} (with root rights,"
            " `apt-get install` on Debian)"
        )
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for step in (["update", "--quiet"], ["install", "--yes", "--no-install-recommends", *packages]):
        done = subprocess.run(
            ["apt-get", *step], env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"error: apt-get {step[0]} failed:\n{done.stderr[-2000:]}")


def _run(*command: str) -> None:
    done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise SystemExit(f"error: {command[0]} {command[1]} ended with {done.returncode}")


def main() -> int:
    """Build the images."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument(
        "--base", default="", help="image with Python 3.11+, or `pinned`; default: Debian's"
    )
    parser.add_argument("--only", choices=COMPONENTS, default="", help="one image only")
    parser.add_argument(
        "--variant",
        choices=VARIANTS,
        default="portable",
        help="the trainer's attention kernels; default %(default)s",
    )
    parser.add_argument(
        "--builder", default="", help="image with nvcc, for kernels without wheels on PyPI"
    )
    given = parser.parse_args()
    build(given.base, given.variant, given.builder, given.only)
    return 0


if __name__ == "__main__":
    sys.exit(main())
