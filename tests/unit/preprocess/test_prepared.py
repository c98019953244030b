"""Tests that a prepared dataset folder is checked and never changed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from video2world_common.exit_codes import UserError
from video2world_preprocess import prepared
from video2world_preprocess.stage_report import Report
from video2world_preprocess.video.writer import write_video


def clip(folder: Path, split: str, name: str, frames: int = 20) -> None:
    write_video(
        folder / split / "videos" / f"{name}.mp4", np.zeros((frames, 32, 32, 3), np.uint8), 10
    )
    meta = folder / split / "metas" / f"{name}.txt"
    meta.parent.mkdir(exist_ok=True)
    meta.write_text("What it shows.")


def test_usable_clips_are_counted_and_others_named(tmp_path: Path) -> None:
    for split, name in (
        ("train", "a"),
        ("train", "b"),
        ("train", "c"),
        ("train", "d"),
        ("val", "e"),
    ):
        clip(tmp_path, split, name)
    clip(tmp_path, "train", "short", 5)
    (tmp_path / "train" / "metas" / "b.txt").unlink()
    (tmp_path / "train" / "metas" / "c.txt").write_text("\n")
    (tmp_path / "train" / "videos" / "d.mp4").write_bytes(b"")
    (tmp_path / "val" / "metas" / "lonely.txt").write_text("x")
    before = sorted(tmp_path.rglob("*"))
    report = Report("dataset")
    assert prepared.check(tmp_path, report, 10) == {"train": 1, "val": 1}
    assert [p.item for p in report.dropped] == [
        "train/b",
        "train/c",
        "train/d",
        "train/short",
        "val/metas/lonely.txt",
    ]
    assert report.counts["frames"] == 40
    assert sorted(tmp_path.rglob("*")) == before
    assert prepared.main(["--dataset_dir", str(tmp_path), "--require_val"]) == 0
    (tmp_path / "val" / "videos" / "e.mp4").unlink()
    assert prepared.main(["--dataset_dir", str(tmp_path), "--require_val"]) == 2
    assert prepared.main(["--dataset_dir", str(tmp_path)]) == 0


def test_missing_actions_are_named_before_a_gpu_is_held(tmp_path: Path, capfd) -> None:
    clip(tmp_path, "train", "a")
    assert prepared.main(["--dataset_dir", str(tmp_path), "--require_actions"]) == 2
    assert "actions.json: there is no such file" in capfd.readouterr().err


def test_wrong_layouts_are_user_errors(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    with pytest.raises(UserError, match="is missing"):
        prepared.check(tmp_path / "none", Report("dataset"))
    (tmp_path / "train" / "videos").mkdir(parents=True)
    assert prepared.main(["--dataset_dir", str(tmp_path)]) == 2
    assert "train/metas is missing" in capfd.readouterr().err
    (tmp_path / "train" / "metas").mkdir()
    assert prepared.main(["--dataset_dir", str(tmp_path)]) == 2
    assert "no usable clip in train" in capfd.readouterr().err


def test_required_actions_are_checked_for_every_clip(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--dataset_dir", str(tmp_path), "--require_actions"]
    for name in ("good", "short", "wide", "bad", "none"):
        clip(tmp_path, "train", name)
    assert prepared.main(flags) == 2
    assert "actions.json: there is no such file, so the data set has no" in capsys.readouterr().err
    numbers = {key: [1.0, 2.0] for key in ("mean", "std", "min", "max", "offset", "scale")}
    described = {"format": 1, "names": ["a", "b"], "representation": "absolute", "source": ""}
    (tmp_path / "actions.json").write_text(
        json.dumps(described | {"fps": 10, "rows": 19} | numbers)
    )
    (tmp_path / "train/actions").mkdir()
    for name, rows in (
        ("good", np.zeros((19, 2), np.float32)),
        ("short", np.zeros((18, 2), np.float32)),
        ("wide", np.zeros((19, 3), np.float32)),
        ("bad", np.full((19, 2), np.nan, np.float32)),
    ):
        save_file({"actions": rows}, tmp_path / f"train/actions/{name}.safetensors")
    assert prepared.main(flags) == 0
    out = capsys.readouterr().out
    assert "train windows: 1" in out
    for reason in (
        "short.safetensors: 18 rows for 20 frames, 19 are needed: fewer actions than frames",
        "wide.safetensors: 3 values per row, 2 in actions.json",
        "bad.safetensors: row 0: value 0 is nan",
        "none.safetensors: there is no such file",
    ):
        assert reason in out
    (tmp_path / "actions.json").write_text("{}")
    assert prepared.main(flags) == 2
    assert "is not a description of actions" in capsys.readouterr().err
