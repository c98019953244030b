"""Measure training on the GPUs of one host, by layout (``python -m benchmarks.many_gpus``).

Runs the train command on random weights and latents of the real shapes, with every layout of data
x context parallel ranks that the host's GPUs allow. Prints a table and writes
``benchmarks/results/many_gpus.json``: time, memory, communication, loss and gradient norm compared
with one GPU; a checkpoint resumed by a different number of ranks; SIGTERM and a killed rank.
Earlier measurements stay in the file, so several runs can complete it (``--counts``,
``--contexts``, CUDA_VISIBLE_DEVICES). ``--tiny`` runs everything with the Tiny model, on CPUs with
gloo if there is no GPU, and writes nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .cases import Marks, between, machine, write
from .many_gpus_report import goals, markdown, table
from .random_run import DATA, TINY, events, write_base, write_data, write_samples

MODULE = "benchmarks.many_gpus"
ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "many_gpus.json"
DOCUMENTED = (RESULTS.with_stem("many_gpus_flash_attention_4"), RESULTS)
DOCUMENT = ROOT / "docs" / "performance.md"
MARKS: Marks = (
    "<!-- many_gpus: made by `python -m benchmarks.many_gpus --document` -->",
    "<!-- /many_gpus -->",
)
ITERATIONS = 5  # the first compiles, the last is profiled
STEPS = 4  # per sample: five noise levels, both guidance branches at each


@dataclass(frozen=True)
class Bench:
    """The model to train, and the folder and GPUs to use."""

    size: str
    tiny: bool
    gpus: int
    folder: Path
    timeout: float
    counts: tuple[int, ...] = (1, 2, 4, 8)  # numbers of GPUs to try
    contexts: tuple[int, ...] = (1, 2, 4, 8)
    overrides: tuple[str, ...] = ()  # additional settings of every training

    def prepare(self) -> None:
        """Write latents, embeddings and base weights."""
        write_data(self.folder, TINY if self.tiny else (1, 16, 24, 88, 160))
        write_base(self.folder / "base.pt", "Tiny" if self.tiny else self.size)

    def start(self, name: str, gpus: int, *overrides: str) -> subprocess.Popen[str]:
        """Start the train command on ``gpus`` ranks; the caller reads its output."""
        settings = [
            f"model.size={'Tiny' if self.tiny else self.size}",
            f"job.name={name}",
            f"dataloader_train.dataset.dataset_dir={DATA}",
            "trainer.logging_iter=1",
            "optimizer.clip_norm=1.0",
            "trainer.seed=1",
        ]
        if not self.tiny:
            settings.append("model.config.model_manager_config.dit_path=base.pt")
        launch = ["-m", "video2world_trainer.launch", "--standalone", f"--nproc_per_node={gpus}"]
        return self.spawn(
            *launch, "-m", "benchmarks.many_gpus_rank", "--", *settings, *self.overrides, *overrides
        )

    def spawn(self, *arguments: str) -> subprocess.Popen[str]:
        """Start ``python ARGUMENTS`` on the volume."""
        environment = {
            "PYTORCH_ALLOC_CONF": "expandable_segments:True",
            "OMP_NUM_THREADS": "1",
            **os.environ,
            "NCCL_NVLS_ENABLE": "0",
            "BENCHMARK_PROFILE": str(ITERATIONS),
            "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}",
        }
        return subprocess.Popen(
            [sys.executable, *arguments],
            cwd=self.folder,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def finish(self, process: subprocess.Popen[str]) -> tuple[int, list[dict[str, Any]]]:
        """Wait for a process; return its exit code and events."""
        try:
            output, _ = process.communicate(timeout=self.timeout)
        except subprocess.TimeoutExpired:
            _kill(process.pid)
            output, _ = process.communicate()
        if process.returncode:
            print("\n".join(output.splitlines()[-12:]), flush=True)
        return process.returncode, list(events(output.splitlines()))

    def killed_when(
        self, process: subprocess.Popen[str], seen: Callable[[list[dict[str, Any]]], bool]
    ) -> list[dict[str, Any]]:
        """Return its events until ``seen`` is true for them or it ends; then kill it."""
        received: list[dict[str, Any]] = []
        last: list[str] = []
        timer = threading.Timer(self.timeout, _kill, (process.pid,))
        timer.start()
        assert process.stdout is not None
        for line in process.stdout:
            received += events([line])
            last = [*last[-11:], line.rstrip()]
            if seen(received):
                break
        else:
            print("\n".join(last), flush=True)
        timer.cancel()
        _kill(process.pid)
        process.communicate()
        return received

    def checkpoints(self, name: str) -> Path:
        """Return the checkpoint folder of a job."""
        return self.folder / "checkpoints/posttraining/video2world" / name / "checkpoints"


def layout(bench: Bench, gpus: int, context: int) -> dict[str, Any]:
    """Train a few iterations on ``gpus`` ranks, ``context`` of which share a clip."""
    name = f"dp{gpus // context}_cp{context}"
    process = bench.start(
        name,
        gpus,
        "trainer.max_iter=1000",
        "checkpoint.save_iter=1000",
        f"model_parallel.context_parallel_size={context}",
        f"model.config.fsdp_shard_size={gpus}",
    )

    def enough(seen: list[dict[str, Any]]) -> bool:  # writing the last checkpoint takes minutes
        return len([one for one in seen if one["event"] == "progress"]) >= ITERATIONS

    seen = bench.killed_when(process, enough)
    steps = [one for one in seen if one["event"] == "progress"]
    if not enough(seen):
        return {"error": f"it ended after {len(steps)} iterations"}
    times = [one["seconds_per_iteration"] for one in steps[1:-1]]
    found: dict[str, Any] = {
        "gpus": gpus,
        "data_parallel": gpus // context,
        "context_parallel": context,
        "seconds": statistics.median(times),
        "all_seconds": times,
        "clips_per_second": round(gpus / context / statistics.median(times), 4),
        "peak_GiB": steps[-1].get("peak_memory_gib"),
        "loss": [one["loss"] for one in steps],
        "gradient_norm": [one["gradient_norm"] for one in steps],
    }
    profiles = [one for one in seen if one["event"] == "benchmark_profile"]
    if profiles:
        found |= {"device_seconds": profiles[0]["seconds"], "attention": profiles[0]["attention"]}
    return found


def layouts(bench: Bench, before: dict[str, Any]) -> dict[str, Any]:
    """Measure every layout, with its efficiency and differences compared with one GPU."""
    found = dict(before)
    for gpus in (one for one in bench.counts if one <= bench.gpus):
        for context in (one for one in bench.contexts if gpus % one == 0):
            name = f"{gpus} x GPU, context parallel {context}"
            row = found[name] = layout(bench, gpus, context)
            print(f"{name}: {json.dumps(row)}", flush=True)
    compare(found)
    return found


def compare(found: dict[str, Any]) -> None:
    """Add to every layout how it compares with one GPU."""
    base = found.get("1 x GPU, context parallel 1", {})
    for row in found.values():
        if "error" in row or "seconds" not in base:
            continue
        rate = row["clips_per_second"] / row["gpus"]
        row["efficiency"] = round(rate / base["clips_per_second"], 4)
        if row["data_parallel"] == 1:  # the same clip
            row["loss_difference"] = _difference(row["loss"], base["loss"])
            row["norm_difference"] = _difference(row["gradient_norm"], base["gradient_norm"])


def _difference(found: list[float], expected: list[float]) -> float:
    """Return the largest relative difference over the iterations."""
    pairs = zip(found, expected, strict=True)
    return float(f"{max(abs(a - b) / abs(b) for a, b in pairs):.2e}")


def resume(bench: Bench, before: dict[str, Any]) -> dict[str, Any]:
    """Kill all ranks during their second save, and resume on half of them without FSDP."""
    gpus = bench.gpus
    common = ["trainer.max_iter=4", "checkpoint.save_iter=2"]
    # all ranks share one clip in both runs: means over different numbers of clips differ
    sharded = [
        f"model_parallel.context_parallel_size={gpus}",
        f"model.config.fsdp_shard_size={gpus}",
    ]
    halved = [
        f"model_parallel.context_parallel_size={max(1, gpus // 2)}",
        "model.config.fsdp_shard_size=1",
    ]

    def losses(seen: list[dict[str, Any]]) -> dict[int, float]:
        return {one["iteration"]: one["loss"] for one in seen if one["event"] == "progress"}

    def saved(seen: list[dict[str, Any]]) -> bool:
        return 4 in losses(seen) and any(one["event"] == "checkpoint" for one in seen)

    since = time.monotonic()
    first = bench.killed_when(bench.start("resumed", gpus, *common, *sharded), saved)
    if not saved(first):
        return {"error": f"no checkpoint; iterations {sorted(losses(first))}"}
    killed_after = round(time.monotonic() - since, 1)
    checkpoints = bench.checkpoints("resumed")
    if (
        newer := checkpoints / "trainer/iter_000000004.pt"
    ).exists():  # a small one is saved that fast
        newer.unlink()
        (checkpoints / "latest_checkpoint.txt").write_text("iter_000000002.pt")
    size = sum(
        one.stat().st_size
        for one in checkpoints.rglob("*")
        if "iter_000000002" in str(one) and one.is_file()
    )
    again = bench.killed_when(
        bench.start("resumed", gpus // 2, *common, *halved), lambda seen: 4 in losses(seen)
    )
    expected, after = losses(first), losses(again)
    if 4 not in after:
        return {"error": f"not resumed; iterations {sorted(after)}"}
    return {
        "ranks": [gpus, gpus // 2],
        "checkpoint_bytes": size,
        "seconds_until_killed": killed_after,
        "resumed_at": [one["iteration"] for one in again if one["event"] == "resumed"],
        "loss": expected,
        "loss_after": after,
        "loss_difference": _difference([after[n] for n in after], [expected[n] for n in after]),
    }


def faults(bench: Bench, before: dict[str, Any]) -> dict[str, Any]:
    """Send SIGTERM to the launcher (saves, exits with 143) and kill a rank (all end soon)."""
    found: dict[str, Any] = {}
    for name, number in (("sigterm", signal.SIGTERM), ("killed_rank", signal.SIGKILL)):
        process = bench.start(
            name,
            bench.gpus,
            "trainer.max_iter=100000",
            "checkpoint.save_iter=100000",
            f"model_parallel.context_parallel_size={bench.gpus}",
            f"model.config.fsdp_shard_size={bench.gpus}",
        )
        assert process.stdout is not None
        iteration = 0
        for line in process.stdout:
            for event in events([line]):
                iteration = event.get("iteration") or iteration
            if iteration >= 3:
                break
        if process.poll() is not None or iteration < 3:
            found[name] = {"error": f"ended with {process.wait()} after {iteration} iterations"}
            continue
        since = time.monotonic()
        os.kill(process.pid if name == "sigterm" else _rank(process.pid), number)
        try:
            output, _ = process.communicate(timeout=bench.timeout)
        except subprocess.TimeoutExpired:
            _kill(process.pid)
            found[name] = {"error": f"still running after {bench.timeout:.0f} s"}
            continue
        latest = bench.checkpoints(name) / "latest_checkpoint.txt"
        found[name] = {
            "exit_code": process.returncode,
            "seconds_to_the_end": round(time.monotonic() - since, 1),
            "sent_after_iteration": iteration,
            "checkpoint": latest.read_text().strip() if latest.exists() else None,
            "said": [line for line in output.splitlines() if re.search("error|asked", line)][-2:],
        }
        print(f"{name}: {json.dumps(found[name])}", flush=True)
    return found


def inference(bench: Bench, before: dict[str, Any]) -> dict[str, Any]:
    """Measure seconds per sample by number of GPUs, on the second of two, after compilation."""
    size = "Tiny" if bench.tiny else bench.size
    samples = write_samples(bench.folder, 2, size)
    found = dict(before)
    for gpus in (one for one in bench.counts if one <= bench.gpus):
        shutil.rmtree(bench.folder / "results", ignore_errors=True)
        code, _ = bench.finish(
            bench.spawn(
                "-m",
                "video2world_trainer.inference",
                f"--model_size={size}",
                "--dit_path=base.pt",
                f"--batch_input_json={samples}",
                "--vae_path=vae",
                f"--num_steps={STEPS}",
                "--negative_prompt=",
                f"--num_gpus={gpus}",
            )
        )
        figures = bench.folder / "results" / "1.json"
        if code or not figures.exists():
            found[str(gpus)] = {"error": f"exit code {code}"}
            continue
        record = json.loads(figures.read_text())
        seconds = record["timings"]["denoise"] / (STEPS + 1)
        found[str(gpus)] = {
            "steps": STEPS,
            "timings": record["timings"],
            "peak_GiB": record["peak_memory_gib"],
            "seconds_a_level": round(seconds, 3),
        }
        print(f"inference on {gpus}: {json.dumps(found[str(gpus)])}", flush=True)
    if "seconds_a_level" in found.get("1", {}):
        for row in found.values():
            if "seconds_a_level" in row:
                speedup = found["1"]["seconds_a_level"] / row["seconds_a_level"]
                row["speedup"] = round(speedup, 3)
    return found


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):  # it may end meanwhile
        for path in Path(f"/proc/{pid}/task").glob("*/children"):
            found += map(int, path.read_text().split())
    return found


def _kill(pid: int) -> None:
    """Kill a process and its descendants: the launcher's workers have sessions of their own."""
    below = _children(pid)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    for one in below:
        _kill(one)


