"""Gather what a bug report needs in one redacted archive (v2w doctor)."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from video2world_operator import __version__
from video2world_operator.cli.common import UsageError
from video2world_operator.cli.redact import redact

if TYPE_CHECKING:
    from video2world_operator.cli.snapshot import ClusterObjects, Snapshot

__all__ = ["doctor_cluster", "doctor_local"]

PACKAGES = (
    *("torch", "transformers", "diffusers", "av", "huggingface_hub"),
    *("flash-attn-4", "flash-attn", "transformer-engine", "natten"),
    *("kubernetes", "kopf", "pydantic"),
)
ENVIRONMENT = ("V2W_", "HF_", "CUDA_", "NCCL_", "TORCH", "OMP_", "PYTHON", "KUBECONFIG")
FILE_BYTES = 256 << 10  # kept of the end of each log
LOGS = 24  # newest logs
ABOUT = "Bundle of `v2w doctor` for a bug report. Look through it before you send it.\n"


def doctor_local(args: argparse.Namespace) -> int:
    """Gather the versions and, of the run on ``args.volume``, state, causes and logs."""
    from video2world_operator.cli.local_run import snapshot
    from video2world_operator.cli.snapshot import ClusterObjects

    files = _machine(args.volume or Path.cwd())
    if args.name:
        seen = snapshot(args.volume, args.name)
        folder = args.volume / ".video2world" / args.name
        files["state.json"] = _end(folder / "state.json")
        files["explain.txt"] = _explained(seen, ClusterObjects())
        logs = sorted(folder.glob("logs/*.log"), key=lambda path: path.stat().st_mtime)
        files |= {f"logs/{path.name}": _end(path) for path in logs[-LOGS:]}
    return _write(args, files)


def doctor_cluster(args: argparse.Namespace) -> int:
    """Gather the versions and, of the resource, spec, status, causes, objects and logs."""
    from video2world_operator.cli.cluster_bundle import bundle
    from video2world_operator.cli.cluster_run import observe

    files = _machine(Path.cwd())
    if args.name:
        files["explain.txt"] = _explained(*observe(args.name, args.namespace))
        files |= bundle(args.name, args.namespace, logs=LOGS, log_bytes=FILE_BYTES)
    return _write(args, files)


def _machine(folder: Path) -> dict[str, str]:
    """Describe versions, environment, disk and GPUs of this machine."""
    packages = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            packages[name] = importlib.metadata.version(name)
    while not folder.exists():
        folder = folder.parent
    disk = shutil.disk_usage(folder)
    facts = {
        "v2w": __version__,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": sys.version,
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "disk_free_gib": round(disk.free / 2**30, 1),
        "packages": packages,
        "environment": {k: v for k, v in sorted(os.environ.items()) if k.startswith(ENVIRONMENT)},
    }
    files = {"versions.json": json.dumps(facts, indent=1) + "\n"}
    if smi := shutil.which("nvidia-smi"):
        with contextlib.suppress(subprocess.TimeoutExpired):
            done = subprocess.run([smi], capture_output=True, text=True, check=False, timeout=30)
            files["nvidia-smi.txt"] = done.stdout + done.stderr
    return files


def _explained(seen: Snapshot, objects: ClusterObjects) -> str:
    from video2world_operator.cli.inspect import print_causes

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        print_causes(seen, objects)
    return out.getvalue()


def _end(path: Path) -> str:
    """Return the end of a text file; a note if it cannot be read."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - FILE_BYTES))
            return stream.read().decode("utf-8", "replace")
    except OSError as error:
        return f"(not readable: {error.strerror})\n"


def _write(args: argparse.Namespace, files: Mapping[str, str]) -> int:
    """Write the archive, redacted, and list what it holds."""
    from video2world_operator.preflight.machine import token

    path: Path = args.output or Path(f"v2w-doctor-{args.name or 'machine'}.zip")
    known = [token()]
    clean = {name: redact(text, known) for name, text in sorted(files.items())}
    try:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("README.txt", ABOUT)
            for name, text in clean.items():
                archive.writestr(name, text)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from None
    for name, text in clean.items():
        changed = "  (redacted)" if text != files[name] else ""
        print(f"{len(text.encode()):>9}  {name}{changed}")
    print(f"{path} holds these files. Secrets are never read, and what looks like a token is")
    print("removed; captions, prompts and paths are kept: look through it before you send it.")
    return 0
