"""Tests that every item in a folder of users' files is used, or reported with a reason."""

from __future__ import annotations

import json
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from video2world_common.files import write_text
from video2world_preprocess import embeddings, prepared, videos
from video2world_preprocess.stage_report import Report, printable
from video2world_preprocess.video.writer import write_video

COMPOSED, DECOMPOSED = "th\u00e9", "the\u0301"
FLAGS = ("--min_frames", "17", "--workers", "1")


@pytest.fixture(scope="module")
def take(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a video of one window."""
    path = tmp_path_factory.mktemp("take") / "take.mp4"
    write_video(path, np.full((20, 32, 32, 3), 90, np.uint8), 10)
    return path


def put(folder: Path, take: Path, name: str, text: str | bytes | None = "The arm moves.") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    os.link(take, folder / name)
    if text is not None:
        data = text if isinstance(text, bytes) else text.encode()
        (folder / f"{Path(name).stem}.txt").write_bytes(data)


def cut(folder: Path, out: Path, *flags: str) -> tuple[int, dict]:
    code = videos.main(["--videos_dir", str(folder), "--dataset_dir", str(out), *FLAGS, *flags])
    path = out / "report.json"
    return code, json.loads(path.read_text()) if path.exists() else {}


def reasons(report: dict) -> dict[str, str]:
    """Return why items were dropped or noted, by name; each name must be unique."""
    problems = report["dropped"] + report["notes"]
    found = {problem["item"]: problem["reason"] for problem in problems}
    assert len(found) == len(problems)
    return found


STEMS = st.sampled_from(
    [
        "a",
        "b",
        COMPOSED,
        DECOMPOSED,
        "-x",
        "a.b",
        " ",
        "--help",
        "a:b",
        "%d",
        "x\udcff",
        "two\nlines",
        "esc\x1b[31m",
        ".hidden",
        "..",
        "\U0001f916" * 57,
        "y" * 240,
        "[a]",
    ]
)
ENDINGS = st.sampled_from(
    [
        ".mp4",
        ".MP4",
        ".mov",
        ".mts",
        ".wmv",
        ".txt",
        ".TXT",
        ".csv",
        "",
        ".json",
        ".mp4.txt",
    ]
)
KINDS = st.sampled_from(["file", "file", "file", "broken", "loop", "folder", "fifo", "empty"])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(wanted=st.lists(st.tuples(STEMS, ENDINGS, KINDS), max_size=8))
def test_each_entry_is_used_or_named_once(
    tmp_path_factory: pytest.TempPathFactory, take: Path, wanted: list[tuple[str, str, str]]
) -> None:
    root = tmp_path_factory.mktemp("folder")
    folder, out = root / "in", root / "out"
    put(folder, take, "sure.mp4")
    for stem, ending, kind in wanted:
        path = folder / (stem + ending)
        if os.path.lexists(path) or len(os.fsencode(path.name)) > 255:
            continue
        match kind:
            case "file" if ending.lower() in (".mp4", ".mov", ".mts", ".wmv"):
                os.link(take, path)
            case "file":
                path.write_text("What it shows.")
            case "empty":
                path.touch()
            case "broken" | "loop":
                path.symlink_to(path if kind == "loop" else "/nowhere/at all")
            case "folder":
                path.mkdir()
            case "fifo":
                os.mkfifo(path)
    code, report = cut(folder, out)
    assert code == 0
    left_out = reasons(report)
    made = {meta.stem.rsplit("_window_", 1)[0] for meta in (out / "train/metas").iterdir()}
    assert {clip.stem.rsplit("_window_", 1)[0] for clip in (out / "train/videos").iterdir()} == made
    assert report["counts"]["episodes"] == len(made)
    for path in folder.iterdir():
        is_video = path.suffix.lower() in videos.VIDEO_SUFFIXES
        same = any(
            unicodedata.normalize("NFC", path.stem) == unicodedata.normalize("NFC", stem)
            for stem in made
        )
        if printable(path.name) in left_out:
            assert left_out[printable(path.name)]
        else:  # used
            assert path.stem in made if is_video else same and path.suffix.lower() == ".txt", path
    names = {printable(path.name) for path in folder.iterdir()}
    # some notes are about used items: a name too long for later files, an unusual frame rate
    assert set(left_out) <= names


def test_captions_match_in_any_case_and_unicode_spelling(tmp_path: Path, take: Path) -> None:
    folder = tmp_path / "in"
    put(folder, take, "only.MP4", None)
    (folder / "only.TXT").write_text("In capitals.")
    put(folder, take, f"{DECOMPOSED}.mp4", None)
    (folder / "th\u00e9.txt").write_text("Composed.")
    put(folder, take, "c.mp4", "Of c.")
    put(folder, take, "Case.mp4", None)
    (folder / "case.txt").write_text("Another case.")
    put(folder, take, "full.mp4", None)
    (folder / "full.mp4.txt").write_text("Named after the whole name.")
    code, report = cut(folder, tmp_path / "out", "--val_names", COMPOSED, "c.mp4")
    assert code == 0
    (train,) = (tmp_path / "out/train/metas").iterdir()
    assert train.read_text() == "In capitals."
    assert {m.read_text() for m in (tmp_path / "out/val/metas").iterdir()} == {"Composed.", "Of c."}
    assert "rename case.txt" in reasons(report)["Case.mp4"]
    assert "rename full.mp4.txt" in reasons(report)["full.mp4"]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("1", 'did you mean 001 (write it in quotes: "001")?'),
        ("pick_tak", "did you mean pick_take?"),
        ("PICK_TAKE", "did you mean pick_take?"),
        ("cam", "cam.mts: .mts videos are not read"),
    ],
)
def test_a_wrong_validation_name_gets_a_suggestion(
    tmp_path: Path, take: Path, asked: str, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("001.mp4", "pick_take.mp4", "cam.mts"):
        put(tmp_path / "in", take, name)
    assert cut(tmp_path / "in", tmp_path / "out", "--val_names", asked)[0] == 2
    error = capfd.readouterr().err
    assert f"--val_names {asked}: not among the videos, which are 001, pick_take" in error
    assert words in error


def test_a_name_is_not_treated_as_a_url(
    tmp_path: Path, take: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ffmpeg treats a name that begins with a word and a colon as a URL."""
    names = ["a:b", "http:x", "concat:a|b", "file:x", "pipe:0", "-i", "%d"]
    for name in (f"{name}.mp4" for name in names):
        put(tmp_path / "in", take, name)
    monkeypatch.chdir(tmp_path / "in")
    code, report = cut(Path(), tmp_path / "out")
    assert code == 0
    assert report["dropped"] == []
    assert report["counts"]["episodes"] == len(names)


@pytest.mark.parametrize("length", [225, 230, 231, 232, 233, 240, 251])
@pytest.mark.parametrize("letter", ["x", "\u00e9", "\U0001f916"])
def test_the_length_of_a_name_is_counted_in_bytes(
    tmp_path: Path, take: Path, length: int, letter: str
) -> None:
    size = len(letter.encode())
    stem = letter * (length // size) + "y" * (length % size)
    put(tmp_path / "in", take, "ok.mp4")
    put(tmp_path / "in", take, f"{stem}.mp4")
    code, report = cut(tmp_path / "in", tmp_path / "out")
    assert code == 0
    made = {p.name for p in (tmp_path / "out/train/videos").iterdir()}
    window = f"{stem}_window_0_frame_0-19.mp4"
    fits = len(window.encode()) <= 255
    assert (window in made) == fits
    assert "ok_window_0_frame_0-19.mp4" in made
    dropped = {p["item"]: p["reason"] for p in report["dropped"]}
    assert fits or "its name is too long for the names of its windows" in dropped.pop(f"{stem}.mp4")
    assert not dropped
    noted = [p["reason"] for p in report["notes"] if p["item"] == f"{stem}.mp4"]
    assert any("the stage that writes t5_xxl/" in r for r in noted) == (fits and length > 228)


@pytest.mark.parametrize("letter", ["x", "\u00e9", "\U0001f916"])
def test_a_file_of_any_name_that_fits_is_written(tmp_path: Path, letter: str) -> None:
    name = letter * (251 // len(letter.encode())) + ".txt"
    write_text(tmp_path / name, "text")
    assert [p.name for p in tmp_path.iterdir()] == [name]


CAPTIONS: dict[str, tuple[bytes, str | None]] = {
    "plain": (b"The arm picks.", None),
    "mark": ("\ufeffThe arm picks.".encode(), None),
    "mark and spaces": ("\ufeff \u200b The arm picks. \u2060\n\ufeff".encode(), None),
    "utf-16": ("The arm picks.".encode("utf-16"), "is not UTF-8 text but UTF-16; save it as UTF-8"),
    "utf-16 without a mark": ("The arm".encode("utf-16-be"), "has NUL bytes, as UTF-16 does"),
    "utf-32": ("The arm picks.".encode("utf-32"), "is not UTF-8 text but UTF-32; save it as UTF-8"),
    "latin": (b"caf\xe9", "is not UTF-8 text; save it as UTF-8"),
    "empty": (b"", "is empty"),
    "blank": (b" \r\n\t", "is empty"),
    "only a mark": ("\ufeff".encode(), "is empty"),
    "invisible": ("\u200b\u2060 \u00ad\u200e\u3164\u2800".encode(), "invisible characters only"),
}


@pytest.mark.parametrize("kind", CAPTIONS)
def test_captions_of_every_encoding(
    tmp_path: Path, take: Path, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """In a folder of videos, in a prepared dataset and in the embeddings stage alike."""
    data, reason = CAPTIONS[kind]
    put(tmp_path / "in", take, "sure.mp4")
    put(tmp_path / "in", take, "a.mp4", data)
    code, report = cut(tmp_path / "in", tmp_path / "out")
    assert code == 0
    made = {p.name[0]: p.read_bytes() for p in (tmp_path / "out/train/metas").iterdir()}
    assert made.get("a") == (None if reason else b"The arm picks.")
    assert reason is None or reason in reasons(report)["a.mp4"]

    split = tmp_path / "set" / "train"
    for name, text in (("a", data), ("sure", b"The arm moves.")):
        put(split / "videos", take, f"{name}.mp4", None)
        (split / "metas").mkdir(exist_ok=True)
        (split / "metas" / f"{name}.txt").write_bytes(text)
    checked = Report("dataset")
    assert prepared.check(tmp_path / "set", checked)["train"] == 2 - bool(reason)
    assert reason is None or reason in checked.dropped[0].reason

    embedded = Report("embeddings")
    found = embeddings._captions(split, embedded)
    assert found.get("a") == (None if reason else "The arm picks.")
    assert reason is None or reason in embedded.dropped[0].reason


def test_every_entry_of_a_prepared_folder_is_used_or_named(tmp_path: Path, take: Path) -> None:
    split = tmp_path / "train"
    for name in ("a.mp4", "b.MP4", ".take.mp4", "th\u00e9.mp4"):
        put(split / "videos", take, name, None)
    (split / "videos" / "gone.mp4").symlink_to("/nowhere")
    (split / "videos" / "day2").mkdir()
    (split / "videos" / "index.csv").touch()
    (split / "metas").mkdir()
    for name in (
        "a.txt",
        "b.txt",
        "gone.txt",
        f"{DECOMPOSED}.txt",
        "x.TXT",
    ):
        (split / "metas" / name).write_text("The arm moves.")
    report = Report("dataset")
    assert prepared.check(tmp_path, report) == {"train": 1, "val": 0}
    named = {p.item: p.reason for p in (*report.dropped, *report.notes)}
    expected = {
        "videos/b.MP4": "its name ends in .MP4, but only .mp4 is read; rename it to b.mp4",
        "videos/.take.mp4": "hidden",
        "videos/gone.mp4": "broken link to /nowhere",
        "videos/day2": "folder",
        "videos/index.csv": "is not read",
        "metas/b.txt": "b.MP4 is left out",
        "metas/gone.txt": "gone.mp4 is left out",
        COMPOSED: "has another Unicode spelling",
        f"metas/{DECOMPOSED}.txt": "its video is missing",
        "metas/x.TXT": "its name ends in .TXT, but only .txt is read; rename it to x.txt",
    }
    assert set(named) == {f"train/{name}" for name in expected}
    for name, words in expected.items():
        assert words in named[f"train/{name}"]
