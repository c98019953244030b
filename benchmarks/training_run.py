"""Run the train command with the 2B size on this machine's GPU, with validation and phases.

Run as ``python -m benchmarks.training_run``: random weights, latents and captions of the real
shapes. Writes ``benchmarks/results/training_run.json``, and a table with ``--document`` into
docs/performance.md. Every case runs in a process of its own.

- ``phases``: dense attention, a phase at 432x768 and one at 704x1280, with a validation before
  training, at the size of the last phase;
- ``sparse``: sparse attention at 704x1280, with a validation before training;
- ``sparse_kernels``: sparse attention inside activation checkpointing, by kernel;
- ``step`` and ``step_with_actions``: the dense step at 704x1280, without and with actions of 7
  numbers per frame.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from video2world_trainer.training.validation_config import DEFAULT_CLIPS

from .cases import Marks, answer, between, machine, run_case, verdicts, write
from .host import ROOT
from .random_run import DATA, events, write_base, write_data

__all__ = ["documented", "figures", "goals", "main", "validation"]

RESULTS = ROOT / "benchmarks" / "results" / "training_run.json"
DOCUMENT = ROOT / "docs" / "performance.md"
MARKS: Marks = (
    "<!-- training_run: made by `python -m benchmarks.training_run --document` -->",
    "<!-- /training_run -->",
)
MODULE = "benchmarks.training_run"
SIZE = "2B"
LOW, HIGH = (432, 768), (704, 1280)
EACH = 6  # iterations of each phase
WARM = 2  # of them, before those that are measured
DEFAULT_INTERVAL = 500  # iterations between two validations
LIMIT = 560  # seconds of a run


def _latents(size: tuple[int, int]) -> tuple[int, ...]:
    return (1, 16, 24, size[0] // 8, size[1] // 8)


def _run(*settings: str, until: int) -> list[dict[str, Any]]:
    """Train until the report of iteration ``until``, kill the process, and return its events."""
    with tempfile.TemporaryDirectory() as folder:
        volume = Path(folder)
        train, held_out = DATA, DATA.replace("train", "val")
        for split, windows in ((train, 2 * EACH), (held_out, DEFAULT_CLIPS)):
            write_data(volume, _latents(HIGH), windows, split)
        write_data(volume, _latents(LOW), 2 * EACH, train, f"latents_{LOW[0]}x{LOW[1]}")
        write_base(volume / "base.pt", SIZE)
        command = ["-m", "video2world_trainer.train", "--", f"model.size={SIZE}", "job.name=run"]
        command += [f"dataloader_train.dataset.dataset_dir={DATA}", "trainer.logging_iter=1"]
        command += ["model.config.model_manager_config.dit_path=base.pt", "trainer.max_iter=1000"]
        command += ["trainer.run_validation=true", "model_parallel.context_parallel_size=1"]
        process = subprocess.Popen(
            [sys.executable, *command, *settings],
            cwd=volume,
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        seen, lines, end = [], list[str](), time.monotonic() + LIMIT
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.rstrip())
            print(line.rstrip(), file=sys.stderr, flush=True)
            seen += list(events([line]))
            done = any(one["event"] == "progress" and one["iteration"] >= until for one in seen)
            if done or time.monotonic() > end:
                break
        else:
            raise SystemExit("\n".join(lines[-12:]))
        os.killpg(process.pid, signal.SIGKILL)  # writing a checkpoint would take minutes
        process.wait()
        return seen


def figures(seen: list[dict[str, Any]], first: int, last: int) -> dict[str, Any]:
    """Return the times of iterations ``first`` to ``last``, without warm-up."""
    reports = {one["iteration"]: one for one in seen if one["event"] == "progress"}
    times = [reports[n]["seconds_per_iteration"] for n in range(first, last + 1)]
    return {
        "first_seconds": times[0],
        "seconds": statistics.median(times[WARM:]),
        "all_seconds": times[WARM:],
        "loss": reports[last]["loss"],
    }


def validation(seen: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
    """Return the time of the last validation, and its share of training time.

    The first one includes compilation; ``all_seconds`` has them all.
    """
    found = [one for one in seen if one["event"] == "validation"]
    one = found[-1]
    share = one["seconds"] / (one["seconds"] + DEFAULT_INTERVAL * seconds)
    return {name: one[name] for name in ("seconds", "loss")} | {
        "all_seconds": [one["seconds"] for one in found],
        "clips": DEFAULT_CLIPS,
        "share_of_training_time": round(share, 4),
    }


def phases() -> dict[str, Any]:
    """Train in two phases: dense attention at both sizes."""
    sizes = json.dumps([[*LOW, EACH], [*HIGH]])
    seen = _run(f"trainer.phases={sizes}", until=2 * EACH)
    high = figures(seen, EACH + 1, 2 * EACH)
    return {
        "432x768": figures(seen, 1, EACH),
        "704x1280": high,
        "validation": validation(seen, high["seconds"]),
    }


def sparse() -> dict[str, Any]:
    """Train with sparse attention at 704x1280."""
    seen = _run("model.attention_pattern=sparse", "trainer.validation_iter=4", until=EACH)
    high = figures(seen, 1, EACH)
    return {"704x1280": high, "validation": validation(seen, high["seconds"])}


def sparse_kernels() -> dict[str, Any]:
    """Compute gradients of sparse blocks that recompute activations, with each kernel."""
    import torch

    from video2world_trainer.distributed.activation_checkpoint import prepare_blocks
    from video2world_trainer.model.attention_backends import select_for
    from video2world_trainer.model.presets import PRESETS
    from video2world_trainer.model.sparse_attention import patterns_for
    from video2world_trainer.model.sparse_kernels import sparse_attention
    from video2world_trainer.training.loss import training_loss

    from .train_step_cases import BF16, GIB, _batch, network

    preset, device, grid = PRESETS["2B"], torch.device("cuda"), (24, 44, 80)
    net = network(preset.dit)
    dense = select_for("auto", device, BF16)
    latents, text, noise = _batch((16, 24, 88, 160))
    found: dict[str, Any] = {}
    wanted: dict[str, Any] = {}
    for kernel in ("flash_attention_4", "flex", "natten"):
        for keep in ("nothing", "attention"):
            net.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            try:
                patterns = patterns_for("2B", grid)
                attend = sparse_attention(patterns, grid, device, kernel, dense.attend)
                net.set_attention(dense.cross_attention, attend)
                prepare_blocks(net, keep=cast("Any", keep), compiled=False)
                times = []
                for _ in range(2):
                    net.zero_grad(set_to_none=True)
                    torch.cuda.synchronize()
                    started = time.monotonic()
                    loss = training_loss(net, latents, text, noise, dtype=BF16)
                    loss.backward()
                    torch.cuda.synchronize()
                    times.append(round(time.monotonic() - started, 3))
                gradients = {
                    name: one.grad.float().cpu()
                    for name, one in net.named_parameters()
                    if one.grad is not None and "self_attn" in name
                }
                wanted = wanted or gradients
                found[f"{kernel}, {keep}"] = {
                    "first_seconds": times[0],
                    "seconds": times[1],
                    "loss": float(loss),
                    "largest_difference": max(
                        float((one - wanted[name]).norm() / wanted[name].norm())
                        for name, one in gradients.items()
                    ),
                    "peak_GiB": round(torch.cuda.max_memory_allocated() / GIB, 2),
                }
            except Exception as error:  # the others are still measured
                found[f"{kernel}, {keep}"] = {"error": f"{type(error).__name__}: {error}"[-1500:]}
            print(kernel, keep, found[f"{kernel}, {keep}"], file=sys.stderr, flush=True)
    return found


def step(dimension: int = 0) -> dict[str, Any]:
    """Measure the dense step, conditioned on actions of ``dimension`` numbers if it is not 0."""
    from .train_step_cases import step_2b

    return step_2b(dimension=dimension, count=3, profile=False)


def step_with_actions() -> dict[str, Any]:
    """Measure the dense step conditioned on actions."""
    return step(dimension=7)


CASES: dict[str, Callable[..., dict[str, Any]]] = {
    one.__name__: one for one in (sparse_kernels, sparse, phases, step, step_with_actions)
}


def goals(cases: dict[str, Any]) -> list[dict[str, Any]]:
    """Compare the finished cases with the goals."""
    shares = {
        name: cases[name]["validation"]["share_of_training_time"]
        for name in ("phases", "sparse")
        if "validation" in cases.get(name, {})
    }
    found = [
        {
            "goal": f"validation of {DEFAULT_CLIPS} clips every {DEFAULT_INTERVAL} iterations "
            f"({name}), share of the time <= 0.05",
            "measured": share,
            "met": share <= 0.05,
        }
        for name, share in shares.items()
    ]
    times = [cases.get(name, {}).get("seconds") for name in ("step_with_actions", "step")]
    if all(times):
        ratio = round(times[0] / times[1], 4)
        goal = "the step with actions over the one without <= 1.02"
        found.append({"goal": goal, "measured": ratio, "met": ratio <= 1.02})
    return found


def documented(text: str, record: dict[str, Any]) -> str:
    """Return ``text`` with the record's tables between its marks."""
    cases = record["cases"]
    measured = {
        f"{one['nvidia_smi']} (name, driver, memory), PyTorch {one['torch']}, {one['date']}, "
        f"commit {one['commit'][:12]}, `{one['command']}`.": None
        for one in (case["machine"] for case in cases.values())
    }
    rows = [*measured, "", "| goal | measured | |", "| --- | --- | --- |"]
    rows += [
        f"| {one['goal']} | {one['measured']:.4g} | {'met' if one['met'] else 'missed'} |"
        for one in record["goals"]
    ]
    rows += ["", "| run | iteration, s | validations of 16 clips, s |", "| --- | --- | --- |"]
    for name, label in (("phases", "dense"), ("sparse", "sparse")):
        for size in ("432x768", "704x1280"):
            if size in cases.get(name, {}):
                times = cases[name]["validation"]["all_seconds"] if size == "704x1280" else []
                shown = ", ".join(f"{one:.0f}" for one in times)
                seconds = cases[name][size]["seconds"]
                rows.append(f"| {label}, {size} | {seconds:.2f} | {shown} |")
    for name, label in (("step", "without actions"), ("step_with_actions", "with actions")):
        if "seconds" in cases.get(name, {}):
            rows.append(f"| dense step alone, {label} | {cases[name]['seconds']:.2f} | |")
    rows += [
        "",
        "| kernel, what blocks save (not compiled) | forward and backward, s | peak, GiB "
        "| largest difference of a gradient to the first |",
        "| --- | --- | --- | --- |",
    ]
    for name, one in cases.get("sparse_kernels", {}).items():
        if "seconds" in one:
            rows.append(
                f"| {name} | {one['seconds']:.2f} | {one['peak_GiB']:.1f} "
                f"| {one['largest_difference']:.1e} |"
            )
        elif "error" in one:
            rows.append(f"| {name} | failed: {one['error'].split(': ')[0]} | | |")
    return between(MARKS, text, "\n".join(rows))


