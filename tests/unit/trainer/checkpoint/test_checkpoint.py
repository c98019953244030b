import signal
import subprocess
import sys
import time

import pytest
import torch

from video2world_common.exit_codes import UserError
from video2world_trainer.checkpoint.dcp import StagingBuffers
from video2world_trainer.checkpoint.folder import (
    PARTS,
    CheckpointFolder,
    read_latest,
)


def contents(value):
    return {
        "model": {"net.w": torch.full((1000,), float(value)).bfloat16()},
        "optim": {"masters": {"w": torch.full((1000,), float(value))}},
        "scheduler": {"last_epoch": value},
        "trainer": {"iteration": value},
    }


@pytest.fixture
def folder(tmp_path):
    checkpoints = CheckpointFolder(tmp_path / "checkpoints")
    for iteration in (10, 20, 30):
        checkpoints.save(iteration, contents(iteration))
    return checkpoints


def latest_file(folder):
    return folder.folder / "latest_checkpoint.txt"


def test_checkpoints_have_the_guides_folder_tree(folder):
    assert latest_file(folder).read_text() == "iter_000000030.pt\n"
    for part in PARTS:
        assert (folder.folder / part / "iter_000000030.pt").is_file()
        assert folder.load(part, 30).keys() == contents(30)[part].keys()
    assert folder.load("model", 20)["net.w"].eq(20).all()
    assert torch.load(folder.path("optim", 20), weights_only=True)["masters"]["w"].eq(20).all()
    assert folder.latest_complete() == 30


def test_an_empty_folder_has_no_checkpoint(tmp_path):
    assert CheckpointFolder(tmp_path / "none").latest_complete() is None
    assert read_latest(tmp_path) is None


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("harm", ["cut", "flip", "gone", "empty"])
def test_a_damaged_file_falls_back_to_the_newest_complete_checkpoint(folder, part, harm, capsys):
    path = folder.path(part, 30)
    data = bytearray(path.read_bytes())
    if harm == "gone":
        path.unlink()
    else:
        data[len(data) // 2] ^= 0xFF
        path.write_bytes({"cut": data[:-7], "flip": data, "empty": b""}[harm])
    assert folder.latest_complete() == 20
    out = capsys.readouterr().out
    assert str(path) in out
    assert "resuming from iteration 20" in out


@pytest.mark.parametrize("text", ["", "iter_9.pt", "../../../etc/passwd", "\x00\xff", "30"])
def test_a_damaged_latest_file_falls_back(folder, text, capsys):
    latest_file(folder).write_text(text)
    assert folder.latest_complete() == 30
    assert "is damaged" in capsys.readouterr().out


def test_a_latest_file_that_names_a_missing_checkpoint_falls_back(folder, capsys):
    latest_file(folder).write_text("iter_000000040.pt\n")
    assert folder.latest_complete() == 30
    assert "iter_000000040.pt is missing" in capsys.readouterr().out


def test_the_latest_file_can_select_an_older_checkpoint(folder):
    latest_file(folder).write_text("iter_000000010.pt\n")
    assert folder.latest_complete() == 10


def test_without_a_latest_file_the_newest_complete_checkpoint_is_used(folder):
    latest_file(folder).unlink()
    assert folder.latest_complete() == 30


def test_an_interrupted_first_save_starts_from_scratch(tmp_path):
    folder = CheckpointFolder(tmp_path)
    folder.save(5, contents(5))
    latest_file(folder).unlink()
    folder.path("trainer", 5).unlink()
    assert CheckpointFolder(tmp_path).latest_complete() is None


def test_published_checkpoints_without_a_complete_one_are_an_error(folder):
    for iteration in (10, 20, 30):
        folder.path("optim", iteration).write_bytes(b"torn")
    with pytest.raises(UserError, match="move this folder aside"):
        folder.latest_complete()


def test_files_without_a_record_are_complete_if_they_load(folder):
    for path in (folder.folder / "trainer").glob("*.json"):
        path.unlink()
    assert folder.latest_complete() == 30
    path = folder.path("model", 30)
    path.write_bytes(path.read_bytes()[:-40])
    assert folder.latest_complete() == 20


def test_a_pickle_that_would_run_code_is_not_complete(folder, tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "made"), "w"))

    torch.save({"x": Evil()}, folder.path("optim", 30))
    (folder.folder / "trainer" / "iter_000000030.json").unlink()
    assert folder.latest_complete() == 20
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("keep", [1, 2, 3, 9])
def test_pruning_keeps_the_newest(folder, keep):
    folder.save(40, contents(40), keep=keep)
    assert folder.iterations() == [40, 30, 20, 10][:keep]
    assert folder.latest_complete() == 40
    assert len(list((folder.folder / "trainer").glob("*.json"))) == min(keep, 4)


