"""Captions from a file, or composed from task_info; unusable entries named and left out."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import pytest

from video2world_preprocess.captions import CaptionFile, read_task_info
from video2world_preprocess.report import Report
from video2world_preprocess.stage import UserError
from video2world_preprocess.windows import Window


def line(start: int, end: int, caption: object, episode: int = 7) -> dict[str, object]:
    return {
        "video_clip": f"task_327_episode_{episode}_window_0_frame_{start}-{end}",
        "task_id": 327, "episode_id": episode, "start_frame": start, "end_frame": end,
        "caption": caption,
    }  # fmt: skip


def test_bad_lines_are_named_and_the_good_ones_kept(tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    missing_key = line(300, 449, "x")
    del missing_key["episode_id"]
    texts = [
        json.dumps(line(0, 149, "A robot picks.")), "{not json", json.dumps([1]),
        json.dumps(missing_key), json.dumps(line(450, 599, " ")), json.dumps(line(9, 3, "x")),
        json.dumps(line(0, 149, "Twice.")), "", json.dumps(line(150, 299, "It places.")),
    ]  # fmt: skip
    path.write_text("\n".join(texts) + "\n")
    with path.open("ab") as stream:
        stream.write(b"\xff\xfe\n")
    report = Report("dataset")
    captions = CaptionFile.read(path, report)
    assert [p.item for p in report.dropped] == [f"{path}:{n}" for n in (2, 3, 4, 5, 6, 7, 10)]
    assert "episode_id" in report.dropped[2].reason
    lines = captions.of(327, 7)

    def found(name: str, start: int, stop: int) -> str | None:
        return lines.text(name, Window(0, start, stop), Fraction(30))

    assert found("task_327_episode_7_window_0_frame_0-149", 0, 150) == "A robot picks."
    # merged and other windows get the line that covers most of them, half at least
    assert found("other", 130, 300) == "It places."
    assert found("other", 250, 400) is None
    assert captions.of(327, 8) is None


@pytest.mark.parametrize("content", [None, "", "{}\n"])
def test_caption_file_without_a_usable_line(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "captions.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=r"--caption_file .*captions\.jsonl"):
        CaptionFile.read(path, Report("dataset"))


def test_composed_caption_has_the_scene_and_the_overlapping_actions(tmp_path: Path) -> None:
    actions = [
        {"start_frame": 150, "end_frame": 300, "action_text": "Place the cup", "skill": "Place"},
        {"start_frame": 0, "end_frame": 150, "action_text": "Pick the cup.", "skill": "Pick"},
        {"start_frame": 0, "end_frame": 10, "action_text": ""},
    ]
    entries = [
        {"episode_id": 7, "init_scene_text": "A table", "label_info": {"action_config": actions}},
        {"episode_id": "8", "init_scene_text": "", "label_info": {}},
        {"no": "id"},
        {"episode_id": 9, "label_info": {"action_config": [{"action_text": "No frames"}]}},
        "nonsense",
    ]
    path = tmp_path / "task_327.json"
    path.write_text(json.dumps(entries))
    report = Report("dataset")
    infos = read_task_info(path, report)
    assert sorted(infos) == [7, 8, 9]  # an unusable action costs itself only
    assert [p.item for p in report.dropped] == [f"{path}[{n}]" for n in (2, 3, 4)]

    def caption(episode: int, start: int, stop: int, fps: int) -> str | None:
        return infos[episode].text("any", Window(0, start, stop), Fraction(fps))

    assert caption(7, 0, 150, 30) == "A table. Pick the cup."
    assert caption(7, 149, 151, 30) == "A table. Pick the cup. Place the cup."
    # frame numbers of task_info count at 30 frames/s whatever the video's rate is
    assert caption(7, 50, 100, 10) == "A table. Place the cup."
    assert caption(7, 400, 500, 30) == "A table."
    assert caption(8, 0, 10, 30) is None
    assert caption(9, 0, 10, 30) is None


@pytest.mark.parametrize("content", [None, "{", '{"a": 1}'])
def test_task_info_that_is_none(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "task_327.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=r"task_327\.json"):
        read_task_info(path, Report("dataset"))
