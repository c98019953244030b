"""Collect facts about this machine and the Hugging Face Hub."""

from __future__ import annotations

import os
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from video2world_operator.preflight.facts import Access, Gpu, Machine

__all__ = ["gpus_here", "gpus_in", "hub", "machine", "token"]

SECONDS = 10.0  # timeout for the Hub


# ---------------------------------------------------------------------- this machine


def machine(volume: Path) -> Machine:
    """Observe the disk at ``volume`` (or where it would be created), memory and GPUs."""
    folder = volume.resolve()
    while not folder.exists():
        folder = folder.parent
    used = sum(path.lstat().st_size for path in volume.rglob("*") if path.is_file())
    return Machine(float(shutil.disk_usage(folder).free + used), _memory(), gpus_here())


def gpus_here() -> list[Gpu] | None:
    """Return the GPUs of this machine; None without a driver."""
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return None
    asked = [smi, "--query-gpu=name,memory.total,compute_cap", "--format=csv,noheader,nounits"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=30)
    return gpus_in(done.stdout) if done.returncode == 0 else None


def gpus_in(table: str) -> list[Gpu]:
    """Parse nvidia-smi's lines of name, memory in MiB and compute capability."""
    found = []
    for line in table.splitlines():
        name, memory, capability = (part.strip() for part in line.rsplit(",", 2))
        found.append(Gpu(name, float(memory) * 2**20, int(capability.partition(".")[0])))
    return found


def _memory() -> float:
    """Return the memory of the machine in bytes, or the limit of its control group."""
    total = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return total
    return min(total, float(limit)) if limit.isdigit() else total


# ---------------------------------------------------------------------- the Hub


def token() -> str:
    """Return the token that huggingface_hub would use; empty if there is none."""
    if value := os.environ.get("HF_TOKEN", "").strip():
        return value
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    try:
        return (home / "token").read_text().strip()
    except OSError:
        return ""


def hub(repositories: Sequence[str]) -> dict[str, Access]:
    """Ask the Hub about each repository (datasets with the prefix ``datasets/``)."""
    if not repositories:
        return {}
    with ThreadPoolExecutor(len(repositories)) as pool:
        return dict(zip(repositories, pool.map(_access, repositories), strict=True))


def _access(repository: str) -> Access:
    base = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    kind = "" if repository.startswith("datasets/") else "models/"
    request = urllib.request.Request(f"{base}/api/{kind}{repository}/auth-check")
    if known := token():
        request.add_unredirected_header("Authorization", f"Bearer {known}")
    try:
        with urllib.request.urlopen(request, timeout=SECONDS):
            return Access.ALLOWED
    except urllib.error.HTTPError as error:
        if error.code == 403 and error.headers.get("X-Error-Code", "") == "GatedRepo":
            return Access.GATED
        if error.code in (401, 403):
            return Access.REFUSED
        return Access.MISSING if error.code == 404 else Access.UNREACHABLE
    except (OSError, ValueError):
        return Access.UNREACHABLE