def main(argv: list[str] | None = None) -> int:
    """Run the cases and write the record."""
    flags = argparse.ArgumentParser(
        prog=f"python -m {MODULE}",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flags.add_argument("--commit", default="", help="commit, without a git repository")
    flags.add_argument("--json", type=Path, default=RESULTS)
    flags.add_argument("--resume", action="store_true", help="keep the record of other cases")
    flags.add_argument("--only", nargs="*", choices=list(CASES), default=list(CASES))
    flags.add_argument("--case", help=argparse.SUPPRESS)
    flags.add_argument("--options", default="{}", help=argparse.SUPPRESS)
    flags.add_argument(
        "--document", action="store_true", help="only write the record into docs/performance.md"
    )
    args = flags.parse_args(argv)
    if args.case:
        return answer(CASES, args.case, args.options)
    if args.document:
        record: dict[str, Any] = json.loads(args.json.read_text(encoding="utf-8"))
        DOCUMENT.write_text(documented(DOCUMENT.read_text(encoding="utf-8"), record), "utf-8")
        return 0
    where = machine(MODULE, args.commit)
    record = {"cases": {}}
    if args.resume and args.json.exists():
        record = json.loads(args.json.read_text(encoding="utf-8"))
    for name in args.only:
        record["cases"][name] = run_case(name, MODULE) | {"machine": where}
        record["goals"] = goals(record["cases"])
        write(args.json, record)
    print("\n".join(verdicts(record)))
    return 0 if all(one["met"] for one in record["goals"]) else 1


if __name__ == "__main__":
    raise SystemExit(main())
