"""Tests for captions from a file or from task_info, and reports of unusable entries."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from video2world_common.exit_codes import UserError
from video2world_preprocess.dataset.captions import CaptionFile, read_task_info
from video2world_preprocess.dataset.windows import Window
from video2world_preprocess.stage_report import Report


def line(start: int, end: int, caption: object, episode: int = 7) -> dict[str, object]:
    return {
        "video_clip": f"task_327_episode_{episode}_window_0_frame_{start}-{end}",
        "task_id": 327,
        "episode_id": episode,
        "start_frame": start,
        "end_frame": end,
        "caption": caption,
    }


def test_bad_lines_are_named_and_the_good_ones_kept(tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    missing_key = line(300, 449, "x")
    del missing_key["episode_id"]
    texts = [
        json.dumps(line(0, 149, "A robot picks.")),
        "{not json",
        json.dumps([1]),
        json.dumps(missing_key),
        json.dumps(line(450, 599, " ")),
        json.dumps(line(9, 3, "x")),
        json.dumps(line(0, 149, "Twice.")),
        "",
        json.dumps(line(150, 299, "It places.")),
    ]
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
    # merged and other windows get the line that overlaps most of them, at least half
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
    assert sorted(infos) == [7, 8, 9]  # an unusable action affects nothing else
    assert [p.item for p in report.dropped] == [f"{path}[{n}]" for n in (2, 3, 4)]

    def caption(episode: int, start: int, stop: int, fps: int) -> str | None:
        return infos[episode].text("any", Window(0, start, stop), Fraction(fps))

    assert caption(7, 0, 150, 30) == "A table. Pick the cup."
    assert caption(7, 149, 151, 30) == "A table. Pick the cup. Place the cup."
    # task_info counts at 30 frames/s, regardless of the video's frame rate
    assert caption(7, 50, 100, 10) == "A table. Place the cup."
    assert caption(7, 400, 500, 30) == "A table."
    assert caption(8, 0, 10, 30) is None
    assert caption(9, 0, 10, 30) is None


@pytest.mark.parametrize("content", [None, "{", '{"a": 1}'])
def test_invalid_task_info(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "task_327.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=r"task_327\.json"):
        read_task_info(path, Report("dataset"))


NO_TEXT = [None, 7, 1.5, True, [], ["Pick."], {}, {"text": "Pick."}, "\ud800", "\u200b\ufeff"]
NO_NUMBER = [
    None,
    "",
    "x",
    1.5,
    True,
    [],
    {},
    float("nan"),
    float("inf"),
    10**400,
    "9" * 5000,
    -1e300,
]
NO_OBJECT = [None, 7, "text", [], [1], True]


def entry(episode: object, **changes: object) -> dict[str, object]:
    actions = [
        {"start_frame": 0, "end_frame": 150, "action_text": "Pick it up."},
        {"start_frame": 150, "end_frame": 300, "action_text": "Place it.", **changes},
    ]
    return {
        "episode_id": episode,
        "init_scene_text": "A shelf.",
        "label_info": {"action_config": actions},
    }


@pytest.mark.parametrize(
    ("key", "value"),
    [("action_text", value) for value in NO_TEXT]
    + [(key, value) for key in ("start_frame", "end_frame") for value in NO_NUMBER]
    + [("end_frame", 150), ("end_frame", 20)],
)
def test_an_unusable_action_is_left_out_and_reported(
    tmp_path: Path, key: str, value: object
) -> None:
    path = tmp_path / "task_327.json"
    path.write_text(json.dumps([entry(1), entry(2, **{key: value}), entry(3)]))
    report = Report("dataset")
    infos = read_task_info(path, report)
    window = Window(0, 0, 300)
    said = [infos[n].text("any", window, Fraction(30)) for n in (1, 2, 3)]
    assert said == ["A shelf. Pick it up. Place it.", "A shelf. Pick it up.", said[0]]
    named = [] if value is None and key == "action_text" else [f"{path}[1]"]
    assert [p.item for p in report.dropped] == named
    for problem in report.dropped:
        assert "episode 2 is used without action_config[1]: " in problem.reason
        assert len(problem.reason) < 200


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "episode_id",
                    "label_info",
                    "action_config",
                    "start_frame",
                    "end_frame",
                    "action_text",
                    "init_scene_text",
                    "video_clip",
                    "caption",
                    "task_id",
                ]
            ),
            inner,
            max_size=6,
        )
    ),
    max_leaves=20,
)
WRONG = st.sampled_from([*NO_TEXT, *NO_NUMBER, *NO_OBJECT]) | JSON


@st.composite
def damaged(draw: st.DrawFn) -> list[object]:
    """Return a task_info with some values replaced; its first and last entries are good."""
    entries: list[object] = [entry(n) for n in range(2, 2 + draw(st.integers(0, 3)))]
    for number, one in enumerate(entries):
        assert isinstance(one, dict)
        match draw(st.sampled_from(["whole", "key", "label", "actions", "action", "part", "gone"])):
            case "whole":
                entries[number] = draw(WRONG)
            case "key":
                one[draw(st.sampled_from(list(one)))] = draw(WRONG)
            case "label":
                one["label_info"] = draw(WRONG)
            case "actions":
                one["label_info"] = {"action_config": draw(WRONG)}
            case "action":
                one["label_info"]["action_config"][0] = draw(WRONG)
            case "part":
                key = draw(st.sampled_from(["start_frame", "end_frame", "action_text"]))
                one["label_info"]["action_config"][0][key] = draw(WRONG)
            case "gone":
                one["label_info"]["action_config"][0].pop("start_frame")
    return [entry(1), *entries, entry(99)]


@settings(max_examples=150, deadline=None)
@given(entries=damaged())
def test_damage_of_task_info_never_raises_or_affects_another_episode(
    tmp_path_factory: pytest.TempPathFactory, entries: list[object]
) -> None:
    path = tmp_path_factory.mktemp("info") / "task_327.json"
    path.write_text(json.dumps(entries))
    report = Report("dataset")
    infos = read_task_info(path, report)
    for good in (1, 99):
        text = infos[good].text("any", Window(0, 0, 300), Fraction(30))
        assert text == "A shelf. Pick it up. Place it."
    named = {p.item for p in report.dropped}
    for number, one in enumerate(entries):
        is_named = f"{path}[{number}]" in named
        listed = isinstance(one, dict) and one.get("episode_id") in range(2, 6)
        assert is_named or (isinstance(one, dict) and "episode_id" in one)
        if listed:
            assert one["episode_id"] in infos
    for info in infos.values():
        text = info.text("any", Window(0, 0, 10), Fraction(30))
        assert text is None or text.encode()


@settings(max_examples=200, deadline=None)
@given(
    lines=st.lists(st.binary(max_size=30) | JSON.map(lambda v: json.dumps(v).encode()), max_size=4)
)
def test_damage_of_a_caption_file_never_raises_or_affects_another_line(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]
) -> None:
    lines = [part for line in lines for part in line.split(b"\n")]
    path = tmp_path_factory.mktemp("file") / "captions.jsonl"
    good = [
        json.dumps(line(0, 149, "First.")).encode(),
        json.dumps(line(0, 149, "Last.", 8)).encode(),
    ]
    path.write_bytes(b"\xef\xbb\xbf" + b"\n".join([good[0], *lines, good[1]]))
    report = Report("dataset")
    captions = CaptionFile.read(path, report)
    for episode, text in ((7, "First."), (8, "Last.")):
        assert captions.of(327, episode).text("any", Window(0, 0, 150), Fraction(30)) == text
    named = {p.item for p in report.dropped}
    assert named == {f"{path}:{n}" for n, one in enumerate(lines, start=2) if one.strip()}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (json.dumps([line(0, 149, "x")], indent=1).encode(), "one JSON list: write each object on"),
        (json.dumps(line(0, 149, "x")).encode("utf-16"), "is UTF-16; save it as UTF-8"),
    ],
)
def test_a_caption_file_in_another_format_is_reported(
    tmp_path: Path, data: bytes, words: str
) -> None:
    path = tmp_path / "captions.jsonl"
    path.write_bytes(data)
    with pytest.raises(UserError, match=words):
        CaptionFile.read(path, Report("dataset"))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'{"a": 1}\n{"a": 2}\n', r"one JSON value per line \(JSON Lines\): put \["),
        (b"[" * 100_000, "nested too deeply"),
        ("[]".encode("utf-16"), "is not UTF-8 text but UTF-16"),
        (b"[\xff]", "is not UTF-8 text"),
    ],
)
def test_invalid_json_is_explained(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "task_327.json"
    path.write_bytes(data)
    with pytest.raises(UserError, match=rf"task_327\.json {words}|task_327\.json .*{words}"):
        read_task_info(path, Report("dataset"))


def test_a_number_of_thousands_of_digits_affects_only_its_action(tmp_path: Path) -> None:
    path = tmp_path / "task_327.json"
    text = json.dumps([entry(1), entry(2, start_frame=77777)])
    path.write_text(text.replace("77777", "9" * 5000))
    report = Report("dataset")
    infos = read_task_info(path, report)
    assert infos[2].text("any", Window(0, 0, 300), Fraction(30)) == "A shelf. Pick it up."
    assert len(report.dropped) == 1


def test_an_episode_that_is_listed_twice_is_used_once(tmp_path: Path) -> None:
    path = tmp_path / "task_327.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps([entry(1), entry("1", action_text="x")]).encode())
    report = Report("dataset")
    infos = read_task_info(path, report)
    assert "Place it." in infos[1].text("any", Window(0, 0, 300), Fraction(30))
    assert "an earlier entry has episode 1" in report.dropped[0].reason
