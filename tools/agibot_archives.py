"""Write archives of any size in AgiBotWorld-Alpha's layout, to measure the data stages with.

    python tools/agibot_archives.py --root FOLDER --gigabytes 10

Every episode has depth images, which are most of the members, and one video per camera. A few
videos are drawn and encoded once and used for all episodes: only their size, frame count and
decoding cost matter.
"""

from __future__ import annotations

import argparse
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from video2world_preprocess.video.writer import write_video

CAMERAS = (
    "head_color",
    "head_center_fisheye_color",
    "head_left_fisheye_color",
    "head_right_fisheye_color",
    "back_left_fisheye_color",
    "back_right_fisheye_color",
    "hand_left_color",
    "hand_right_color",
)
TASK, FIRST_EPISODE = 327, 648_642
DEPTH_BYTES = 90_000  # size of a depth image


def footage(frames: int, height: int, width: int, seed: int) -> NDArray[np.uint8]:
    """Return frames uint8 [T, H, W, 3] with moving shapes, fine texture and sensor noise."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    tile = random.normal(0, 18, (height, 2 * width)).astype(np.float32)
    tile = ((tile + np.roll(tile, 1, 1) + np.roll(tile, 1, 0)) / 2).astype(np.float32)
    out = np.empty((frames, height, width, 3), np.uint8)
    for t in range(frames):
        shift = int(width / 2 + width / 3 * np.sin(2 * np.pi * t / 240))
        image = 110 + tile[:, shift : shift + width]
        for k in range(3):
            cx = width * (0.5 + 0.35 * np.sin(2 * np.pi * (t / (150 + 40 * k) + k / 3)))
            cy = height * (0.5 + 0.3 * np.cos(2 * np.pi * (t / (190 - 30 * k))))
            image += 60 * (np.hypot(x - cx, y - cy) < height / 8) * (1 - 0.6 * k)
        noise = random.integers(-4, 5, (height, width), np.int8)
        grey = np.clip(image + noise, 0, 255).astype(np.uint8)
        out[t] = np.stack([grey, grey // 2 + 60, 255 - grey // 2], -1)
    return out


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> int:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))
    return len(content)


def make_archives(
    root: Path,
    total_bytes: int,
    *,
    archives: int = 2,
    size: tuple[int, int] = (480, 640),
    frames: tuple[int, ...] = (900, 1230, 1500),
    fps: int = 30,
    depth_share: float = 0.9,
    seed: int = 0,
) -> list[Path]:
    """Write ``observations/327/*.tar`` with ``total_bytes`` in total, and the task's task_info.

    ``depth_share`` of the bytes are depth images. With the default, a gigabyte yields about as many
    windows as AgiBot's task 327 (1,714 from two archives of about 48 GB). The same arguments give
    the same bytes. Returns the archives.
    """
    videos = []
    for number, count in enumerate(frames):
        path = root / f".video-{number}.mp4"
        write_video(path, footage(count, *size, seed + number), fps, crf=23)
        videos.append(path.read_bytes())
        path.unlink()
    random, episode = np.random.default_rng(seed), FIRST_EPISODE
    picture = b"\x89PNG\r\n\x1a\n" + random.bytes(DEPTH_BYTES)
    made, entries = [], []
    folder = root / "observations" / str(TASK)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(archives):
        first, written = episode, 0
        partial = folder / f".partial-{number}.tar"
        with tarfile.open(partial, "w") as archive:
            while written < total_bytes / archives:
                which = episode % len(videos)
                depth = int(len(CAMERAS) * len(videos[which]) * depth_share / (1 - depth_share))
                for image in range(depth // DEPTH_BYTES):
                    written += _add(archive, f"{episode}/depth/{image:06d}.png", picture)
                for camera in CAMERAS:
                    name = f"{episode}/videos/{camera}.mp4"
                    written += _add(archive, name, videos[which])
                entries.append(_entry(episode, frames[which]))
                episode += 1
        made.append(folder / f"{first}-{episode - 1}.tar")
        partial.replace(made[-1])
    info = root / "task_info" / f"task_{TASK}.json"
    info.parent.mkdir(parents=True, exist_ok=True)
    info.write_text(json.dumps(entries))
    return made


def _entry(episode: int, frames: int) -> dict[str, Any]:
    action = {"start_frame": 0, "end_frame": frames // 2, "action_text": "Pick up a lemon."}
    return {
        "episode_id": episode,
        "task_id": TASK,
        "task_name": "Picking items in Supermarket",
        "init_scene_text": f"The robot is in front of shelf {episode}.",
        "label_info": {"action_config": [action]},
    }


def main() -> None:
    """Write the archives."""
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("--root", type=Path, required=True)
    flags.add_argument("--gigabytes", type=float, default=1.0)
    flags.add_argument("--archives", type=int, default=2)
    args = flags.parse_args()
    for path in make_archives(args.root, int(args.gigabytes * 1e9), archives=args.archives):
        print(path, path.stat().st_size)


if __name__ == "__main__":
    main()
