"""Tests for the generated AgiBotWorld-Alpha task: layout, reproducibility, learnable content."""

import itertools
import json
import tarfile

import numpy as np
import pytest

from video2world_preprocess.demo import CAMERAS, PERIOD, draw_episode, main, make_task, scene
from video2world_preprocess.video.reader import read_frames
from video2world_trainer.generation.quality_metrics import psnr


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    folder = tmp_path_factory.mktemp("agibot")
    make_task(folder, episodes=2)
    return folder


def test_layout_is_agibot_worlds(task):
    info = json.loads((task / "task_info/task_327.json").read_text())
    assert [one["episode_id"] for one in info] == [685372, 685393]
    for archive, one in zip(sorted((task / "observations/327").glob("*.tar")), info, strict=True):
        with tarfile.open(archive) as opened:
            names = opened.getnames()
        episode = one["episode_id"]
        assert archive.name == f"{episode}-{episode}.tar"
        assert {f"{episode}/videos/{camera}.mp4" for camera in CAMERAS} <= set(names)
        assert any(name.startswith(f"{episode}/depth/") for name in names)
        actions = one["label_info"]["action_config"]
        assert actions[0]["start_frame"] == 0
        assert all(a["end_frame"] == b["start_frame"] for a, b in itertools.pairwise(actions))
        assert actions[-1]["end_frame"] == scene(episode).frames


def test_videos_in_the_archive_show_the_scene(task, tmp_path):
    with tarfile.open(task / "observations/327/685393-685393.tar") as opened:
        opened.extractall(tmp_path, filter="data")
    frames = read_frames(tmp_path / f"685393/videos/{CAMERAS[0]}.mp4")
    drawn = draw_episode(scene(685393))
    assert frames.shape == drawn.shape
    assert psnr(frames, drawn) > 30


def test_the_same_seed_gives_the_same_bytes_and_existing_files_are_kept(task, tmp_path):
    make_task(tmp_path, episodes=2)
    for path in task.rglob("*.*"):
        assert (tmp_path / path.relative_to(task)).read_bytes() == path.read_bytes()
    archive = tmp_path / "observations/327/685393-685393.tar"
    before = archive.stat().st_mtime_ns
    make_task(tmp_path, episodes=2)
    assert archive.stat().st_mtime_ns == before


def test_the_motion_is_large_and_periodic():
    frames = draw_episode(scene(685393))
    clips = [frames[start : start + 17] for start in range(0, 200, 20)]
    held = [psnr(np.broadcast_to(clip[:1], clip[1:].shape), clip[1:]) for clip in clips]
    assert np.mean(held) < 20  # repeating the first frame is a poor guess
    assert np.array_equal(frames[0], frames[PERIOD])


def test_episodes_differ():
    first, second = (draw_episode(scene(number))[0] for number in (685372, 685393))
    assert psnr(first, second) < 25


def test_too_few_or_too_many_episodes_are_refused(capsys):
    for count in ("1", "23"):
        with pytest.raises(SystemExit) as stopped:
            main(["--episodes", count])
        assert stopped.value.code == 2
    assert "--episodes" in capsys.readouterr().err
