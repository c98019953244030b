"""``python -m benchmarks.many_gpus``: training on the GPUs of one host, by layout.

Runs the train command itself on random weights and latents of the true shapes, with every layout
of data x context parallel ranks that the host's GPUs allow, prints a table and writes
``benchmarks/results/many_gpus.json``: time, memory, what goes to communication, loss and gradient
norm beside one GPU's; a checkpoint resumed by another number of ranks; SIGTERM and a killed rank.
What was measured before stays in the file, so that it can be done in several goes (``--counts``,
``--contexts``, CUDA_VISIBLE_DEVICES). ``--tiny`` does the same with the Tiny model, on CPUs with
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
GOALS = {("2B", 8, 2): 6.0, ("14B", 8, 8): 6.0}  # seconds an iteration, by size, GPUs and context
STEPS = 4  # of a sample: five noise levels, both branches of guidance at each


@dataclass(frozen=True)
class Bench:
    """What is trained, and where."""

    size: str
    tiny: bool
    gpus: int
    folder: Path
    timeout: float
    counts: tuple[int, ...] = (1, 2, 4, 8)  # of GPUs that are tried
    contexts: tuple[int, ...] = (1, 2, 4, 8)
    overrides: tuple[str, ...] = ()  # further settings of every training

    def prepare(self) -> None:
        """Latents, embeddings and, unless the model is Tiny, base weights."""
        write_data(self.folder, TINY if self.tiny else (1, 16, 24, 88, 160))
        write_base(self.folder / "base.pt", "Tiny" if self.tiny else self.size)

    def start(self, name: str, gpus: int, *overrides: str) -> subprocess.Popen[str]:
        """The train command on ``gpus`` ranks; its output is read by the caller."""
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
        """``python ARGUMENTS`` on the volume."""
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
        """Wait for a process: exit code and events."""
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
        """Its events up to the moment they are what is ``seen``, or its end; then SIGKILL."""
        told: list[dict[str, Any]] = []
        last: list[str] = []
        timer = threading.Timer(self.timeout, _kill, (process.pid,))
        timer.start()
        assert process.stdout is not None
        for line in process.stdout:
            told += events([line])
            last = [*last[-11:], line.rstrip()]
            if seen(told):
                break
        else:
            print("\n".join(last), flush=True)
        timer.cancel()
        _kill(process.pid)
        process.communicate()
        return told

    def checkpoints(self, name: str) -> Path:
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

    def enough(told: list[dict[str, Any]]) -> bool:  # writing the last checkpoint takes minutes
        return sum(one["event"] == "progress" for one in told) >= ITERATIONS

    told = bench.killed_when(process, enough)
    steps = [one for one in told if one["event"] == "progress"]
    if not enough(told):
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
    profiles = [one for one in told if one["event"] == "benchmark_profile"]
    if profiles:
        found |= {"device_seconds": profiles[0]["seconds"], "attention": profiles[0]["attention"]}
    return found


def layouts(bench: Bench, before: dict[str, Any]) -> dict[str, Any]:
    """Every layout, with its efficiency and agreement against one GPU."""
    found = dict(before)
    for gpus in (one for one in bench.counts if one <= bench.gpus):
        for context in (one for one in bench.contexts if gpus % one == 0):
            name = f"{gpus} x GPU, context parallel {context}"
            row = found[name] = layout(bench, gpus, context)
            print(f"{name}: {json.dumps(row)}", flush=True)
    compare(found)
    return found


def compare(found: dict[str, Any]) -> None:
    """Put beside every layout how it does against one GPU."""
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
    """Largest relative difference, iteration by iteration."""
    pairs = zip(found, expected, strict=True)
    return float(f"{max(abs(a - b) / abs(b) for a, b in pairs):.2e}")


def resume(bench: Bench, before: dict[str, Any]) -> dict[str, Any]:
    """Save on all ranks, SIGKILL to all while the next is saved; go on with half of them and
    without FSDP."""
    gpus = bench.gpus
    common = ["trainer.max_iter=4", "checkpoint.save_iter=2"]
    # all share one clip before and after: means over unlike numbers of clips do not compare
    sharded = [
        f"model_parallel.context_parallel_size={gpus}",
        f"model.config.fsdp_shard_size={gpus}",
    ]
    halved = [
        f"model_parallel.context_parallel_size={max(1, gpus // 2)}",
        "model.config.fsdp_shard_size=1",
    ]

    def losses(told: list[dict[str, Any]]) -> dict[int, float]:
        return {one["iteration"]: one["loss"] for one in told if one["event"] == "progress"}

    def saved(told: list[dict[str, Any]]) -> bool:
        return 4 in losses(told) and any(one["event"] == "checkpoint" for one in told)

    since = time.monotonic()
    whole = bench.killed_when(bench.start("whole", gpus, *common, *sharded), saved)
    if not saved(whole):
        return {"error": f"no checkpoint; iterations {sorted(losses(whole))}"}
    told_after = round(time.monotonic() - since, 1)
    checkpoints = bench.checkpoints("whole")
    if (newer := checkpoints / "trainer/iter_000000004.pt").exists():  # a small one is that quick
        newer.unlink()
        (checkpoints / "latest_checkpoint.txt").write_text("iter_000000002.pt")
    size = sum(
        one.stat().st_size
        for one in checkpoints.rglob("*")
        if "iter_000000002" in str(one) and one.is_file()
    )
    again = bench.killed_when(
        bench.start("whole", gpus // 2, *common, *halved), lambda told: 4 in losses(told)
    )
    expected, after = losses(whole), losses(again)
    if 4 not in after:
        return {"error": f"not resumed; iterations {sorted(after)}"}
    return {
        "ranks": [gpus, gpus // 2],
        "checkpoint_bytes": size,
        "seconds_until_killed": told_after,
        "resumed_at": [one["iteration"] for one in again if one["event"] == "resumed"],
        "loss": expected,
        "loss_after": after,
        "loss_difference": _difference([after[n] for n in after], [expected[n] for n in after]),
    }


def faults(bench: Bench, before: dict[str, Any]) -> dict[str, Any]:
    """SIGTERM to the launcher saves and ends with 143; a killed rank ends all, soon."""
    found = {}
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
    """Seconds a sample, by GPUs that share it; the second of two samples, after compilation."""
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
        told = bench.folder / "results" / "1.json"
        if code or not told.exists():
            found[str(gpus)] = {"error": f"exit code {code}"}
            continue
        record = json.loads(told.read_text())
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
    with contextlib.suppress(OSError):  # it ends meanwhile
        for path in Path(f"/proc/{pid}/task").glob("*/children"):
            found += map(int, path.read_text().split())
    return found


def _kill(pid: int) -> None:
    """SIGKILL to a process and all below it: the launcher's workers have sessions of their own."""
    below = _children(pid)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    for one in below:
        _kill(one)


