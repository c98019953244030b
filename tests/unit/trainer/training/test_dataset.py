import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from video2world_common.exit_codes import UserError
from video2world_preprocess.text.embedding_files import write_embedding
from video2world_trainer.training.dataset import (
    LatentDataset,
    collate,
    generator_for,
    positions,
    sample_at,
)

SHAPE = (16, 2, 4, 4)


def add_window(folder, stem, *, clips=2, value=0.0, tokens=3, geometry="crop"):
    (folder / "latents").mkdir(parents=True, exist_ok=True)
    latents = torch.arange(clips).view(-1, 1, 1, 1, 1) + torch.full((clips, *SHAPE), value)
    save_file(
        {"latents": latents.contiguous(), "starts": torch.arange(clips)},
        folder / "latents" / f"{stem}.safetensors",
        metadata={"geometry": geometry},
    )
    write_embedding(folder / "t5_xxl" / f"{stem}.pickle", np.full((tokens, 1024), 2, np.float16))


def open_dataset(folder, **settings):
    return LatentDataset(folder, shape=SHAPE, geometry="crop", **{"text_length": 8} | settings)


@pytest.fixture
def folder(tmp_path):
    for number in range(5):
        add_window(tmp_path / "train", f"w{number}", value=10.0 * number)
    return tmp_path / "train"


@pytest.mark.parametrize("cache", [False, True])
def test_a_sample_has_latents_and_padded_text(folder, cache):
    dataset = open_dataset(folder, cache=cache)
    for _ in range(2):
        sample = dataset.read(3, 1)
        assert sample.name == "w3, clip 1"
        assert sample.latents.shape == SHAPE
        assert sample.latents.eq(31.0).all()
        assert sample.text.shape == (8, 1024)
        assert sample.text[:3].eq(2).all()
        assert sample.text[3:].eq(0).all()


def test_a_data_set_folder_means_its_train_split(folder):
    assert len(open_dataset(folder.parent)) == 5


def test_long_captions_are_truncated(folder):
    add_window(folder, "w0", tokens=20)
    assert open_dataset(folder).read(0, 0).text.eq(2).all()


def test_every_epoch_has_each_window_once_in_a_different_order():
    epochs = [[sample_at(e * 7 + i, 7, seed=1) for i in range(7)] for e in range(20)]
    assert all(sorted(order) == list(range(7)) for order in epochs)
    assert len({tuple(order) for order in epochs}) > 15
    assert [sample_at(i, 7, seed=1) for i in range(7)] == epochs[0]
    assert [sample_at(i, 50, seed=2) for i in range(50)] != [
        sample_at(i, 50, seed=1) for i in range(50)
    ]


def test_the_global_batch_does_not_depend_on_the_number_of_ranks():
    alone = [list(positions(consumed, 0, 4)) for consumed in (0, 4)]
    two = [[p for rank in range(2) for p in positions(consumed, rank, 2)] for consumed in (0, 4)]
    assert alone == two == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_the_clip_depends_on_the_position_only(folder):
    dataset = open_dataset(folder)
    names = [dataset.sample(position, 0).name for position in range(60)]
    assert names == [dataset.sample(position, 0).name for position in range(60)]
    clips = Counter(name[-1] for name in names)
    assert set(clips) == {"0", "1"}
    assert min(clips.values()) > 15


def test_generators_depend_on_every_argument():
    draws = [
        torch.rand(1, generator=generator_for(*one)).item()
        for one in [(0, "noise", 1), (1, "noise", 1), (0, "clip", 1), (0, "noise", 2)]
    ]
    assert len(set(draws)) == 4


def test_collate(folder):
    batch = collate([open_dataset(folder).read(i, 0) for i in (0, 2)])
    assert batch.names == ("w0, clip 0", "w2, clip 0")
    assert batch.latents.shape == (2, *SHAPE)
    assert batch.text.shape == (2, 8, 1024)


def test_bad_windows_are_named_and_left_out(folder, capsys):
    (folder / "t5_xxl" / "w1.pickle").unlink()
    (folder / "t5_xxl" / "w2.pickle").write_bytes(b"")
    path = folder / "latents" / "w3.safetensors"
    path.write_bytes(path.read_bytes()[:200])
    dataset = open_dataset(folder)
    dataset.report()
    assert dataset.stems == ["w0", "w4"]
    out = capsys.readouterr().out
    assert "3 windows left out" in out
    for stem in ("w1.pickle", "w2.pickle", "w3.safetensors"):
        assert stem in out


@pytest.mark.parametrize("made", [False, True])
def test_an_empty_dataset_is_an_error(tmp_path, made):
    if made:
        (tmp_path / "latents").mkdir()
    with pytest.raises(UserError, match=r"no window to train on.*latents stages"):
        open_dataset(tmp_path)


def test_missing_embeddings_are_an_error(folder):
    for path in (folder / "t5_xxl").iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"5 were left out: .*w0.pickle is missing"):
        open_dataset(folder)


def test_fewer_windows_than_ranks_are_rejected(folder):
    open_dataset(folder).require(5)
    with pytest.raises(UserError, match="5 windows are fewer than the 6 ranks"):
        open_dataset(folder).require(6)


def test_latents_of_another_clip_size_or_geometry_are_rejected(folder):
    with pytest.raises(UserError, match=r"w0.safetensors holds latents \[16, 2, 4, 4\]"):
        LatentDataset(folder, shape=(16, 5, 12, 16), geometry="crop")
    with pytest.raises(UserError, match="geometry crop"):
        LatentDataset(folder, shape=SHAPE, geometry="stretch")


def test_an_embedding_that_would_run_code_is_rejected(folder, tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "made"), "w"))

    (folder / "t5_xxl" / "w0.pickle").write_bytes(pickle.dumps([Evil()]))
    with pytest.raises(UserError, match=r"w0\.pickle"):
        open_dataset(folder).read(0, 0)
    assert not (tmp_path / "made").exists()
