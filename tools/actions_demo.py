"""``make demo-actions``: a tiny world model that obeys a robot's joint angles, measured in degrees.

A model is trained on a LeRobotDataset of a drawn arm with its actions, and for comparison one
without them: the same data, seed and iterations. Both predict held-out episodes, of which the
joint angles are known, and are read off the last generated frame. The volume is ``.demo`` inside
the checkout; finished stages are skipped the next time.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from training_demo import ROOT, VOLUME, Meter, run_child, run_worker
from video2world_common.files import write_text
from video2world_operator.terminal import Display
from video2world_preprocess.drawn_arm import ArmScene, trajectory
from video2world_preprocess.drawn_arm_pose import fit_joints
from video2world_preprocess.video.reader import read_frames

RESOURCE = ROOT / "manifests" / "samples" / "demo-actions.yaml"
WITHOUT = VOLUME / "demo-actions-without.yaml"
EPISODES, FRAMES, SIZE = 112, 97, (64, 80)
CLIP = 17  # frames of a generated clip
FIRST = 109  # the episode whose first frame all four sequences start from
MOVES = {  # degrees of shoulder and elbow at the last frame
    "left": (-45.0, 0.0),
    "right": (45.0, 0.0),
    "fold-left": (20.0, -95.0),
    "fold-right": (-20.0, 95.0),
}
LIFT, SHARE = 0.1, 1 / 3  # goals: least lift, and most pose error relative to that without actions


def joints(episode: int) -> np.ndarray:
    """Return the joint angles of a clip's frames in degrees, [17, 2], at an episode's start."""
    return trajectory(episode, FRAMES + 1)[:CLIP]


def move(target: tuple[float, float]) -> np.ndarray:
    """Return the actions [16, 2] that lead smoothly from the first frame's pose to ``target``."""
    start = joints(FIRST)[0]
    share = 0.5 - 0.5 * np.cos(np.pi * np.arange(1, CLIP) / (CLIP - 1))
    rows: np.ndarray = start + share[:, None] * (np.array(target) - start)
    return rows


def write_moves() -> None:
    """Write the four sequences of actions as CSV, with the joints' names in the first line."""
    for name, target in MOVES.items():
        lines = ["shoulder,elbow", *(f"{a:.4f},{b:.4f}" for a, b in move(target))]
        write_text(VOLUME / "moves" / f"{name}.csv", "\n".join(lines) + "\n")


def without_actions(resource: dict[str, Any]) -> dict[str, Any]:
    """Return the resource that trains on the same data set without actions."""
    spec = json.loads(json.dumps(resource["spec"]))
    name = resource["metadata"]["name"]
    spec["dataset"] = {"prepared": {"path": f"datasets/{name}"}}
    del spec["training"]["conditioning"], spec["inference"]["samples"]
    del spec["evaluation"]["failWhenActionsIgnored"]
    return resource | {"metadata": {"name": f"{name}-without"}, "spec": spec}


def pose_error(video: Path, episode: int, wanted: np.ndarray) -> float:
    """Return the mean error of the joints in degrees at the last frame of a generated video.

    Args:
        video: the generated video.
        episode: the episode whose scene it shows.
        wanted: the commanded angles [2] of that frame.
    """
    last = read_frames(video)[CLIP - 1 :]
    found = fit_joints(ArmScene.of(episode, *SIZE), last)[0]
    return float(np.abs(found - wanted).mean())


@dataclass(frozen=True)
class Model:
    """The evaluation of one model."""

    table: dict[str, Any]
    errors: dict[int, float]  # by held-out episode, degrees

    @classmethod
    def read(cls, job: str) -> Model:
        folder = VOLUME / "results" / job / "evaluation"
        table = json.loads((folder / "evaluation.json").read_text())
        label = table["answer"]["checkpoint"]
        errors = {}
        for clip in table["clips"]:
            episode = int(clip["clip"].split("_")[1])
            video = folder / clip["videos"][label]
            errors[episode] = pose_error(video, episode, joints(episode)[-1])
        return cls(table, errors)

    @property
    def error(self) -> float:
        """The mean over held-out episodes."""
        return float(np.mean(list(self.errors.values())))

    @property
    def psnr(self) -> float:
        rows = {row["model"]: row["metrics"]["psnr"]["value"] for row in self.table["rows"]}
        return float(rows[self.table["answer"]["checkpoint"]])


def main() -> int:
    """Run the demo; return 1 if a goal is missed."""
    started = time.monotonic()
    VOLUME.mkdir(exist_ok=True)
    resource = yaml.safe_load(RESOURCE.read_text())
    job = resource["metadata"]["name"]
    display = Display(sys.stdout)
    with Meter() as meter:
        flags = ["--data_dir", "datasets/arm", "--episodes", EPISODES, "--frames", FRAMES]
        flags += ["--height", SIZE[0], "--width", SIZE[1]]
        run_worker(display, "demo data", "video2world_preprocess.demo_arm", *map(str, flags))
        write_moves()
        write_text(WITHOUT, yaml.safe_dump(without_actions(resource)))
        for path in (RESOURCE, WITHOUT):
            what = ("run", "-f", str(path.relative_to(ROOT)))
            where = ("--volume", str(VOLUME.relative_to(ROOT)))
            with run_child("video2world_operator.cli", *what, *where, cwd=ROOT):
                pass
    models = Model.read(job), Model.read(f"{job}-without")
    moves = {
        name: pose_error(VOLUME / "results" / job / f"{name}.mp4", FIRST, move(target)[-1])
        for name, target in MOVES.items()
    }
    return show(models, moves, time.monotonic() - started, meter.peak_kib / 1024)


def show(
    models: tuple[Model, Model], moves: dict[str, float], seconds: float, peak_mib: float
) -> int:
    """Print the figures and the verdict; return the exit code."""
    following, without = models
    actions = following.table["actions"]
    truth = np.array([joints(episode)[-1] for episode in following.errors])
    first = np.array([joints(episode)[0] for episode in following.errors])
    rows = [
        (
            "loss with true actions, lower than with those of others",
            f"{actions['lift']:.1%} ({actions['low']:.1%} to {actions['high']:.1%})",
        ),
        (
            f"pose error, last frame of {len(following.errors)} held-out clips",
            f"{following.error:.1f}°",
        ),
        ("  of the model trained without actions", f"{without.error:.1f}°"),
        ("  of the first frame repeated", f"{np.abs(truth - first).mean():.1f}°"),
        ("PSNR of these clips", f"{following.psnr:.2f} dB"),
        ("  of the model trained without actions", f"{without.psnr:.2f} dB"),
        *((f"pose error of the move {name}", f"{error:.1f}°") for name, error in moves.items()),
        ("wall time of this run", f"{seconds:.0f} s"),
        ("peak memory of this run", f"{peak_mib / 1024:.2f} GiB"),
    ]
    print()
    for name, value in rows:
        print(f"{name:<58} {value}")
    share = following.error / without.error
    obeys = actions["low"] > 0 and actions["lift"] >= LIFT and share <= SHARE
    print(
        f"\n{'FOLLOWS ITS ACTIONS' if obeys else 'DOES NOT FOLLOW ITS ACTIONS'}: lift "
        f"{actions['lift']:.1%} (goal {LIFT:.0%}), pose error {share:.2f} times that without "
        f"actions (goal {SHARE:.2f})"
    )
    page = VOLUME / "results" / RESOURCE.stem / "index.html"
    print(f"\nFour motions from one first frame, to look at in a browser: {page}")
    return 0 if obeys else 1


if __name__ == "__main__":
    raise SystemExit(main())
