"""``make images``: build the container images with buildah, from Debian's packages and PyPI alone.

A base image is made with debootstrap unless ``--base`` names one. Where buildah or debootstrap is
missing, Debian's is installed. The images get their public names, so that the chart and the sample
resources find them where they are imported; nothing is pushed anywhere.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from datetime import UTC, datetime
from pathlib import Path

import sbom
from control_plane.node import PAUSE

ROOT = Path(__file__).resolve().parents[1]
BILLS = ROOT / "build" / "sbom"  # what each image holds, as CycloneDX
REGISTRY = "ghcr.io/video2world"
SUITE, MIRROR = "bookworm", "http://deb.debian.org/debian"
BASE = f"localhost/video2world/base:{SUITE}"
VARIANTS = ("portable", "ampere", "hopper", "blackwell")  # the trainer's attention kernels
# What a base image has no use for in a container.
_LITTER = (
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
    """The distribution's, which is the images' tag."""
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])


def names() -> dict[str, str]:
    """Full names of the images of this version by component, ``pause`` (for a node) the last."""
    ours = {one: f"{REGISTRY}/{one}:{version()}" for one in ("operator", "preprocess", "trainer")}
    return ours | {"pause": PAUSE}


def build(base: str = "", variant: str = "portable", builder: str = "") -> None:
    """Build all images.

    Args:
        base: image with Python 3.11 or newer that they start from; default: made here.
        variant: of the trainer's attention kernels, one of ``VARIANTS``.
        builder: image with the same Python, and CUDA's compiler where kernels have no wheel;
            default: the base.

    Raises:
        SystemExit: a step failed; what it printed stands before.
    """
    install("buildah")
    base = base or _debian_base()
    made = names()
    before = _identity(made["preprocess"])
    _build("operator", made["operator"], BASE=base)
    _build("preprocess", made["preprocess"], BASE=base)
    arguments = {"BASE": made["preprocess"], "BUILDER": builder or base, "VARIANT": variant}
    _build("trainer", made["trainer"], **arguments)
    if before and before != _identity(made["preprocess"]):
        # several GB that nothing names any more; the cache of the small stages goes with them
        subprocess.run(["buildah", "rmi", "--prune"], capture_output=True, check=False)
    for component in ("operator", "preprocess", "trainer"):
        sbom.write(made[component], BILLS / f"{component}.cdx.json", moment())
    print(f"bills of materials in {BILLS.relative_to(ROOT)}", flush=True)
    with tempfile.TemporaryDirectory() as context:
        (Path(context) / "Dockerfile").write_text(f'FROM {base}\nCMD ["sleep", "infinity"]\n')
        _run("buildah", "build", "--layers", "--quiet", "--tag", PAUSE, context)


def _identity(name: str) -> str:
    """The image's id; empty if there is none."""
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
    # the machine's own authorities, so that a registry behind a proxy is trusted in there too
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
    told = subprocess.run(
        ["buildah", "images", "--json", name], capture_output=True, text=True, check=True
    )
    text = json.loads(told.stdout)[0]["size"]
    number, unit = text.split()
    return int(float(number) * {"KB": 1e3, "MB": 1e6, "GB": 1e9}[unit])


def moment() -> datetime:
    """That of the commit, which is what the bills of two builds of it have in common."""
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
    """The image ``BASE``, made once: Debian with Python, and nothing that builds."""
    if _identity(BASE):
        return BASE
    install("debootstrap")
    print(f"making {BASE} with debootstrap (once; a minute) ...", flush=True)
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
        for litter in _LITTER:
            shutil.rmtree(root / litter, ignore_errors=True)
        (root / "var/log").mkdir()
        context = Path(work) / "context"
        context.mkdir()
        _run("tar", "-C", str(root), "-cf", str(context / "root.tar"), ".")
        (context / "Dockerfile").write_text("FROM scratch\nADD root.tar /\n")
        _run("buildah", "build", "--quiet", "--tag", BASE, str(context))
    return BASE


def install(*packages: str, programs: tuple[str, ...] = ()) -> None:
    """Install Debian packages unless the programs (default: of the same names) are there.

    Raises:
        SystemExit: they are missing and this is no Debian, or not run by root.
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
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("--base", default="", help="image with Python 3.11+; default: Debian's")
    parser.add_argument(
        "--variant",
        choices=VARIANTS,
        default="portable",
        help="the trainer's attention kernels; default %(default)s",
    )
    parser.add_argument(
        "--builder", default="", help="image with nvcc for kernels that PyPI has no wheels of"
    )
    given = parser.parse_args()
    build(given.base, given.variant, given.builder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
