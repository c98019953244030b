"""Compare training with and without phases at equal wall time (``python -m benchmarks.phases``).

The Tiny model trains on the drawn robot videos of ``make demo``, for each seed twice: at 96x128
only, and first at 64x80, then at 96x128. Iterations of the two sizes are timed alternately first,
so that both runs take the same time; they run side by side, with a thread each, so that another
load slows both. The proportion of the phases, 7 to 3 iterations, is fixed beforehand. The loss is
measured on the held-out episode at 96x128, with the same noise for all runs. Writes
``benchmarks/results/phases.json``, which keeps a record of each length; ``--document`` puts it into
docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from video2world_trainer.checkpoint.folder import CheckpointFolder
from video2world_trainer.model.dit import VideoDiT
from video2world_trainer.model.presets import PRESETS
from video2world_trainer.model.state_dict import load_dit_weights
from video2world_trainer.training.dataset import LatentDataset, collate, generator_for
from video2world_trainer.training.loss import (
    NoiseDistribution,
    collate_noise,
    sample_noise,
    training_loss,
)

from .cases import Marks, between
from .host import ROOT, facts
from .random_run import events

RESULTS = ROOT / "benchmarks" / "results" / "phases.json"
DOCUMENT = ROOT / "docs" / "performance.md"
MARKS: Marks = (
    "<!-- phases: made by `python -m benchmarks.phases --document` -->",
    "<!-- phases: end -->",
)
LOW, HIGH = (64, 80), (96, 128)  # Tiny's sizes for 480p and 720p
SHARES = (7, 3)  # iterations of the two phases, as in the documentation's example
TIMED, WARM_UP = 12, 3  # iterations of each calibration phase, of which the first do not count
CLIPS = 16  # of each window
DRAWS = 4  # noise levels for each held-out clip
T_95 = {2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 7: 2.365, 9: 2.262}  # by degrees of freedom
DATA = "datasets/agibot_head_center_fisheye_color"


def _resource(volume: Path) -> Path:
    """Write a resource that prepares the data at both sizes, and trains two iterations on them."""
    spec = {
        "model": {"size": "Tiny"},
        "dataset": {
            "agibot": {
                "path": "datasets/agibot",
                "taskIDs": [327],
                "validationEpisodeIDs": [685393],
            }
        },
        "training": {
            "phases": [
                {"resolution": "480p", "iterations": 1},
                {"resolution": "720p", "iterations": 1},
            ],
            "clipsPerWindow": CLIPS,
        },
    }
    path = volume / "prepare.yaml"
    body = {"apiVersion": "video2world.dev/v1alpha1", "kind": "Video2WorldPostTrain"}
    path.write_text(yaml.safe_dump(body | {"metadata": {"name": "prepare"}, "spec": spec}))
    return path


def prepare(volume: Path) -> None:
    """Draw the videos and run all stages up to training, as a user would."""
    volume.mkdir(parents=True, exist_ok=True)
    demo = ["video2world_preprocess.demo", "--data_dir", "datasets/agibot"]
    subprocess.run([sys.executable, "-m", *demo], cwd=volume, check=True)
    command = ["video2world_operator.cli", "run", "-f", str(_resource(volume))]
    subprocess.run([sys.executable, "-m", *command, "--volume", str(volume)], check=True)


def _start(volume: Path, name: str, seed: int, *settings: str) -> subprocess.Popen[str]:
    """Start a training process."""
    command = ["video2world_trainer.train", "--", "model.size=Tiny", f"job.name={name}"]
    command += [f"dataloader_train.dataset.dataset_dir={DATA}/train", f"trainer.seed={seed}"]
    command += ["dataloader_train.batch_size=2", "checkpoint.save_iter=1000000", *settings]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=volume,
        env=environment,
        text=True,
        stdout=(volume / f"{name}.log").open("w"),
        stderr=subprocess.STDOUT,
    )


def _finish(volume: Path, name: str, process: subprocess.Popen[str]) -> dict[str, Any]:
    """Wait for a training; return the seconds in its loop, and its reports."""
    code, out = process.wait(), (volume / f"{name}.log").read_text()
    if code:
        raise SystemExit(f"{name} failed:\n{out[-2000:]}")
    reports = [one for one in events(out.splitlines()) if one["event"] == "progress"]
    seconds, before = 0.0, 0
    for one in reports:
        seconds += one["seconds_per_iteration"] * (one["iteration"] - before)
        before = one["iteration"]
    return {"seconds": round(seconds, 1), "reports": reports}


def pace(volume: Path) -> dict[str, float]:
    """Return the median seconds per iteration at each size, from alternating phases."""
    rounds = 4
    sizes = [[*size, TIMED] for _ in range(rounds) for size in (LOW, HIGH)]
    name = f"pace-{time.time_ns()}"
    settings = (f"trainer.phases={json.dumps(sizes)}", "trainer.logging_iter=1")
    made = _finish(volume, name, _start(volume, name, 0, *settings))
    found: dict[tuple[int, int], list[float]] = {LOW: [], HIGH: []}
    for one in made["reports"]:
        number, place = divmod(one["iteration"] - 1, TIMED)
        if place >= WARM_UP:
            found[(LOW, HIGH)[number % 2]].append(one["seconds_per_iteration"])
    return {_name(size): statistics.median(times) for size, times in found.items()}


def _name(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def lengths(iterations: int, seconds: dict[str, float]) -> tuple[int, int]:
    """Return the iterations of both phases that take as long as ``iterations`` at 96x128."""
    low, high = seconds[_name(LOW)], seconds[_name(HIGH)]
    unit = iterations * high / (SHARES[0] * low + SHARES[1] * high)
    return round(SHARES[0] * unit), round(SHARES[1] * unit)


@torch.no_grad()
def held_out_loss(volume: Path, name: str, *, ema: bool) -> float:
    """Return the mean loss on the held-out clips at 96x128, with the same noise for every run."""
    folder = CheckpointFolder(
        volume / "checkpoints" / "posttraining" / "video2world" / name / "checkpoints"
    )
    iteration = folder.latest_complete()
    assert iteration is not None
    net = VideoDiT(PRESETS["Tiny"].dit)
    load_dit_weights(net, folder.path("model", iteration), ema=ema)
    shape = (16, 5, HIGH[0] // 8, HIGH[1] // 8)
    dataset = LatentDataset(volume / DATA / "val", shape=shape, geometry="crop", text_length=64)
    distribution, losses = NoiseDistribution(text_dropout=0.0), []
    for window in range(len(dataset)):
        for clip in range(CLIPS):
            place = (window * 1000 + clip) * DRAWS
            batch = collate([dataset.read(window, clip)] * DRAWS)
            noise = [
                sample_noise(shape, generator_for(0, "held-out", place + draw), distribution)
                for draw in range(DRAWS)
            ]
            losses.append(
                float(training_loss(net, batch.latents, batch.text, collate_noise(noise)))
            )
    return statistics.fmean(losses)


def measure(volume: Path, seeds: Sequence[int], iterations: int) -> Iterator[dict[str, Any]]:
    """Train every seed with and without phases, and yield what was measured so far."""
    seconds = pace(volume)
    low, high = lengths(iterations, seconds)
    runs: dict[str, list[dict[str, Any]]] = {"without": [], "with": []}
    settings = {
        "without": [f"trainer.max_iter={iterations}"],
        "with": [f"trainer.phases=[[{LOW[0]},{LOW[1]},{low}],[{HIGH[0]},{HIGH[1]},{high}]]"],
    }
    for seed in seeds:
        names = {kind: f"{kind}-{seed}-{time.time_ns()}" for kind in settings}
        started = {
            kind: _start(volume, names[kind], seed, *lines, "trainer.logging_iter=10")
            for kind, lines in settings.items()
        }
        for kind, process in started.items():
            made = _finish(volume, names[kind], process)
            row = {"seed": seed, "seconds": made["seconds"]}
            for weights in ("regular", "ema"):
                row[weights] = round(held_out_loss(volume, names[kind], ema=weights == "ema"), 6)
            runs[kind].append(row)
            print(kind, row, flush=True)
        yield {
            "seconds_per_iteration": {size: round(one, 4) for size, one in seconds.items()},
            "iterations": {"without": [iterations], "with": [low, high]},
            "runs": runs,
        }


def compare(measured: dict[str, Any], weights: str) -> dict[str, float]:
    """Return the mean relative change of the loss by phases, and its 95 % confidence interval."""
    pairs = zip(measured["runs"]["without"], measured["runs"]["with"], strict=True)
    changes = [two[weights] / one[weights] - 1 for one, two in pairs]
    mean, count = statistics.fmean(changes), len(changes)
    margin = T_95[count - 1] * statistics.stdev(changes) / math.sqrt(count)
    return {"mean": round(mean, 4), "low": round(mean - margin, 4), "high": round(mean + margin, 4)}


def markdown(records: dict[str, dict[str, Any]]) -> str:
    """Return the records, by the iterations without phases, as Markdown for docs/performance.md."""
    return "\n\n".join(_section(records[length]) for length in sorted(records, key=int))


def _section(record: dict[str, Any]) -> str:
    place, found = record["host"], record["measured"]
    count = found["iterations"]
    paces = " and ".join(
        f"{one:.3f} s at {size}" for size, one in found["seconds_per_iteration"].items()
    )
    lines = [
        f"{place['cores']} cores of {place['cpu']} (load {place['load_at_start']} at the start), "
        f"Python {place['python']}, PyTorch {place['torch']}, {place['date']}, commit "
        f"{place['commit']}, `{place['command']}`. An iteration takes {paces}: "
        f"{count['without'][0]} iterations at {_name(HIGH)} take as long as {count['with'][0]} at "
        f"{_name(LOW)} and {count['with'][1]} at {_name(HIGH)}.",
        "",
        "| seed | seconds without, with | held-out loss without, with | of the average weights |",
        "| --- | --- | --- | --- |",
    ]
    for one, two in zip(found["runs"]["without"], found["runs"]["with"], strict=True):
        lines.append(
            f"| {one['seed']} | {one['seconds']:.0f}, {two['seconds']:.0f} | {one['regular']:.4f}, "
            f"{two['regular']:.4f} | {one['ema']:.4f}, {two['ema']:.4f} |"
        )
    lines.append("")
    for weights, name in (("regular", "the weights"), ("ema", "their average")):
        change = record["change"][weights]
        verdict = "no difference beyond the spread of the seeds"
        if change["low"] > 0 or change["high"] < 0:
            verdict = "worse" if change["mean"] > 0 else "better"
        lines.append(
            f"Loss of {name} with phases over that without: {change['mean']:+.1%} (95 % interval "
            f"{change['low']:+.1%} to {change['high']:+.1%} over the seeds): {verdict}."
        )
    return "\n".join(lines)


def _records() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    if RESULTS.exists():
        found = json.loads(RESULTS.read_text(encoding="utf-8"))
    return found


def main() -> int:
    """Measure, or write the document."""
    flags = argparse.ArgumentParser(prog="python -m benchmarks.phases", description=__doc__)
    flags.add_argument("--seeds", type=int, default=5)
    flags.add_argument("--iterations", type=int, default=400, help="without phases")
    flags.add_argument("--volume", type=Path, help="keep the data here (default: a temporary one)")
    flags.add_argument(
        "--document", action="store_true", help=f"only put the record into {DOCUMENT}"
    )
    args = flags.parse_args()
    if not args.document:
        command = f"python -m benchmarks.phases --seeds {args.seeds} --iterations {args.iterations}"
        host = facts(command) | {"torch": torch.__version__}
        with tempfile.TemporaryDirectory() as folder:
            volume = (args.volume or Path(folder) / "volume").absolute()
            prepare(volume)
            for measured in measure(volume, range(args.seeds), args.iterations):
                if len(measured["runs"]["with"]) > min(T_95):  # an interrupted run keeps these
                    change = {weights: compare(measured, weights) for weights in ("regular", "ema")}
                    record = {"host": host, "measured": measured, "change": change}
                    records = _records() | {str(args.iterations): record}
                    RESULTS.write_text(json.dumps(records, indent=2) + "\n", encoding="utf-8")
    text, content = DOCUMENT.read_text(encoding="utf-8"), markdown(_records())
    DOCUMENT.write_text(between(MARKS, text, content), encoding="utf-8")
    print(content)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
