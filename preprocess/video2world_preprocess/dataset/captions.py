"""Caption AgiBot's windows from a caption file, else from the actions that task_info describes."""

from __future__ import annotations

import codecs
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from video2world_common.exit_codes import UserError
from video2world_common.files import read_json
from video2world_common.user_text import checked_caption, parse_json
from video2world_preprocess.dataset.source import Captions
from video2world_preprocess.dataset.windows import Window
from video2world_preprocess.stage_report import Report

__all__ = [
    "Action",
    "Caption",
    "CaptionFile",
    "ClipCaptions",
    "EpisodeCaptions",
    "EpisodeInfo",
    "read_task_info",
]

LARGEST_NUMBER = 1 << 53  # JSON readers that use doubles hold smaller integers exactly
TASK_INFO_FPS = 30  # AgiBotWorld-Alpha records at this rate, which its frame numbers refer to


@dataclass(frozen=True)
class Caption:
    """One line of a caption file: ``text`` for ``clip``, frames ``start .. stop - 1``."""

    clip: str
    start: int
    stop: int
    text: str


@dataclass(frozen=True)
class ClipCaptions:
    """The lines of a caption file for one episode."""

    lines: tuple[Caption, ...]
    missing: str = "the caption file has no line for it"

    def text(self, name: str, window: Window, fps: Fraction) -> str | None:
        """Return the line of that name, or the one that overlaps most of the window, at least half.

        The latter is for merged windows and for window sizes other than the file's.
        """

        def overlap(line: Caption) -> int:
            return min(line.stop, window.stop) - max(line.start, window.start)

        for line in self.lines:
            if line.clip == name:
                return line.text
        best = max(self.lines, key=overlap, default=None)
        return best.text if best is not None and 2 * overlap(best) >= window.frames else None


class CaptionFile:
    """Captions by clip, in the format of cosmos-predict2's ``agibot_<camera>.jsonl``."""

    def __init__(self) -> None:
        self._clips: set[str] = set()
        self._by_episode: dict[tuple[int, int], list[Caption]] = {}

    @classmethod
    def read(cls, path: Path, report: Report) -> CaptionFile:
        """Read ``path``; report lines that are not captions, and leave them out.

        Raises:
            UserError: the file is missing or has no usable line.
        """
        captions = cls()
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise UserError(f"--caption_file {path}: there is no such file") from None
        if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise UserError(f"--caption_file {path}: it is UTF-16; save it as UTF-8")
        lines = data.removeprefix(codecs.BOM_UTF8).split(b"\n")
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                captions._add(parse_json(line))
            except (ValueError, KeyError) as error:
                why = f"key {error} is missing" if isinstance(error, KeyError) else str(error)
                report.drop("caption", f"{path}:{number}", why)
        if not captions._clips:
            is_list = data.removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"["
            hint = "; this file is one JSON list: write each object on a line of its own"
            raise UserError(
                f"--caption_file {path}: it has no usable line; each line must be a JSON object "
                "with video_clip, task_id, episode_id, start_frame, end_frame and caption "
                f"(JSON Lines){hint if is_list else ''}"
            )
        return captions

    def _add(self, line: Any) -> None:
        if not isinstance(line, dict):
            raise ValueError("the line is not a JSON object")
        clip, text = line["video_clip"], line["caption"]
        if not isinstance(clip, str) or not clip:
            raise ValueError("video_clip must be a file stem")
        try:
            text = checked_caption(text)
        except ValueError as error:
            raise ValueError(f"caption must be a non-empty string: it {error}") from None
        start, stop = _number(line, "start_frame"), _number(line, "end_frame") + 1
        if not 0 <= start < stop:
            raise ValueError(f"start_frame {start} and end_frame {stop - 1} are not a range")
        if clip in self._clips:
            raise ValueError(f"{clip} already has a caption on an earlier line")
        episode = (_number(line, "task_id"), _number(line, "episode_id"))
        self._clips.add(clip)
        self._by_episode.setdefault(episode, []).append(Caption(clip, start, stop, text))

    def of(self, task: int, episode: int) -> ClipCaptions | None:
        """Return the lines of an episode, or None."""
        lines = self._by_episode.get((task, episode))
        return ClipCaptions(tuple(lines)) if lines else None


@dataclass(frozen=True)
class Action:
    """An action of the robot during frames ``start .. stop - 1`` at 30 frames/s."""

    start: int
    stop: int
    text: str


@dataclass(frozen=True)
class EpisodeInfo:
    """One episode of task_info: the initial scene and the actions in order."""

    scene: str
    actions: tuple[Action, ...]
    missing: str = "no caption: neither scene nor action is described"

    def text(self, name: str, window: Window, fps: Fraction) -> str | None:
        """Return the scene and the actions during the frames of ``window``; None if unknown."""
        scale = TASK_INFO_FPS / Fraction(fps)
        begin, end = window.start * scale, window.stop * scale
        actions = [a.text for a in self.actions if a.start < end and begin < a.stop]
        texts = [
            text if text.endswith((".", "!", "?")) else f"{text}."
            for text in [self.scene, *actions]
            if text
        ]
        return " ".join(texts) or None


