"""Run the GPU benchmarks' cases in processes of their own and keep their record."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

__all__ = ["GRADIENTS", "Marks", "answer", "between", "machine", "run_case", "verdicts", "write"]

Marks = tuple[str, str]  # lines of a document that enclose the table of a record
RETURN = "BENCHMARK_RESULT"  # variable: file that the process of a case writes its result to
GRADIENTS = ("out", "dq", "dk", "dv")  # attention's output and gradients, as records name them


def run_case(name: str, module: str, **options: Any) -> dict[str, Any]:
    """Run a case of ``module`` and return its result, or its error under ``error``."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.json"
        environment = {
            "PYTORCH_ALLOC_CONF": "expandable_segments:True",
            **os.environ,
            RETURN: str(path),
        }
        command = [sys.executable, "-m", module, "--case", name]
        done = subprocess.run(
            [*command, "--options", json.dumps(options)],
            env=environment,
            text=True,
            stderr=subprocess.PIPE,
        )
        if done.returncode or not path.exists():
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            print(f"{name} {options} failed:\n" + "\n".join(lines[-12:]), flush=True)
            return {"error": lines[-1], "options": options}
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        print(f"{name} {options}: {json.dumps(result)}", flush=True)
        return result


def answer(cases: Mapping[str, Callable[..., dict[str, Any]]], name: str, options: str) -> int:
    """Run a case in the process that :func:`run_case` started for it; return the exit code."""
    result = cases[name](**json.loads(options))
    Path(os.environ[RETURN]).write_text(json.dumps(result), encoding="utf-8")
    return 0


def machine(module: str, commit: str = "") -> dict[str, Any]:
    """Describe the machine, versions, commit and command of a measurement.

    ``commit``: for machines without the git repository.
    """
    import torch

    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    card = subprocess.run(query, capture_output=True, text=True).stdout.strip()
    return {
        "device": torch.cuda.get_device_name(),
        "nvidia_smi": card,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "python": platform.python_version(),
        "commit": commit or _commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join([f"python -m {module}", *sys.argv[1:]]),
    }


def _commit() -> str:
    done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip()


def write(path: Path, record: dict[str, Any]) -> None:
    """Write what has been measured so far."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def verdicts(record: dict[str, Any]) -> list[str]:
    """Return a line for each goal of a record."""
    return [
        f"{'met   ' if one['met'] else 'MISSED'} {one['goal']}: {one['measured']}"
        for one in record["goals"]
    ]


def between(marks: Marks, text: str, content: str) -> str:
    """Return ``text`` with ``content`` between its marks."""
    before, _, rest = text.partition(marks[0])
    _, _, after = rest.partition(marks[1])
    return f"{before}{marks[0]}\n{content}\n{marks[1]}{after}"
