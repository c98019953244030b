"""``make demo``: post-train a tiny model on drawn robot video, and measure whether it learned.

Everything happens on the volume ``.demo`` inside the checkout, through the same ``v2w run`` and the
same resource file that a user would write. What is finished is skipped the next time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
VOLUME = ROOT / ".demo"
RESOURCE = ROOT / "manifests" / "samples" / "demo.yaml"
SAMPLE = Path("results/demo/sample-0.mp4")
BASELINE = Path(".video2world/demo/untrained")  # below the volume: the same sample, untrained
GAIN_DB = 3.0  # the goal: so much nearer to the truth than the untrained model


@dataclass
class Meter:
    """Watches this process and its descendants: the most memory they held together."""

    peak_kib: int = 0
    _done: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Meter:
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.5):
            self.peak_kib = max(self.peak_kib, _tree_kib(os.getpid()))


def _tree_kib(root: int) -> int:
    """Proportional resident memory of ``root`` and its descendants, from /proc, in KiB."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue  # it ended meanwhile
            parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    family, fresh = {root}, [root]
    while fresh:
        fresh = [pid for pid, parent in parents.items() if parent in fresh and pid not in family]
        family.update(fresh)
    return sum(_own_kib(pid) for pid in family)


def _own_kib(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):  # pages shared by n processes count 1/n in each
                return int(line.split()[1])
    except OSError:
        pass
    return 0


def _run(*argv: str, cwd: Path = VOLUME, **environment: str) -> None:
    """Run a command, or end with its exit code."""
    code = subprocess.run(argv, cwd=cwd, env=os.environ | environment, check=False).returncode
    if code:
        print(f"demo: {' '.join(argv[:4])} ... ended with exit code {code}", file=sys.stderr)
        raise SystemExit(code)


def _python(module: str, *arguments: str, **environment: str) -> None:
    _run(sys.executable, "-m", module, *arguments, **environment)


def _untrained() -> dict[str, Any]:
    """The demo's sample as the model gives it before training; its figures."""
    figures = VOLUME / BASELINE / "sample-0.json"
    if not figures.exists():
        _python(
            "video2world_trainer.train",
            *("--", "model.size=Tiny", "job.project=untrained", "job.name=demo"),
            *("trainer.max_iter=1", "optimizer.lr=0"),
            "dataloader_train.dataset.dataset_dir=datasets/agibot_head_center_fisheye_color/train",
        )
        trained = json.loads((VOLUME / SAMPLE).with_suffix(".json").read_text())
        _python(
            "video2world_trainer.inference",
            *("--model_size", "Tiny", "--input_path", trained["input"]),
            *("--dit_path", "checkpoints/untrained/video2world/demo/checkpoints"),
            *("--guidance", str(trained["guidance"]), "--seed", str(trained["seed"])),
            *("--save_path", str(BASELINE / "sample-0.mp4")),
        )
    return json.loads(figures.read_text())


def main() -> int:
    """Run the demo; exit code 1 if the model did not learn what it should."""
    started = time.monotonic()
    VOLUME.mkdir(exist_ok=True)
    with Meter() as meter:
        _python("video2world_preprocess.demo", "--data_dir", "datasets/agibot")
        resource, volume = str(RESOURCE), str(VOLUME)
        _run(
            *(sys.executable, "-m", "video2world_operator.cli"),
            *("run", "-f", resource, "--volume", volume),
            cwd=ROOT,
        )
        untrained = _untrained()
    trained = json.loads((VOLUME / SAMPLE).with_suffix(".json").read_text())
    seconds = time.monotonic() - started
    return _show(trained, untrained, seconds, meter.peak_kib / 1024)


def _show(
    trained: dict[str, Any], untrained: dict[str, Any], seconds: float, peak_mib: float
) -> int:
    held = trained["psnr_of_repeating_the_input"]
    gain = trained["psnr"] - untrained["psnr"]
    rows = (
        ("PSNR on the held-out episode, generated video", f"{trained['psnr']:.2f} dB"),
        ("  the same by the untrained model", f"{untrained['psnr']:.2f} dB"),
        ("  the first frame repeated", f"{held:.2f} dB"),
        ("wall time of this run", f"{seconds:.0f} s"),
        ("peak memory of this run", f"{peak_mib / 1024:.2f} GiB"),
        ("video", str((VOLUME / SAMPLE).relative_to(ROOT))),
        ("contact sheet", str((VOLUME / SAMPLE).with_suffix(".png").relative_to(ROOT))),
    )
    print()
    for name, value in rows:
        print(f"{name:<48} {value}")
    learned = gain >= GAIN_DB and trained["psnr"] > held
    print(
        f"\n{'learned' if learned else 'NOT LEARNED'}: {gain:+.2f} dB over the untrained model "
        f"(goal +{GAIN_DB:.0f}), {trained['psnr'] - held:+.2f} dB over repeating the first frame"
    )
    return 0 if learned else 1


if __name__ == "__main__":
    raise SystemExit(main())
