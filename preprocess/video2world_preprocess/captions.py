"""What a window shows, in words: from a caption file, else composed from AgiBot's task_info."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from .files import read_json
from .report import Report
from .stage import UserError
from .windows import Window

__all__ = ["Action", "Caption", "CaptionFile", "ClipCaptions", "EpisodeInfo", "read_task_info"]

TASK_INFO_FPS = 30  # the frame numbers in task_info count at this rate (facts sheet §12)


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
        """The line of that name, or the one that covers most (half at least) of the window.

        The second case serves merged windows and other window sizes than the file's.
        """

        def shared(line: Caption) -> int:
            return min(line.stop, window.stop) - max(line.start, window.start)

        for line in self.lines:
            if line.clip == name:
                return line.text
        best = max(self.lines, key=shared, default=None)
        return best.text if best is not None and 2 * shared(best) >= window.frames else None


class CaptionFile:
    """Captions by clip, as in upstream's ``agibot_<camera>.jsonl`` (facts sheet §4.1)."""

    def __init__(self) -> None:
        self._clips: set[str] = set()
        self._by_episode: dict[tuple[int, int], list[Caption]] = {}

    @classmethod
    def read(cls, path: Path, report: Report) -> CaptionFile:
        """Read ``path``; lines that are no captions are named in ``report`` and left out.

        Raises:
            UserError: no such file, or not one good line.
        """
        captions = cls()
        try:
            lines = path.read_bytes().split(b"\n")
        except FileNotFoundError:
            raise UserError(f"--caption_file {path}: there is no such file") from None
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                captions._add(json.loads(line))
            except (ValueError, TypeError, KeyError) as error:
                why = f"key {error} is missing" if isinstance(error, KeyError) else str(error)
                report.drop("caption", f"{path}:{number}", why)
        if not captions._clips:
            raise UserError(
                f"--caption_file {path}: not one usable line; each line must be a JSON object "
                "with video_clip, task_id, episode_id, start_frame, end_frame and caption"
            )
        return captions

    def _add(self, line: Any) -> None:
        if not isinstance(line, dict):
            raise ValueError("the line is not a JSON object")
        clip, text = line["video_clip"], line["caption"]
        if not isinstance(clip, str) or not clip:
            raise ValueError("video_clip must be a file stem")
        if not isinstance(text, str) or not text.strip():
            raise ValueError("caption must be a text that is not empty")
        start, stop = int(line["start_frame"]), int(line["end_frame"]) + 1
        if not 0 <= start < stop:
            raise ValueError(f"start_frame {start} and end_frame {stop - 1} are no range")
        if clip in self._clips:
            raise ValueError(f"{clip} already has a caption on an earlier line")
        episode = (int(line["task_id"]), int(line["episode_id"]))
        self._clips.add(clip)
        self._by_episode.setdefault(episode, []).append(Caption(clip, start, stop, text))

    def of(self, task: int, episode: int) -> ClipCaptions | None:
        """The lines for an episode, or None."""
        lines = self._by_episode.get((task, episode))
        return ClipCaptions(tuple(lines)) if lines else None


@dataclass(frozen=True)
class Action:
    """What the robot does during frames ``start .. stop - 1`` at 30 frames/s."""

    start: int
    stop: int
    text: str


@dataclass(frozen=True)
class EpisodeInfo:
    """One episode of task_info: the scene at its start and the actions in their order."""

    scene: str
    actions: tuple[Action, ...]
    missing: str = "no caption: neither scene nor action is described"

    def text(self, name: str, window: Window, fps: Fraction) -> str | None:
        """The scene and the actions during the frames of ``window``; None if unknown."""
        scale = TASK_INFO_FPS / Fraction(fps)
        begin, end = window.start * scale, window.stop * scale
        actions = [a.text for a in self.actions if a.start < end and begin < a.stop]
        texts = [
            text if text.endswith((".", "!", "?")) else f"{text}."
            for text in [self.scene, *actions]
            if text
        ]
        return " ".join(texts) or None


def _episode_info(entry: Mapping[str, Any]) -> EpisodeInfo:
    label = entry.get("label_info")
    configs = (label.get("action_config") if isinstance(label, dict) else None) or []
    actions = []
    for config in configs if isinstance(configs, list) else []:
        text = str(config.get("action_text") or "").strip()
        if text:
            actions.append(Action(int(config["start_frame"]), int(config["end_frame"]), text))
    actions.sort(key=lambda action: action.start)
    return EpisodeInfo(str(entry.get("init_scene_text") or "").strip(), tuple(actions))


def read_task_info(path: Path, report: Report) -> dict[int, EpisodeInfo]:
    """Episodes by id from ``task_info/task_<id>.json``; unusable ones are named in ``report``.

    Raises:
        UserError: the file is missing or is no list of episodes.
    """
    try:
        entries = read_json(path)
    except ValueError as error:
        raise UserError(f"{error}; download it again") from error
    if entries is None:
        raise UserError(
            f"{path} is missing, and captions are composed from it: run the command with "
            "--prepare to download it, or give --caption_file"
        )
    if not isinstance(entries, list):
        raise UserError(f"{path}: a list of episodes is expected; download the file again")
    episodes: dict[int, EpisodeInfo] = {}
    for number, entry in enumerate(entries):
        try:
            episodes[int(entry["episode_id"])] = _episode_info(entry)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            report.drop("task_info entry", f"{path}[{number}]", f"unusable ({error!r})")
    return episodes
