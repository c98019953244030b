"""Collect the facts of this machine and of the Hugging Face Hub that preflight checks judge."""

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

__all__ = ["gpus_in", "hub", "machine", "token"]

SECONDS = 10.0  # that the Hub gets to answer


# ---------------------------------------------------------------------- this machine


def machine(volume: Path) -> Machine:
    """Disk at ``volume`` (or where it would be made), memory, and GPUs."""
    folder = volume.resolve()
    while not folder.exists():
        folder = folder.parent
    smi = shutil.which("nvidia-smi")
    gpus: list[Gpu] | None = None
    if smi:
        asked = [smi, "--query-gpu=name,memory.total,compute_cap", "--format=csv,noheader,nounits"]
        told = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=30)
        gpus = gpus_in(told.stdout) if told.returncode == 0 else None
    used = sum(path.lstat().st_size for path in volume.rglob("*") if path.is_file())
    return Machine(float(shutil.disk_usage(folder).free + used), _memory(), gpus)


def gpus_in(table: str) -> list[Gpu]:
    """The GPUs in nvidia-smi's lines of name, memory in MiB and compute capability."""
    found = []
    for line in table.splitlines():
        name, memory, capability = (part.strip() for part in line.rsplit(",", 2))
        found.append(Gpu(name, float(memory) * 2**20, int(capability.partition(".")[0])))
    return found


def _memory() -> float:
    """Bytes that this process may use: the machine's, or its control group's limit."""
    total = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return total
    return min(total, float(limit)) if limit.isdigit() else total


# ---------------------------------------------------------------------- the Hub


def token() -> str:
    """The Hugging Face token that the Hub's own client would use; empty if there is none."""
    if given := os.environ.get("HF_TOKEN", "").strip():
        return given
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    try:
        return (home / "token").read_text().strip()
    except OSError:
        return ""


def hub(repositories: Sequence[str]) -> dict[str, Access]:
    """What the Hub says of each repository (data sets with the prefix ``datasets/``)."""
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