def _rank(launcher: int) -> int:
    """A worker of ``launcher`` that is not the first."""
    workers = [
        one
        for one in _children(launcher)
        if b"many_gpus_rank" in Path(f"/proc/{one}/cmdline").read_bytes()
    ]
    return workers[-1]


CASES = {one.__name__: one for one in (layouts, inference, resume, faults)}


def goals(size: str, found: dict[str, Any]) -> list[dict[str, Any]]:
    """The goals that were measured, and whether they are met."""
    rows = []
    for row in found.get("layouts", {}).values():
        limit = GOALS.get((size, row.get("gpus"), row.get("context_parallel")))
        if limit is not None and "seconds" in row:
            what = f"{size}, {row['gpus']} GPUs, context parallel {row['context_parallel']}, s"
            rows.append(
                {
                    "goal": f"{what} <= {limit:g}",
                    "measured": row["seconds"],
                    "met": row["seconds"] <= limit,
                }
            )
    return rows


def table(found: dict[str, Any]) -> str:
    """The layouts for people."""
    lines = [f"{'layout':<30}{'s/iteration':>12}{'efficiency':>12}{'peak GiB':>10}{'NCCL s':>8}"]
    for name, row in found.get("layouts", {}).items():
        if "error" in row:
            lines.append(f"{name:<30}  failed: {row['error']}")
            continue
        talk = row.get("device_seconds", {}).get("communication", "")
        lines.append(
            f"{name:<30}{row['seconds']:>12}{row.get('efficiency', ''):>12}"
            f"{row['peak_GiB'] or '':>10}{talk:>8}"
        )
    return "\n".join(lines)


