"""Compare the LeRobot reader with the plain method on this machine.

Run as ``python -m benchmarks.lerobot``. Prints a table and writes
``benchmarks/results/lerobot.json``. The dataset is a LeRobotDataset v3.0 of AV1 videos with two
frames per group of pictures, as LeRobot writes them; a few different episodes are encoded and
repeated by copying their packets, as LeRobot joins episodes. It is served by tools/hub_server.py to
the Hub's own client. The plain method downloads the dataset, and for each window opens the video
with PyAV, seeks to the episode's time stamp, decodes, and encodes with x264's default preset at
the same crf.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pyarrow as pa
import pyarrow.parquet as pq

from .host import facts
from .preprocess import MIB, _disk, _Watch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tools")]

from agibot_archives import footage  # noqa: E402
from hub_server import HubServer, Repository, client_environment, folder_files, serving  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "lerobot.json"
REPO = "robots/benchmark"
CAMERAS = [f"observation.images.{name}" for name in ("head", "left_wrist", "right_wrist", "scene")]
FPS, SECONDS = 30, 20
DIFFERENT = 4  # episodes that are encoded
AV1 = {"g": "2", "crf": "30", "preset": "12", "svtav1-params": "lp=1"}

PLAIN = """
import sys
from fractions import Fraction
from pathlib import Path
import av
import pyarrow.parquet as pq
from huggingface_hub import snapshot_download
repo, camera, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
root = Path(snapshot_download(repo, repo_type="dataset", local_dir="data"))
rows = pq.read_table(root / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
Path("out").mkdir()
for row in rows:
    place = row[f"videos/{camera}/chunk_index"], row[f"videos/{camera}/file_index"]
    path = root / "videos" / camera / ("chunk-%03d/file-%03d.mp4" % place)
    begin = row[f"videos/{camera}/from_timestamp"]
    end, number = row[f"videos/{camera}/to_timestamp"], 0
    while begin < end - 1e-3:
        stop = min(begin + seconds, end)
        with av.open(str(path)) as source, av.open(
            f"out/{row['episode_index']}_{number}.mp4", "w"
        ) as target:
            video = source.streams.video[0]
            source.seek(int(begin / video.time_base), stream=video)
            stream = target.add_stream("libx264", rate=video.average_rate, options={"crf": "18"})
            stream.width, stream.height, stream.pix_fmt = video.width, video.height, "yuv420p"
            count = 0
            for frame in source.decode(video):
                if frame.time < begin - 1e-3:
                    continue
                if frame.time >= stop - 1e-3:
                    break
                frame.pts, frame.time_base = count, 1 / Fraction(video.average_rate)
                frame.pict_type = 0
                target.mux(stream.encode(frame))
                count += 1
            target.mux(stream.encode(None))
        begin, number = stop, number + 1
"""


def _episode(path: Path, height: int, width: int, seed: int) -> None:
    """Encode an episode."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libsvtav1", rate=FPS, options=AV1)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number, pixels in enumerate(footage(FPS * SECONDS, height, width, seed)):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _join(parts: list[Path], target: Path) -> None:
    """Join videos by copying their packets."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(target), "w") as output:
        copy: Any = None
        for number, part in enumerate(parts):
            with av.open(str(part)) as source:
                stream = source.streams.video[0]
                assert stream.time_base is not None
                copy = copy or output.add_stream_from_template(stream, opaque=True)
                offset = int(number * SECONDS / stream.time_base)
                for packet in source.demux(stream):
                    if packet.pts is not None and packet.dts is not None:
                        packet.pts += offset
                        packet.dts += offset
                        packet.stream = copy
                        output.mux(packet)


def write_dataset(root: Path, episodes: int, per_file: int, height: int, width: int) -> None:
    """Write a LeRobotDataset v3.0 of four cameras."""
    rows: dict[str, list[Any]] = {
        "episode_index": list(range(episodes)),
        "tasks": [[f"Put item {n % 7} into the basket"] for n in range(episodes)],
        "length": [FPS * SECONDS] * episodes,
    }
    for place, camera in enumerate(CAMERAS):
        drawn = []
        for number in range(DIFFERENT):
            drawn.append(root.parent / f"{place}-{number}.mp4")
            _episode(drawn[-1], height, width, 10 * place + number)
        for first in range(0, episodes, per_file):
            some = [drawn[n % DIFFERENT] for n in range(first, min(first + per_file, episodes))]
            _join(some, root / f"videos/{camera}/chunk-000/file-{first // per_file:03d}.mp4")
        begins = [float(n % per_file * SECONDS) for n in range(episodes)]
        rows |= {
            f"videos/{camera}/chunk_index": [0] * episodes,
            f"videos/{camera}/file_index": [n // per_file for n in range(episodes)],
            f"videos/{camera}/from_timestamp": begins,
            f"videos/{camera}/to_timestamp": [begin + SECONDS for begin in begins],
        }
    for path, table in (
        ("meta/episodes/chunk-000/file-000.parquet", rows),
        ("data/chunk-000/file-000.parquet", _states(episodes)),
    ):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(table), root / path)
    shape = {"dtype": "video", "shape": [height, width, 3], "names": ["height", "width", "channel"]}
    info = {
        "codebase_version": "v3.0",
        "fps": FPS,
        "total_episodes": episodes,
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "features": dict.fromkeys(CAMERAS, shape),
    }
    (root / "meta/info.json").write_text(json.dumps(info))


def _states(episodes: int) -> dict[str, list[Any]]:
    frames = FPS * SECONDS
    return {
        "episode_index": [n for n in range(episodes) for _ in range(frames)],
        "observation.state": [[0.1 * k for k in range(14)]] * (episodes * frames),
    }


def measure(scratch: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Measure ours, then the plain method, on the same dataset."""
    (root := scratch / "dataset").mkdir()
    (ours := scratch / "ours").mkdir()
    (plain := scratch / "plain").mkdir()
    write_dataset(root, args.episodes, args.per_file, args.height, args.width)
    size = sum(path.stat().st_size for path in root.rglob("*.*") if path.is_file())
    chosen = [*(root / "meta").rglob("*.*"), *(root / "videos" / CAMERAS[0]).rglob("*.mp4")]
    needed = sum(path.stat().st_size for path in chosen if path.is_file())
    with serving(HubServer({REPO: Repository(folder_files(root))})) as hub:
        environment = client_environment(hub, scratch / "hf")
        for path in folder_files(root):
            hub.repositories[REPO].etag(path)  # hashed beforehand
        watch = _Watch(ours)
        seconds = watch.run(
            [
                *(sys.executable, "-m", "video2world_preprocess.lerobot", "--repo_id", REPO),
                *("--camera", CAMERAS[0], "--dataset_dir", "out"),
            ],
            cwd=ours,
            env=environment,
        )
        fetched = sum(hub.sent.values())
        hub.sent.clear()
        counts = json.loads((ours / "out/report.json").read_text())["counts"]
        other = _Watch(plain)
        slow = other.run(
            [sys.executable, "-c", PLAIN, REPO, CAMERAS[0], "5"], cwd=plain, env=environment
        )
        fetched_plain = sum(hub.sent.values())
    return {
        "episodes": args.episodes,
        "seconds_of_an_episode": SECONDS,
        "episodes_per_file": args.per_file,
        "cameras": len(CAMERAS),
        "size": f"{args.width}x{args.height}",
        "dataset_bytes": size,
        "windows": counts["windows"],
        "windows_plain": len(list((plain / "out").iterdir())),
        "seconds": round(seconds, 1),
        "seconds_plain": round(slow, 1),
        "ratio": round(seconds / slow, 3),
        "fetched_bytes": fetched,
        "fetched_of_needed": round(fetched / needed, 4),
        "fetched_bytes_plain": fetched_plain,
        "kept_bytes": _disk(ours),
        "peak_extra_bytes": watch.disk - _disk(ours),
        "largest_process_mib": round(watch.process / MIB),
        "largest_process_mib_plain": round(other.process / MIB),
    }