def _number(entry: Mapping[str, Any], key: str) -> int:
    """Return the integer under ``key``, which may be written as a string.

    Raises:
        KeyError: the key is missing.
        ValueError: its value is not an integer.
    """
    value = entry[key]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str) and value.isascii() and value.strip().removeprefix("-").isdigit():
        value = int(value) if len(value) <= 20 else None
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= LARGEST_NUMBER:
        raise ValueError(f"{key} is {_shown(entry[key])}, not an integer")
    return value


def _shown(value: object) -> str:
    text = "null" if value is None else repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def _action(config: object) -> Action | None:
    """Parse an action of task_info; return None if it has no description.

    Raises:
        ValueError: it is unusable.
    """
    if not isinstance(config, dict):
        raise ValueError("is not an object")
    text = config.get("action_text")
    if text is None or (isinstance(text, str) and not text.strip()):
        return None
    try:
        text = checked_caption(text)
    except ValueError as error:
        raise ValueError(f"its action_text {error}") from None
    try:
        start, stop = _number(config, "start_frame"), _number(config, "end_frame")
    except KeyError as error:
        raise ValueError(f"key {error} is missing") from None
    if stop <= start:
        raise ValueError(f"start_frame {start} and end_frame {stop} are not a range")
    return Action(start, stop, text)


def _episode_info(entry: Mapping[str, Any]) -> tuple[EpisodeInfo, list[str]]:
    """Parse an episode of task_info; return it and why parts of it are unusable."""
    faults: list[str] = []
    scene = entry.get("init_scene_text")
    try:
        scene = "" if scene is None else checked_caption(scene)
    except ValueError as error:
        if not str(error).startswith("is empty"):
            faults.append(f"init_scene_text: it {error}")
        scene = ""
    label = entry.get("label_info")
    configs = label.get("action_config") if isinstance(label, dict) else None
    if label is not None and not isinstance(label, dict):
        faults.append("its actions: label_info is not an object")
    elif configs is not None and not isinstance(configs, list):
        faults.append("its actions: label_info.action_config is not a list")
    actions = []
    for number, config in enumerate(configs if isinstance(configs, list) else []):
        try:
            action = _action(config)
        except ValueError as error:
            faults.append(f"action_config[{number}]: {error}")
        else:
            actions += [action] if action is not None else []
    actions.sort(key=lambda action: action.start)
    return EpisodeInfo(scene, tuple(actions)), faults


def read_task_info(path: Path, report: Report) -> dict[int, EpisodeInfo]:
    """Read the episodes in ``task_info/task_<id>.json`` by id; report unusable entries.

    Raises:
        UserError: the file is missing or is not a list of episodes.
    """
    try:
        entries = read_json(path)
    except ValueError as error:
        raise UserError(f"{error}; download it again") from error
    if entries is None:
        raise UserError(
            f"{path} is missing, and captions are composed from it: run with --prepare to download "
            "it, or set --caption_file"
        )
    if not isinstance(entries, list):
        raise UserError(f"{path}: expected a list of episodes; download the file again")
    episodes: dict[int, EpisodeInfo] = {}
    for number, entry in enumerate(entries):
        place = f"{path}[{number}]"
        try:
            if not isinstance(entry, dict):
                raise ValueError("it is not an object")
            episode = _number(entry, "episode_id")
        except (KeyError, ValueError) as error:
            why = f"key {error} is missing" if isinstance(error, KeyError) else str(error)
            report.drop("task_info entry", place, f"unusable ({why})")
            continue
        if episode in episodes:
            reason = f"unusable (an earlier entry has episode {episode}, and is used)"
            report.drop("task_info entry", place, reason)
            continue

        info, faults = _episode_info(entry)
        episodes[episode] = info
        for fault in faults:
            report.drop("caption part", place, f"episode {episode} is used without {fault}")
    return episodes


@dataclass(frozen=True)
class EpisodeCaptions:
    """The captions of all episodes: from a caption file, or composed from task_info by task."""

    _file: CaptionFile | None
    _tasks: Mapping[int, Mapping[int, EpisodeInfo]]

    @classmethod
    def from_file(cls, path: Path, report: Report) -> EpisodeCaptions:
        """Read a caption file; see :meth:`CaptionFile.read`."""
        return cls(CaptionFile.read(path, report), {})

    @classmethod
    def from_task_info(cls, paths: Mapping[int, Path], report: Report) -> EpisodeCaptions:
        """Read the task_info file of each task; see :func:`read_task_info`."""
        return cls(None, {task: read_task_info(path, report) for task, path in paths.items()})

    def of(self, task: int, episode: int) -> Captions | None:
        """Return the captions of one episode, or None."""
        if self._file is not None:
            return self._file.of(task, episode)
        return self._tasks[task].get(episode)

    @property
    def episodes(self) -> set[int] | None:
        """All episodes in task_info; None if a caption file is used instead."""
        if self._file is not None:
            return None
        return {episode for episodes in self._tasks.values() for episode in episodes}

    def why_missing(self, task: int) -> str:
        """Return why an episode has no captions."""
        if self._file is not None:
            return "the caption file has no line for it"
        return (
            f"task_info/task_{task}.json does not have it, so there is no caption; set "
            "--caption_file, or use a newer task_info"
        )
