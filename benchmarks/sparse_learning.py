"""Train the demo's Tiny model with dense and with sparse attention, and compare what they learn.

Run as ``python -m benchmarks.sparse_learning``; it needs no GPU. Every run is a resource like
``manifests/samples/demo.yaml`` through ``v2w run``, on one volume, with one process that trains on
the clips of the demo's two: both patterns train on the same latents, noise and order of clips for
each seed. Writes ``benchmarks/results/sparse_learning.json``, where runs of other seeds are kept.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from .cases import between, write
from .host import ROOT, facts

__all__ = ["DOCUMENT", "MARKS", "RESULTS", "documented", "main", "means"]

RESULTS = Path(__file__).parent / "results" / "sparse_learning.json"
DOCUMENT = ROOT / "docs" / "performance.md"
MARKS = (
    "<!-- sparse_learning: made by `python -m benchmarks.sparse_learning --document` -->",
    "<!-- /sparse_learning -->",
)
PATTERNS = ("Dense", "Sparse")
INTERVAL = 100  # iterations of which a row of the table is the mean


def main(argv: list[str] | None = None) -> int:
    """Run every seed with both patterns and write the record."""
    flags = argparse.ArgumentParser(
        prog="python -m benchmarks.sparse_learning", description=__doc__
    )
    flags.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    flags.add_argument("--iterations", type=int, default=300)
    flags.add_argument("--volume", type=Path, help="keep the runs here (default: a temporary one)")
    flags.add_argument("--json", type=Path, default=RESULTS)
    flags.add_argument(
        "--document", action="store_true", help="only write the record into docs/performance.md"
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

    command = " ".join(["python -m benchmarks.sparse_learning", *sys.argv[1:]])
    record: dict[str, Any] = {
        "iterations": args.iterations,
        "density": _density(),
        "runs": _kept(args),
    }
    place = facts(command) | {"torch": torch.__version__}
    volume.mkdir(parents=True, exist_ok=True)
    _run("video2world_preprocess.demo", "--data_dir", "datasets/agibot", cwd=volume)
    for seed in args.seeds:
        for pattern in PATTERNS:
            name = f"{pattern.lower()}-{seed}"
            file = volume / f"{name}.json"
            file.write_text(json.dumps(_resource(name, pattern, seed, args.iterations)))
            _run("video2world_operator.cli", "run", "-f", file, "--volume", volume, cwd=ROOT)
            what = {"pattern": pattern, "seed": seed, "machine": place}
            record["runs"][name] = what | _result(volume, name)
            write(args.json, record)
    return record


def _kept(args: argparse.Namespace) -> dict[str, Any]:
    """Return the runs of the record with other seeds and as many iterations."""
    if not args.json.exists():
        return {}
    before = json.loads(args.json.read_text(encoding="utf-8"))
    if before["iterations"] != args.iterations:
        return {}
    return {name: run for name, run in before["runs"].items() if run["seed"] not in args.seeds}


def _run(module: str, *arguments: object, cwd: Path) -> None:
    subprocess.run([sys.executable, "-m", module, *map(str, arguments)], cwd=cwd, check=True)


def _resource(name: str, pattern: str, seed: int, iterations: int) -> dict[str, Any]:
    import yaml

    made: dict[str, Any] = yaml.safe_load((ROOT / "manifests/samples/demo.yaml").read_text())
    made["metadata"]["name"] = name
    made["spec"]["dataset"]["agibot"]["name"] = f"seed-{seed}"  # its latents depend on the seed
    made["spec"]["training"] |= {
        "attentionPattern": pattern,
        "seed": seed,
        "iterations": iterations,
        "nodes": 1,
        "batchSize": 4,
    }
    return made


def _density() -> float:
    """Return the share of query-key pairs that the Tiny model's patterns compute."""
    from video2world_common.model_sizes import SIZES
    from video2world_trainer.model.sparse_attention import density, patterns_for

    tiny = SIZES["Tiny"]
    (height, width), frames = tiny.frame_sizes["720p"], tiny.clip_frames[16]
    grid = (1 + (frames - 1) // 4, height // 16, width // 16)
    return round(density(patterns_for("Tiny", grid), grid), 4)


def _result(volume: Path, name: str) -> dict[str, Any]:
    """Return a run's loss curve, and its sample's likeness to the held-out episode."""
    from video2world_trainer.training.history import read_history

    history = read_history(volume / "checkpoints/posttraining/video2world" / name)
    sample = json.loads((volume / f"results/{name}/sample-0.json").read_text())
    metrics = sample["metrics"]
    return {
        "loss": [[one["iteration"], round(one["loss"], 4)] for one in history],
        "seconds_per_iteration": round(
            statistics.median(one["seconds_per_iteration"] for one in history), 4
        ),
        "sparse": sample["sparse"],
        "psnr": metrics["psnr"],
        "ssim": metrics["ssim"],
        "psnr_of_repeating_the_input": metrics["repeating_the_input"]["psnr"],
    }


def means(loss: list[list[float]], interval: int = INTERVAL) -> dict[int, float]:
    """Return the mean loss of every ``interval`` iterations, by the last of them."""
    groups: dict[int, list[float]] = {}
    for iteration, value in loss:
        groups.setdefault(-(-int(iteration) // interval) * interval, []).append(value)
    return {last: statistics.mean(values) for last, values in groups.items()}


def documented(text: str, record: dict[str, Any]) -> str:
    """Return ``text`` with the record's tables between its marks."""
    return between(MARKS, text, markdown(record))


def markdown(record: dict[str, Any]) -> str:
    """Return the record's tables."""
    runs = record["runs"]
    curves = {name: means(run["loss"]) for name, run in runs.items()}
    places = {run["machine"]["date"]: run["machine"] for run in runs.values()}
    lines = [
        *map(_where, places.values()),
        "",
        "| mean loss up to iteration | " + " | ".join(map(_title, runs.values())) + " |",
        "| --- |" + " --- |" * len(runs),
    ]
    rows = sorted({last for curve in curves.values() for last in curve})
    lines += [_row(str(last), [curves[name].get(last) for name in runs], ".3f") for last in rows]
    for key, title, form in (
        ("psnr", "PSNR of the sample, dB", ".2f"),
        ("ssim", "its SSIM", ".3f"),
        ("psnr_of_repeating_the_input", "PSNR of the first frame repeated, dB", ".2f"),
    ):
        lines.append(_row(title, [run[key] for run in runs.values()], form))
    final = {
        pattern: [curves[name][rows[-1]] for name, run in runs.items() if run["pattern"] == pattern]
        for pattern in PATTERNS
    }
    psnr = {
        pattern: statistics.mean(run["psnr"] for run in runs.values() if run["pattern"] == pattern)
        for pattern in PATTERNS
    }
    ratio = statistics.mean(final["Sparse"]) / statistics.mean(final["Dense"])
    lines += [
        "",
        f"Sparse over dense, mean of the seeds: loss of the last {INTERVAL} iterations "
        f"{ratio:.3f}, PSNR {psnr['Sparse'] - psnr['Dense']:+.2f} dB. The patterns of Tiny compute "
        f"{record['density']:.0%} of the query-key pairs.",
    ]
    return "\n".join(lines)


def _where(place: dict[str, Any]) -> str:
    return (
        f"{place['cores']} cores of {place['cpu']}, load {place['load_at_start']} at the start, "
        f"PyTorch {place['torch']}, Python {place['python']}, {place['date']}, commit "
        f"{place['commit']}, `{place['command']}`."
    )


def _title(run: dict[str, Any]) -> str:
    return f"{run['pattern'].lower()}, seed {run['seed']}"


def _row(title: str, values: list[float | None], form: str) -> str:
    shown = ("" if value is None else format(value, form) for value in values)
    return f"| {title} | {' | '.join(shown)} |"


if __name__ == "__main__":
    sys.exit(main())
