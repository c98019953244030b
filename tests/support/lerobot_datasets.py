"""Write small LeRobotDatasets of all versions, whose pictures show episode, frame and camera."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

HEIGHT, WIDTH = 48, 64
BITS = 24  # 7 for the episode, 13 for the frame, 4 for the camera
CODECS = {
    "av1": ("libsvtav1", {"g": "2", "crf": "30", "preset": "12", "svtav1-params": "lp=1"}),
    "h264": ("libx264", {"g": "2"}),
    "h264-long": ("libx264", {"g": "250", "bf": "2"}),
    "hevc": ("libx265", {"x265-params": "log-level=none:keyint=30:pools=none"}),
}
TOP, WRIST, DEPTH = "observation.images.top", "observation.images.wrist", "observation.images.depth"


def picture(episode: int, frame: int, camera: int) -> np.ndarray:
    """Return a picture that shows three numbers as 24 black and white squares."""
    code = episode << 17 | frame << 4 | camera
    pixels = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    for bit in range(BITS):
        row, column = divmod(bit, 6)
        pixels[row * 8 : row * 8 + 8, column * 8 : column * 8 + 8] = 235 * (code >> bit & 1) + 16
    return pixels


def shown(pixels: np.ndarray) -> tuple[int, int, int]:
    """Return the episode, frame and camera that a picture shows."""
    code = 0
    for bit in range(BITS):
        row, column = divmod(bit, 6)
        square = pixels[row * 8 + 2 : row * 8 + 6, column * 8 + 2 : column * 8 + 6]
        code |= int(square.mean() > 128) << bit
    return code >> 17, code >> 4 & 0x1FFF, code & 15


def encode(path: Path, pictures: Iterator[np.ndarray], codec: str, fps: int) -> int:
    """Write a video; return its number of frames."""
    name, options = CODECS[codec]
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with av.open(str(path), "w") as container:
        stream = container.add_stream(name, rate=fps, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.thread_count = 1
        for pixels in pictures:
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = count, Fraction(1, fps)
            container.mux(stream.encode(frame))
            count += 1
        container.mux(stream.encode(None))
    return count


@dataclass
class Dataset:
    """A dataset to write: ``lengths`` and ``tasks`` by episode, ``cameras`` with their codecs.

    The codec ``image`` stores pictures in the Parquet files. ``group`` is the number of episodes
    per v3 video file; ``numbers`` are the episodes' indices. ``numbers_of`` has more columns of
    numbers, by functions of episode and frame.
    """

    root: Path
    version: str = "v3.0"
    lengths: Sequence[int] = (24, 18, 30)
    tasks: Sequence[str] = ("push cube", "open drawer", "push cube")
    cameras: dict[str, str] = field(default_factory=lambda: {TOP: "h264", WRIST: "h264"})
    fps: int = 10
    group: int = 2
    numbers: Sequence[int] = ()
    chunks_size: int = 1000
    info: dict[str, Any] = field(default_factory=dict)  # overrides
    features: dict[str, Any] = field(default_factory=dict)
    drift: float = 0.0  # seconds added to each from_timestamp
    task_column: str | None = "task"
    numbers_of: dict[str, Callable[[int, int], Any]] = field(default_factory=dict)  # more columns

    def __post_init__(self) -> None:
        self.numbers = self.numbers or tuple(range(len(self.lengths)))

    def pictures(self, place: int, camera: str) -> Iterator[np.ndarray]:
        """Yield the pictures of an episode."""
        number = list(self.cameras).index(camera)
        for frame in range(self.lengths[place]):
            yield picture(self.numbers[place], frame, number)

    def write(self) -> Path:
        """Write all files and return the dataset's folder."""
        (self.root / "meta").mkdir(parents=True, exist_ok=True)
        self._write_info()
        if self.version == "v3.0":
            self._write_v3()
        else:
            self._write_v2()
        return self.root

    def _write_info(self) -> None:
        is_v3 = self.version == "v3.0"
        v2 = "chunk-{episode_chunk:03d}/"
        v3 = "chunk-{chunk_index:03d}/file-{file_index:03d}"
        features: dict[str, Any] = {
            name: {
                "dtype": "image" if codec == "image" else "video",
                "shape": [HEIGHT, WIDTH, 3],
                "names": ["height", "width", "channels"],
            }
            for name, codec in self.cameras.items()
        }
        features |= {
            "observation.state": {"dtype": "float32", "shape": [2], "names": None},
            "timestamp": {"dtype": "float32", "shape": [1], "names": None},
        }
        info = {
            "codebase_version": self.version,
            "robot_type": "toy",
            "fps": self.fps,
            "total_episodes": len(self.lengths),
            "total_frames": sum(self.lengths),
            "total_tasks": len(set(self.tasks)),
            "chunks_size": self.chunks_size,
            "splits": {"train": f"0:{len(self.lengths)}"},
            "data_path": f"data/{v3}.parquet"
            if is_v3
            else f"data/{v2}episode_{{episode_index:06d}}.parquet",
            "video_path": f"videos/{{video_key}}/{v3}.mp4"
            if is_v3
            else f"videos/{v2}{{video_key}}/episode_{{episode_index:06d}}.mp4",
            "features": features | self.features,
            **self.info,
        }
        (self.root / "meta/info.json").write_text(json.dumps(info, indent=4))

    @property
    def task_names(self) -> list[str]:
        """The different tasks."""
        return list(dict.fromkeys(self.tasks))

    def _rows(self, places: Sequence[int]) -> pa.Table:
        columns: dict[str, list[Any]] = {
            name: []
            for name in (
                "observation.state",
                "timestamp",
                "frame_index",
                "episode_index",
                "index",
                "task_index",
            )
        }
        images = [name for name, codec in self.cameras.items() if codec == "image"]
        columns |= {name: [] for name in images}
        index = sum(self.lengths[: places[0]])
        for place in places:
            for frame in range(self.lengths[place]):
                values = (
                    [float("nan"), 0.5],
                    frame / self.fps,
                    frame,
                    self.numbers[place],
                    index,
                    self.task_names.index(self.tasks[place]),
                )
                for name, value in zip(columns, values, strict=False):
                    columns[name].append(value)
                index += 1
            for name in images:
                for pixels in self.pictures(place, name):
                    stream = io.BytesIO()
                    Image.fromarray(pixels).save(stream, "png")
                    columns[name].append({"bytes": stream.getvalue(), "path": None})
        for name, value in self.numbers_of.items():
            pairs = ((place, frame) for place in places for frame in range(self.lengths[place]))
            columns[name] = [value(self.numbers[place], frame) for place, frame in pairs]
        return pa.table(columns)

    def _write_v2(self) -> None:
        def lines(name: str, rows: list[dict[str, Any]]) -> None:
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (self.root / "meta" / name).write_text(text)

        tasks = [{"task_index": n, "task": task} for n, task in enumerate(self.task_names)]
        lines("tasks.jsonl", tasks)
        episodes = [
            {"episode_index": number, "tasks": [task], "length": length}
            for number, task, length in zip(self.numbers, self.tasks, self.lengths, strict=True)
        ]
        lines("episodes.jsonl", episodes)
        if self.version == "v2.1":
            lines("episodes_stats.jsonl", [{"episode_index": n, "stats": {}} for n in self.numbers])
        else:
            (self.root / "meta/stats.json").write_text("{}")
        for place, number in enumerate(self.numbers):
            chunk = f"chunk-{number // self.chunks_size:03d}"
            data = self.root / "data" / chunk / f"episode_{number:06d}.parquet"
            data.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(self._rows([place]), data)
            for name, codec in self.cameras.items():
                if codec != "image":
                    path = self.root / "videos" / chunk / name / f"episode_{number:06d}.mp4"
                    encode(path, self.pictures(place, name), codec, self.fps)

    def _write_v3(self) -> None:
        names = pa.table({"task_index": list(range(len(self.task_names)))})
        column = self.task_column or "__index_level_0__"
        names = names.append_column(column, pa.array(self.task_names))
        pq.write_table(names, self.root / "meta/tasks.parquet")
        places = list(range(len(self.lengths)))
        rows: dict[str, list[Any]] = {
            "episode_index": list(self.numbers),
            "tasks": [[task] for task in self.tasks],
            "length": list(self.lengths),
            "data/chunk_index": [0] * len(places),
            "data/file_index": [0] * len(places),
        }
        for offset, (name, codec) in enumerate(self.cameras.items()):
            if codec == "image":
                continue
            columns = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
            values: dict[str, list[Any]] = {column: [] for column in columns}
            # cameras differ in how many episodes fill a file, as their pictures do
            size = self.group + offset
            for number, first in enumerate(range(0, len(places), size)):
                some = places[first : first + size]
                path = self.root / "videos" / name / "chunk-000" / f"file-{number:03d}.mp4"
                encode(path, (p for k in some for p in self.pictures(k, name)), codec, self.fps)
                begin = 0
                for place in some:
                    end = begin + self.lengths[place]
                    values["chunk_index"].append(0)
                    values["file_index"].append(number)
                    values["from_timestamp"].append(begin / self.fps + self.drift * (begin > 0))
                    values["to_timestamp"].append(end / self.fps + self.drift)
                    begin = end
            rows |= {f"videos/{name}/{column}": found for column, found in values.items()}
        rows["stats/action/min"] = [[0.0]] * len(places)
        path = self.root / "meta/episodes/chunk-000/file-000.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(rows), path)
        data = self.root / "data/chunk-000/file-000.parquet"
        data.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(self._rows(places), data)
