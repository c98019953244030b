"""Sabotage test of the action gate: train on actions of other windows, and see if it notices.

Run as ``python -m benchmarks.actions``; it needs no GPU. Tiny models are trained on the drawn arm
of ``make demo-actions`` with its actions, and with its action files permuted between the training
windows; the gate measures each on the same held-out clips, whose actions are always the true ones.
Writes ``benchmarks/results/actions.json``, where runs of other seeds are kept, and with
``--document`` a table into docs/actions.md.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .cases import between, write
from .host import ROOT, facts

__all__ = ["DOCUMENT", "MARKS", "RESULTS", "documented", "main", "markdown", "permute"]

RESULTS = Path(__file__).parent / "results" / "actions.json"
DOCUMENT = ROOT / "docs" / "actions.md"
MARKS = (
    "<!-- actions: made by `python -m benchmarks.actions --document` -->",
    "<!-- /actions -->",
)
DATA = "datasets/arm"
SIZE = (64, 80)
CHECKPOINTS = "checkpoints/posttraining/video2world/{}/checkpoints/model/iter_{:09d}.pt"


def main(argv: list[str] | None = None) -> int:
    """Run every seed with true and with permuted actions, and write the record."""
    flags = argparse.ArgumentParser(prog="python -m benchmarks.actions", description=__doc__)
    flags.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    flags.add_argument(
        "--honest", type=int, default=3, help="of them, also with true actions (default: 3)"
    )
    flags.add_argument("--iterations", type=int, default=300)
    flags.add_argument("--parallel", type=int, default=2, help="runs at the same time")
    flags.add_argument("--volume", type=Path, help="keep the runs here (default: a temporary one)")
    flags.add_argument("--json", type=Path, default=RESULTS)
    flags.add_argument(
        "--document", action="store_true", help="only write the record into docs/actions.md"
    )
    args = flags.parse_args(argv)
    if args.document:
        recorded = json.loads(args.json.read_text(encoding="utf-8"))
        DOCUMENT.write_text(documented(DOCUMENT.read_text(encoding="utf-8"), recorded), "utf-8")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        record = _measured(args, args.volume or Path(folder))
    print(markdown(record))
    return 0


def _measured(args: argparse.Namespace, volume: Path) -> dict[str, Any]:
    import torch

    command = " ".join(["python -m benchmarks.actions", *sys.argv[1:]])
    record: dict[str, Any] = {"iterations": args.iterations, "runs": {}}
    if args.json.exists():
        before = json.loads(args.json.read_text(encoding="utf-8"))
        if before["iterations"] == args.iterations:
            record["runs"] = before["runs"]
    place = facts(command) | {"torch": torch.__version__}
    volume.mkdir(parents=True, exist_ok=True)
    _prepare(volume)
    runs = [(True, seed) for seed in args.seeds] + [
        (False, seed) for seed in args.seeds[: args.honest]
    ]

    def run(one: tuple[bool, int]) -> None:
        sabotaged, seed = one
        name = f"{'sabotaged' if sabotaged else 'honest'}-{seed}"
        what = {"sabotaged": sabotaged, "seed": seed, "machine": place}
        record["runs"][name] = what | _run(volume, name, sabotaged, seed, args.iterations)
        record["runs"] = dict(sorted(record["runs"].items()))
        write(args.json, record)

    with ThreadPoolExecutor(args.parallel) as pool:
        list(pool.map(run, runs))
    return record


def _call(module: str, *arguments: object, cwd: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=cwd,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
    )


def _prepare(volume: Path) -> None:
    """Generate the drawn arm's data set with latents, as in ``make demo-actions``."""
    folder = "checkpoints/video2world/Cosmos-Predict2-Tiny-Video2World"
    splits = [f"{DATA}/train", f"{DATA}/val"]
    size = ["--height", SIZE[0], "--width", SIZE[1]]
    model = ["--model_sizes", "Tiny", "--model_types", "video2world"]
    windows = ["--window-size", "9.7", "--min_frames", 18, "--val_episode_ids", "96-111"]
    for module, flags in (
        ("demo_arm", ["--data_dir", "source", "--episodes", 112, *size]),
        ("download", [*model, "--checkpoint_dir", "checkpoints"]),
        (
            "lerobot",
            ["--data_dir", "source", "--dataset_dir", DATA, "--actions", "action", *windows],
        ),
        (
            "embeddings",
            ["--dataset_path", *splits, "--cache_dir", "checkpoints/video2world/t5-tiny"],
        ),
        (
            "latents",
            [
                *("--dataset_path", *splits, "--vae_path", f"{folder}/tokenizer"),
                *("--num_frames", 17, "--video_size", *SIZE, "--clips_per_window", 24),
            ],
        ),
    ):
        _call(f"video2world_preprocess.{module}", *flags, cwd=volume)