def test_pruning_never_deletes_the_latest_even_if_older_numbers_are_higher(folder):
    folder.save(15, contents(15), keep=1)  # trained again after going back
    assert folder.iterations() == [15]
    assert folder.latest_complete() == 15


def test_partial_files_of_killed_writers_are_deleted(folder):
    left = folder.folder / "model" / ".partial-iter-x.pt"
    left.write_bytes(b"half")
    folder.delete_partial_files()
    assert not left.exists()
    assert folder.latest_complete() == 30


def description(**changes):
    run = {"size": "Tiny", "architecture": "base", "dataset_dir": "datasets/a/train"} | changes
    return {"size": run["size"], "run": run}


def test_another_runs_folder_is_rejected_with_every_difference(folder):
    folder.set_description(description())
    folder.set_description(description())
    with pytest.raises(UserError) as error:
        folder.set_description(description(size="2B", dataset_dir="datasets/b/train"))
    for text in ("size is 'Tiny' there and '2B' here", "datasets/b/train", "job.name"):
        assert text in str(error.value)


def test_a_folder_without_checkpoints_can_change_its_run(tmp_path):
    folder = CheckpointFolder(tmp_path)
    folder.set_description(description())
    folder.set_description(description(size="2B"))
    assert '"2B"' in folder.config_path.read_text()


WRITER = """
import sys, torch
from pathlib import Path
from video2world_trainer.checkpoint.folder import CheckpointFolder
torch.set_num_threads(1)
folder, n = CheckpointFolder(Path(sys.argv[1])), int(sys.argv[2])
print("ready", flush=True)
while True:
    n += 1
    tensors = {"t": torch.full((200_000,), float(n))}
    folder.save(n, {part: tensors for part in ("model", "optim", "scheduler", "trainer")}, keep=3)
"""


def test_a_kill_while_saving_never_publishes_an_incomplete_checkpoint(tmp_path, capsys):
    reached = 0
    for delay in (0.01, 0.05, 0.11, 0.2, 0.31):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), str(reached)], stdout=subprocess.PIPE
        )
        process.stdout.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        folder = CheckpointFolder(tmp_path)
        latest = read_latest(tmp_path)
        if latest is not None:
            assert folder.find_damage(latest) is None
            assert CheckpointFolder(tmp_path).latest_complete() == latest
            for part in PARTS:
                assert folder.load(part, latest)["t"].eq(latest).all()
            assert latest >= reached
            reached = latest
    assert reached > 0


def test_copies_use_the_buffers_reserved_in_the_background():
    staging = StagingBuffers()
    state = {"a": torch.randn(3, 4), "b": torch.randn(5)}
    staging.reserve(state)
    first = staging(state)
    assert all(torch.equal(first[name], one) for name, one in state.items())
    places = [one.data_ptr() for one in first.values()]
    state["a"].zero_()
    assert first["a"].any()  # a copy
    again = staging(state)
    assert [one.data_ptr() for one in again.values()] == places
    assert not again["a"].any()
