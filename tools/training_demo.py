"""``make demo``: post-train a tiny model on drawn robot video, and measure whether it learned.

The volume is ``.demo`` inside the checkout. Training runs through ``v2w run`` and a resource file,
as a user's would; finished stages are skipped the next time.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from video2world_common.progress_events import parse
from video2world_operator.terminal import Display

ROOT = Path(__file__).resolve().parent.parent
VOLUME = ROOT / ".demo"
RESOURCE = ROOT / "manifests" / "samples" / "demo.yaml"
SAMPLE = Path("results/demo/sample-0.mp4")
TABLE = Path("results/demo/evaluation/evaluation.json")
GAIN_DB = 3.0  # goal: PSNR gained over the untrained model


@dataclass
class Meter:
    """Measure the peak memory of this process and its descendants together."""

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
        while not self._done.wait(1.0):
            self.peak_kib = max(self.peak_kib, _tree_kib(os.getpid()))


def _tree_kib(root: int) -> int:
    """Return the proportional set size of ``root`` and its descendants in KiB, from /proc."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue  # the process has ended
            parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    tree, found = {root}, [root]
    while found:
        found = [pid for pid, parent in parents.items() if parent in found and pid not in tree]
        tree.update(found)
    return sum(_own_kib(pid) for pid in tree)


def _own_kib(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):  # a page shared by n processes counts 1/n in each
                return int(line.split()[1])
    except OSError:
        pass
    return 0


@contextlib.contextmanager
def run_child(*command: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Run a process that may take its time to stop after Ctrl-C or SIGTERM; exit with its code."""
    child = subprocess.Popen([sys.executable, "-m", *command], text=True, **options)
    # The terminal sends SIGINT to the child too; a second one would make it stop at once.
    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, lambda *_: None),
        signal.SIGTERM: signal.signal(signal.SIGTERM, lambda *_: child.terminate()),
    }
    try:
        yield child
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if code:
        print(f"demo: {command[0]} ended with exit code {code}", file=sys.stderr)
        raise SystemExit(code)


def run_worker(display: Display, title: str, module: str, *arguments: str) -> None:
    """Run a worker on the volume, and show its progress as ``v2w run`` does for a stage."""
    display.start(title)
    last = collections.deque[str](maxlen=15)
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "errors": "replace"}
    try:
        with run_child(module, *arguments, cwd=VOLUME, **options) as child:
            for line in child.stdout or ():
                if (event := parse(line)) is not None:
                    display.event(event)
                else:
                    last.append(line.rstrip())
    except SystemExit:
        display.say("\n".join(last))
        raise
    display.end(title, "done")


def main() -> int:
    """Run the demo; return 1 if the model has not learned enough."""
    started = time.monotonic()
    VOLUME.mkdir(exist_ok=True)
    display = Display(sys.stdout)
    with Meter() as meter:
        task = ("--data_dir", "datasets/agibot")
        run_worker(display, "demo data", "video2world_preprocess.demo", *task)
        what = ("run", "-f", str(RESOURCE.relative_to(ROOT)))
        where = ("--volume", str(VOLUME.relative_to(ROOT)))
        with run_child("video2world_operator.cli", *what, *where, cwd=ROOT):
            pass
    table = json.loads((VOLUME / TABLE).read_text())
    return _show(table, time.monotonic() - started, meter.peak_kib / 1024)


def _show(table: dict[str, Any], seconds: float, peak_mib: float) -> int:
    """Print the figures of the evaluation and the verdict; return the exit code."""
    psnr = {row["model"]: row["metrics"]["psnr"]["value"] for row in table["rows"]}
    trained, untrained = psnr[table["answer"]["checkpoint"]], psnr["base"]
    gain, floor = trained - untrained, psnr["floor"]
    rows = (
        (f"PSNR on {len(table['clips'])} held-out clips, generated video", f"{trained:.2f} dB"),
        ("  the same by the untrained model", f"{untrained:.2f} dB"),
        ("  the first frame repeated", f"{floor:.2f} dB"),
        ("  the ground truth through the VAE", f"{psnr['ceiling']:.2f} dB"),
        ("wall time of this run", f"{seconds:.0f} s"),
        ("peak memory of this run", f"{peak_mib / 1024:.2f} GiB"),
        ("video", str((VOLUME / SAMPLE).relative_to(ROOT))),
        ("contact sheet", str((VOLUME / SAMPLE).with_suffix(".png").relative_to(ROOT))),
    )
    print()
    for name, value in rows:
        print(f"{name:<48} {value}")
    learned = gain >= GAIN_DB and trained > floor
    print(
        f"\n{'learned' if learned else 'NOT LEARNED'}: {gain:+.2f} dB over the untrained model "
        f"(goal +{GAIN_DB:.0f}), {trained - floor:+.2f} dB over repeating the "
        "first frame"
    )
    print(f"\nTo look at in a browser: {(VOLUME / SAMPLE).parent / 'index.html'}")
    return 0 if learned else 1


if __name__ == "__main__":
    raise SystemExit(main())