def permute(folder: Path, seed: int) -> None:
    """Exchange the files of ``folder`` so that none keeps its name."""
    paths = sorted(folder.glob("*.safetensors"))
    order = list(range(len(paths)))
    random.Random(seed).shuffle(order)
    moved = [path.rename(path.with_suffix(".moved")) for path in paths]
    for place, number in enumerate(order):  # along the cycle, so that there is no fixed point
        moved[number].rename(paths[order[place - 1]])


def _run(volume: Path, name: str, sabotaged: bool, seed: int, iterations: int) -> dict[str, Any]:
    """Train one model and return what the gate says."""
    data = f"datasets/{name}"
    shutil.rmtree(volume / data, ignore_errors=True)
    shutil.copytree(volume / DATA, volume / data)
    if sabotaged:
        permute(volume / data / "train/actions", seed)
    settings = {
        "model.size": "Tiny",
        "model.action_conditioning": "per_frame",
        "job.name": name,
        "trainer.seed": seed,
        "trainer.max_iter": iterations,
        "checkpoint.save_iter": iterations,
        "dataloader_train.dataset.dataset_dir": f"{data}/train",
        "dataloader_train.dataset.num_frames": 17,
        "dataloader_train.dataset.video_size": "[{},{}]".format(*SIZE),
        "dataloader_train.dataset.text_length": 64,
        "dataloader_train.dataset.cache": "true",
        "dataloader_train.batch_size": 4,
        "optimizer.lr": 0.002,
        "scheduler.warm_up_steps": 50,
        "scheduler.cycle_lengths": iterations,
    }
    overrides = [f"{key}={value}" for key, value in settings.items()]
    _call("video2world_trainer.train", "--", *overrides, cwd=volume)
    output = volume / f"{name}.json"
    checkpoint = CHECKPOINTS.format(name, iterations)
    flags = ["--dit_path", checkpoint, "--dataset_dir", DATA, "--output", output.resolve()]
    inference = ["--", "--model_size", "Tiny", "--device", "cpu"]
    _call("video2world_trainer.action_losses", *flags, *inference, cwd=volume)
    shutil.rmtree(volume / data)
    found = json.loads(output.read_text(encoding="utf-8"))
    kept = ("followed", "lift", "low", "high", "clips", "variants", "motion")
    return {key: found[key] for key in kept}


def documented(text: str, record: dict[str, Any]) -> str:
    """Return ``text`` with the record's table between its marks."""
    return between(MARKS, text, markdown(record))


def markdown(record: dict[str, Any]) -> str:
    """Return the record's table and its summary."""
    runs = list(record["runs"].values())
    places = {run["machine"]["date"]: run["machine"] for run in runs}
    lines = [
        *(
            f"{place['cores']} cores of {place['cpu']}, load {place['load_at_start']} at the "
            f"start, PyTorch {place['torch']}, {place['date']}, commit {place['commit']}, "
            f"`{place['command']}`; {record['iterations']} iterations."
            for place in places.values()
        ),
        "",
        "| trained with | seed | lift | 95 % interval | videos differ, by actions over by seed "
        "| the gate says |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {'actions of other windows' if run['sabotaged'] else 'its actions'} | {run['seed']} "
        f"| {run['lift']:+.2%} | {run['low']:+.2%} to {run['high']:+.2%} "
        f"| {run['motion']['ratio']:.2f} "
        f"| {'followed' if run['followed'] else 'ignored'} |"
        for run in runs
    ]
    lines.append("")
    for sabotaged, title, right in ((True, "sabotaged", False), (False, "honest", True)):
        of_kind = [run for run in runs if run["sabotaged"] is sabotaged]
        if of_kind:
            hits = sum(run["followed"] is right for run in of_kind)
            lines.append(
                f"{hits} of {len(of_kind)} {title} runs are recognised"
                f" (lift {min(run['lift'] for run in of_kind):+.2%} to "
                f"{max(run['lift'] for run in of_kind):+.2%})."
            )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
