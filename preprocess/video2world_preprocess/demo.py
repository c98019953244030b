"""Generate a small AgiBotWorld-Alpha task with drawn videos of a robot arm.

The task has the data set's on-disk layout: archives with several cameras and depth images, and a
task_info file. The last episode has the number of the guide's validation episode. Every arm moves
along the same closed loop at the same speed in the same direction (reach, grasp, lift, put down),
so that a single frame determines the next ones; colors, positions and the initial phase differ by
episode.
"""

from __future__ import annotations

import argparse
import colorsys
import io
import itertools
import json
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from video2world_common.events import ProgressReporter, say
from video2world_common.files import atomic_write, write_text
from video2world_common.markers import Provenance
from video2world_common.stage_runner import run_stage
from video2world_preprocess.video.writer import write_video

__all__ = ["Scene", "draw_episode", "main", "make_task", "scene"]

TASK, FIRST_EPISODE, VALIDATION_EPISODE = 327, 685_372, 685_393
FPS = 30
HEIGHT, WIDTH = 96, 128
PERIOD = 72  # frames per loop
GRASPED = (0.25, 0.75)  # part of the loop during which the gripper holds the object
CAMERAS = ("head_center_fisheye_color", "head_color", "head_left_fisheye_color", "hand_left_color")
GOODS = ("cucumber", "tomato", "corn cob", "aubergine", "carrot", "bell pepper", "lemon", "plum")
ACTIONS = (
    (0.75, "Retrieve the {} from the shelf.", "Pick"),
    (0.25, "Place the held {} into the basket.", "Place"),
)


@dataclass(frozen=True)
class Scene:
    """The differences between episodes. Positions are in pixels (x, y), colors RGB in [0, 1]."""

    good: str
    good_colour: np.ndarray
    arm_colour: np.ndarray
    wall_colour: np.ndarray
    centre: np.ndarray
    phase: float
    frames: int


def scene(episode: int, seed: int = 0) -> Scene:
    """Return the scene of an episode, which depends only on the arguments."""
    random = np.random.default_rng([seed, episode])
    kind = int(random.integers(len(GOODS)))

    def colour(hue: float, saturation: float, value: float) -> np.ndarray:
        return np.array(colorsys.hsv_to_rgb(hue % 1.0, saturation, value))

    return Scene(
        good=GOODS[kind],
        good_colour=colour(kind / len(GOODS), 0.85, 0.9),
        arm_colour=colour(random.uniform(0.55, 0.65), random.uniform(0.05, 0.3), 0.92),
        wall_colour=colour(random.uniform(0.05, 0.15), 0.25, random.uniform(0.25, 0.4)),
        centre=np.array([58.0, 44.0]) + random.uniform(-3, 3, 2),
        phase=float(random.uniform()),
        frames=int(random.integers(290, 311)),
    )


def _on_loop(drawn: Scene, phase: np.ndarray) -> np.ndarray:
    """Return the gripper's position [..., 2]: at the shelf at 0.25, over the basket at 0.75."""
    angle = 2 * np.pi * phase
    place: np.ndarray = drawn.centre + np.stack([-30 * np.sin(angle), 20 * np.cos(angle)], axis=-1)
    return place