def _rank(launcher: int) -> int:
    """Return a worker of ``launcher`` that is not the first."""
    workers = [
        one
        for one in _children(launcher)
        if b"many_gpus_rank" in Path(f"/proc/{one}/cmdline").read_bytes()
    ]
    return workers[-1]


CASES = {one.__name__: one for one in (layouts, inference, resume, faults)}


def main(argv: list[str] | None = None) -> int:
    """Run the cases and write the record."""
    flags = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=__doc__)
    flags.add_argument("--size", choices=("2B", "14B"), default="2B")
    flags.add_argument("--gpus", type=int, default=torch.cuda.device_count())
    flags.add_argument("--counts", nargs="+", type=int, default=[1, 2, 4, 8], help="of GPUs")
    flags.add_argument("--contexts", nargs="+", type=int, default=[1, 2, 4, 8])
    flags.add_argument("--set", nargs="+", default=[], help="additional settings, key=value")
    flags.add_argument("--only", nargs="+", choices=[*CASES], default=[*CASES])
    flags.add_argument("--scratch", type=Path, help="folder for temporary files")
    flags.add_argument("--timeout", type=float, default=400, help="maximum seconds of a command")
    flags.add_argument("--commit", default="", help="commit, without a git repository")
    flags.add_argument("--json", type=Path, default=RESULTS)
    flags.add_argument("--tiny", action="store_true", help="run the cases without recording them")
    flags.add_argument(
        "--document", action="store_true", help="only write the records into docs/performance.md"
    )
    args = flags.parse_args(argv)
    if args.document:
        records = [json.loads(one.read_text(encoding="utf-8")) for one in DOCUMENTED]
        tables = "\n\n".join(map(markdown, records))
        DOCUMENT.write_text(between(MARKS, DOCUMENT.read_text(encoding="utf-8"), tables), "utf-8")
        return 0
    gpus = args.gpus or (2 if args.tiny else 0)
    if not gpus:
        raise SystemExit("error: this needs GPUs, ideally several (--tiny runs without)")
    if gpus == 1 and {"resume", "faults"} & {*args.only}:
        raise SystemExit("error: resume and faults need two GPUs: add --only layouts inference")
    record: dict[str, Any] = {"cases": {}}
    if args.json.exists():
        record = json.loads(args.json.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
        bench = Bench(
            args.size,
            args.tiny,
            gpus,
            Path(folder),
            args.timeout,
            tuple(args.counts),
            tuple(args.contexts),
            tuple(args.set),
        )
        bench.prepare()
        for name in args.only:
            cases = record["cases"].setdefault(args.size, {})
            found = CASES[name](bench, cases.get(name, {}))
            print(f"{name}: {json.dumps(found)}", flush=True)
            cases[name] = found
            if not args.tiny:
                record["machine"] = machine(MODULE, args.commit) | {"gpus": gpus}
                record["goals"] = goals(args.size, record["cases"][args.size])
                write(args.json, record)
    print(table(record["cases"][args.size]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
