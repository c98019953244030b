"""Locate the files of a LeRobotDataset: the version by its files, the paths by templates.

The layouts of versions 2.0, 2.1 and 3.0 are those of https://github.com/huggingface/lerobot
(``lerobot/datasets/utils.py``). Labels and templates in ``meta/info.json`` are often wrong: they
are checked against the files, and never trusted to stay in the dataset's folder.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import PurePosixPath
from typing import Any

from video2world_common.exit_codes import UserError
from video2world_common.lerobot_cameras import Feature, cameras_of, why_depth

__all__ = [
    "EPISODES_V2",
    "INFO",
    "STATS_V21",
    "Info",
    "cameras_in",
    "fill",
    "format_of",
    "parse_info",
    "path_candidates",
]

INFO = "meta/info.json"
EPISODES_V2 = "meta/episodes.jsonl"
STATS_V21 = "meta/episodes_stats.jsonl"
CHUNKS_SIZE = 1000  # of every known writer
FASTEST = 1000  # frames per second that are plausible
_V2 = "chunk-{episode_chunk:03d}/"
_V3 = "chunk-{chunk_index:03d}/file-{file_index:03d}"
_TEMPLATES = {
    ("v2", "video"): f"videos/{_V2}{{video_key}}/episode_{{episode_index:06d}}.mp4",
    ("v2", "image"): f"data/{_V2}episode_{{episode_index:06d}}.parquet",
    ("v3", "video"): f"videos/{{video_key}}/{_V3}.mp4",
    ("v3", "image"): f"data/{_V3}.parquet",
}
_FIELD = re.compile(r"\{(\w+)(?::0(\d{1,2})d)?\}")


@dataclass(frozen=True)
class Info:
    """What ``meta/info.json`` says, as far as it is usable."""

    label: str = ""
    episodes: Fraction | None = None
    fps: Fraction | None = None
    chunks_size: int = CHUNKS_SIZE
    templates: Mapping[str, str] = field(default_factory=dict)  # by kind: video, image
    cameras: Mapping[str, Feature] = field(default_factory=dict)
    features: Mapping[str, Any] = field(default_factory=dict)


def fill(template: str, values: Mapping[str, int | str]) -> str:
    """Return the path that ``template`` gives with ``values``.

    Unlike :meth:`str.format`, it only knows ``{name}`` and ``{name:03d}``.

    Raises:
        ValueError: another field, or a path that leaves the folder.
    """

    def value(match: re.Match[str]) -> str:
        if match[1] not in values:
            raise ValueError(f"has the unknown field {match[0]}")
        found = values[match[1]]
        return f"{found:0{int(match[2])}d}" if match[2] and isinstance(found, int) else str(found)

    path = _FIELD.sub(value, template)
    if "{" in path or "}" in path:
        raise ValueError("is not a path with fields such as {episode_index:06d}")
    if path.startswith("/") or "\\" in path or "\0" in path or ".." in PurePosixPath(path).parts:
        raise ValueError("leads out of the dataset's folder")
    return path


def format_of(meta: Collection[str]) -> tuple[str, bool]:
    """Return the version of the files in ``meta/`` (v2.0, v2.1, v3.0); whether v2 is mixed in.

    Raises:
        UserError: they list no episodes.
    """
    is_v3 = any(name.startswith("meta/episodes/") and name.endswith(".parquet") for name in meta)
    is_v2 = EPISODES_V2 in meta
    if is_v3:
        return "v3.0", is_v2
    if is_v2:
        return ("v2.1" if STATS_V21 in meta else "v2.0"), False
    raise UserError(
        f"the dataset lists no episodes: neither {EPISODES_V2} (v2.0, v2.1) nor "
        "meta/episodes/*/*.parquet (v3.0) exists; copy the complete meta/ folder"
    )


def parse_info(value: object) -> tuple[Info, list[str]]:
    """Return the content of ``meta/info.json``, and what is wrong with it.

    Raises:
        UserError: it is not a JSON object.
    """
    if not isinstance(value, dict):
        raise UserError(f"{INFO}: not a JSON object; copy or download it again")
    faults: list[str] = []
    label = value.get("codebase_version", value.get("version", ""))
    chunks_size = _number(value.get("chunks_size"))
    if chunks_size is None or chunks_size < 1 or chunks_size != int(chunks_size):
        if "chunks_size" in value:
            faults.append(f"chunks_size is {value['chunks_size']!r:.40}; {CHUNKS_SIZE} is assumed")
        chunks_size = Fraction(CHUNKS_SIZE)
    fps = _number(value.get("fps"))
    if fps is None or not 0 < fps <= FASTEST:
        faults.append(f"fps is {value.get('fps')!r:.40}; the files' own rate is used")
        fps = None
    templates = {}
    for kind, key in (("video", "video_path"), ("image", "data_path")):
        template = value.get(key)
        if isinstance(template, str):
            known = {"video_key": "k"} | dict.fromkeys(
                ("episode_chunk", "episode_index", "chunk_index", "file_index"), 0
            )
            try:
                fill(template, known)
            except ValueError as error:
                faults.append(f"{key} {template!r:.100} {error}; the usual path is used instead")
            else:
                templates[kind] = template
    features = value.get("features")
    if not isinstance(features, dict):
        faults.append("features is not an object; cameras are taken from the folder names")
        features = {}
    total = _number(value.get("total_episodes"))
    cameras = cameras_of(features)
    info = Info(str(label)[:40], total, fps, int(chunks_size), templates, cameras, features)
    return info, faults


def _number(value: object) -> Fraction | None:
    """Return a finite number that JSON holds as a number or as text, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return Fraction(float(value)).limit_denominator(100_000)
    except (ValueError, OverflowError):
        return None


def cameras_in(paths: Iterable[str]) -> dict[str, Feature]:
    """Return the cameras that ``paths`` of videos are named after."""
    found = {}
    for path in paths:
        parts = PurePosixPath(path).parts
        if len(parts) == 4 and parts[0] == "videos" and parts[3].endswith(".mp4"):
            key = parts[2] if parts[1].startswith("chunk-") else parts[1]
            found[key] = Feature("video", why_depth(key, {}))
    return found


def path_candidates(
    version: str, kind: str, info: Info, camera: str, **place: int
) -> dict[str, None]:
    """Return where the file of an episode may be: by the dataset's template, then the usual one.

    Args:
        version: of :func:`format_of`.
        kind: video, or image for the rows that hold images.
        place: ``episode_index``; for v3.0 ``chunk_index`` and ``file_index``.
    """
    usual = _TEMPLATES[version[:2], kind]
    templates = [t for t in (info.templates.get(kind), usual) if t is not None and "{" in t]
    sizes = (info.chunks_size, CHUNKS_SIZE) if "chunk_index" not in place else (CHUNKS_SIZE,)
    found: dict[str, None] = {}
    for size in sizes:
        values: dict[str, int | str] = {"video_key": camera, **place}
        if "chunk_index" not in place:
            chunk = place["episode_index"] // size
            values |= {"episode_chunk": chunk, "chunk_index": chunk}
        for template in templates:
            try:
                found[fill(template, values)] = None
            except ValueError:  # a template of the other version
                continue
    return found