def main() -> None:
    """Measure, print the table, and write the file."""
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("--episodes", type=int, default=200, help="of 20 s each (200)")
    flags.add_argument("--per_file", type=int, default=50, help="episodes in a video file (50)")
    flags.add_argument("--height", type=int, default=240)
    flags.add_argument("--width", type=int, default=320)
    flags.add_argument("--scratch", type=Path, help="where to work (a temporary folder)")
    flags.add_argument("--commit", default="", help="where git cannot tell it")
    args = flags.parse_args()
    machine = facts(" ".join(["python -m benchmarks.lerobot", *sys.argv[1:]]), args.commit)
    folder = Path(tempfile.mkdtemp(dir=args.scratch))
    try:
        row = measure(folder, args) | {"machine": machine}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    RESULTS.write_text(json.dumps({"lerobot_v3": row}, indent=1) + "\n")
    rows = (
        (
            "wall time against the plain way",
            "<= 0.3 x",
            f"{row['ratio']} x ({row['seconds']} and {row['seconds_plain']} s)",
        ),
        (
            "bytes fetched over bytes of camera and metadata",
            "<= 1.05",
            f"{row['fetched_of_needed']} ({row['fetched_bytes']} bytes)",
        ),
        ("largest process", "<= 1024 MiB", f"{row['largest_process_mib']} MiB"),
    )
    for what, goal, value in rows:
        print(f"{what:<50} {goal:<12} {value}")


if __name__ == "__main__":
    main()