def markdown(record: dict[str, Any]) -> str:
    """The record for docs/performance.md."""
    place = record["machine"]
    cards = place["nvidia_smi"].splitlines()
    lines = [
        f"{len(cards)} x {cards[0]} (name, driver, memory) of one host, PyTorch {place['torch']}, "
        f"{place['date']}, commit {place['commit'][:12]}, `{place['command']}`."
    ]
    for size, cases in record["cases"].items():
        lines += [
            "",
            f"| {size}: GPUs, data x context parallel | attention | s an iteration | "
            "efficiency | peak GiB a GPU | s of communication | loss, gradient norm against "
            "one GPU's |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        for name, row in cases.get("layouts", {}).items():
            if "error" in row:
                lines.append(f"| {name} | | failed: {row['error']} | | | | |")
                continue
            layout = f"{row['gpus']}, {row['data_parallel']} x {row['context_parallel']}"
            talk = row.get("device_seconds", {}).get("communication", "")
            apart = ""
            if "loss_difference" in row and row["gpus"] > 1:
                apart = f"{row['loss_difference']:.1e}, {row['norm_difference']:.1e}"
            lines.append(
                f"| {layout} | {row.get('attention', '')} | {row['seconds']:.2f} | "
                f"{row.get('efficiency', '')} | {row['peak_GiB']} | {talk} | {apart} |"
            )
        if rows := cases.get("inference"):
            lines += [
                "",
                f"| {size}: GPUs that share a sample | s a noise level, both branches | "
                "speed-up | s of decoding |",
                "| --- | --- | --- | --- |",
            ]
            lines += [
                f"| {gpus} | {row['seconds_a_level']} | {row.get('speedup', '')} | "
                f"{row['timings']['decode']} |"
                for gpus, row in rows.items()
                if "error" not in row
            ]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run the cases and write the record."""
    flags = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=__doc__)
    flags.add_argument("--size", choices=("2B", "14B"), default="2B")
    flags.add_argument("--gpus", type=int, default=torch.cuda.device_count())
    flags.add_argument("--counts", nargs="+", type=int, default=[1, 2, 4, 8], help="of GPUs")
    flags.add_argument("--contexts", nargs="+", type=int, default=[1, 2, 4, 8])
    flags.add_argument("--set", nargs="+", default=[], help="further settings, key=value")
    flags.add_argument("--only", nargs="+", choices=[*CASES], default=[*CASES])
    flags.add_argument("--scratch", type=Path, help="where to work (a temporary folder)")
    flags.add_argument("--timeout", type=float, default=400, help="seconds a command may take")
    flags.add_argument("--commit", default="", help="where git cannot tell it")
    flags.add_argument("--json", type=Path, default=RESULTS)
    flags.add_argument("--tiny", action="store_true", help="try the cases, measure nothing")
    flags.add_argument(
        "--document", action="store_true", help="only put the records into docs/performance.md"
    )
    args = flags.parse_args(argv)
    if args.document:
        records = [json.loads(one.read_text(encoding="utf-8")) for one in DOCUMENTED]
        told = "\n\n".join(map(markdown, records))
        DOCUMENT.write_text(between(MARKS, DOCUMENT.read_text(encoding="utf-8"), told), "utf-8")
        return 0
    gpus = args.gpus or (2 if args.tiny else 0)
    if not gpus:
        raise SystemExit("error: this needs GPUs, best several (--tiny tries it without)")
    if gpus == 1 and {"resume", "faults"} & {*args.only}:
        raise SystemExit("error: resume and faults need two GPUs: give --only layouts inference")
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