def _segment(grid: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Return the distance of pixels ``grid`` [H, W, 2] to the segments ``start``-``end`` [T, 2]."""
    along = (end - start)[:, None, None].astype(np.float32)
    offset = grid - start[:, None, None].astype(np.float32)
    x, y = along[..., 0], along[..., 1]
    fraction = (offset[..., 0] * x + offset[..., 1] * y) / np.maximum(x * x + y * y, 1e-6)
    fraction = np.clip(fraction, 0, 1)
    distance: np.ndarray = np.hypot(offset[..., 0] - fraction * x, offset[..., 1] - fraction * y)
    return distance


def _paint(image: np.ndarray, distance: np.ndarray, radius: float, colour: np.ndarray) -> None:
    """Paint pixels closer than ``radius`` with ``colour``, with a soft edge of two pixels."""
    cover = np.broadcast_to(np.clip((radius - distance) / 2 + 0.5, 0, 1), image.shape[:3])
    touched = cover > 0  # a small part of the picture, which saves time
    fraction = cover[touched][:, None].astype(np.float32)
    image[touched] += fraction * (colour.astype(np.float32) - image[touched])


def draw_episode(drawn: Scene) -> np.ndarray:
    """Return the frames of a scene, uint8 RGB [T, 96, 128, 3], as the head camera sees it."""
    time = np.arange(drawn.frames)
    phase = (drawn.phase + time / PERIOD) % 1.0
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    grid = np.stack([x, y], axis=-1)

    image = np.empty((drawn.frames, HEIGHT, WIDTH, 3), np.float32)
    shade = 1.15 - 0.35 * (y / HEIGHT)
    image[:] = drawn.wall_colour * shade[..., None]
    for centre, half, colour in (
        ((26, 58), (26, 5), np.array([0.55, 0.4, 0.25])),  # the shelf
        ((98, 70), (18, 12), np.array([0.75, 0.2, 0.2])),  # the basket
    ):
        outside = np.maximum(np.abs(grid - centre) - half, 0)
        _paint(image, np.linalg.norm(outside, axis=-1)[None], 2.0, colour)

    hand = _on_loop(drawn, phase)
    shelf = _on_loop(drawn, np.array(GRASPED[0]))
    held = (phase >= GRASPED[0]) & (phase < GRASPED[1])
    good = np.where(held[:, None], hand, shelf) + np.array([0.0, 6.0])

    # the arm's two links from the shoulder, with the elbow on the outer side
    shoulder = np.broadcast_to(np.array([118.0, 104.0]), hand.shape)
    reach = hand - shoulder
    length = np.linalg.norm(reach, axis=-1, keepdims=True)
    bend = np.sqrt(np.maximum(62.0**2 - (length / 2) ** 2, 0.0))
    normal = np.stack([-reach[:, 1], reach[:, 0]], axis=-1) / length
    elbow = shoulder + reach / 2 + normal * bend
    _paint(image, _segment(grid, shoulder, elbow), 9.0, drawn.arm_colour * 0.8)
    _paint(image, _segment(grid, elbow, hand), 7.0, drawn.arm_colour)
    _paint(image, _segment(grid, good, good), 8.0, drawn.good_colour)
    _paint(image, _segment(grid, hand, hand), 6.0, np.array([0.15, 0.15, 0.18]))

    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def _actions(drawn: Scene) -> list[dict[str, Any]]:
    """Return the loop's actions as in task_info, with frames at 30 frames/s."""
    edges = sorted(
        (int(np.ceil((lap + at - drawn.phase) * PERIOD)), text, skill)
        for at, text, skill in ACTIONS
        for lap in range(-1, drawn.frames // PERIOD + 3)
    )
    actions = []
    for (start, text, skill), (end, _, _) in itertools.pairwise(edges):
        first, last = max(start, 0), min(end, drawn.frames)
        if first < last:
            actions.append(
                {
                    "start_frame": first,
                    "end_frame": last,
                    "action_text": text.format(drawn.good),
                    "skill": skill,
                }
            )
    return actions


def _info(episode: int, drawn: Scene) -> dict[str, Any]:
    return {
        "episode_id": episode,
        "task_id": TASK,
        "task_name": "Picking items in Supermarket",
        "init_scene_text": f"The robot is in front of a supermarket shelf with a {drawn.good}.",
        "label_info": {"action_config": _actions(drawn)},
    }


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # no time, no owner: the same task has the same bytes
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def _add_episode(archive: tarfile.TarFile, episode: int, drawn: Scene) -> None:
    for number in range(0, drawn.frames, 100):
        picture = io.BytesIO()
        Image.new("I;16", (WIDTH // 4, HEIGHT // 4), 1000 + number).save(picture, "png")
        _add(archive, f"{episode}/depth/head_depth_{number:06d}.png", picture.getvalue())
    with tempfile.TemporaryDirectory() as folder:
        frames = draw_episode(drawn)
        for camera in CAMERAS:
            path = Path(folder) / f"{camera}.mp4"
            write_video(path, frames if camera == CAMERAS[0] else frames[:, ::2, ::-2], FPS)
            _add(archive, f"{episode}/videos/{camera}.mp4", path.read_bytes())


def make_task(data_dir: Path, *, episodes: int = 12, seed: int = 0) -> list[Path]:
    """Write ``observations/327/*.tar`` and ``task_info/task_327.json`` below ``data_dir``.

    Existing archives are kept. Returns the paths of all files.
    """
    numbers = [FIRST_EPISODE + i for i in range(episodes - 1)] + [VALIDATION_EPISODE]
    scenes = {number: scene(number, seed) for number in numbers}
    half = (len(numbers) + 1) // 2
    archives = []
    progress = ProgressReporter("demo data", len(numbers), "episodes")
    for part in (numbers[:half], numbers[half:]):
        if not part:
            continue
        path = data_dir / "observations" / str(TASK) / f"{part[0]}-{part[-1]}.tar"
        archives.append(path)
        if path.exists():
            progress.advance(len(part))
            continue

        def write(stream: Any, part: list[int] = part) -> None:
            with tarfile.open(fileobj=stream, mode="w") as archive:
                for number in part:
                    _add_episode(archive, number, scenes[number])
                    progress.advance()

        atomic_write(path, write)
    info = data_dir / "task_info" / f"task_{TASK}.json"
    content = json.dumps([_info(number, scenes[number]) for number in numbers], indent=1) + "\n"
    if not info.exists() or info.read_text(encoding="utf-8") != content:
        write_text(info, content)
    return [*archives, info]


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's flags."""
    flags = argparse.ArgumentParser(
        prog="python -m video2world_preprocess.demo", description=__doc__.splitlines()[0]
    )
    flags.add_argument("--data_dir", type=Path, default=Path("datasets/agibot"))
    flags.add_argument(
        "--episodes", type=int, default=12, help="number of episodes, at least 2 (default: 12)"
    )
    flags.add_argument("--seed", type=int, default=0)
    return flags


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    flags = parser()
    args = flags.parse_args(argv)
    if not 2 <= args.episodes <= VALIDATION_EPISODE - FIRST_EPISODE + 1:
        flags.error("--episodes: give 2 (one of them is for validation) to 22")

    def work() -> tuple[Provenance, dict[str, Any]]:
        made = make_task(args.data_dir, episodes=args.episodes, seed=args.seed)
        say(f"AgiBotWorld-Alpha task {TASK}: {args.episodes} episodes in {args.data_dir}")
        return Provenance().left(made), {"episodes": args.episodes}

    return run_stage(work, stage="demo-data")


if __name__ == "__main__":
    raise SystemExit(main())
