"""Tests for the T5 encoder, its small replacement, and the embeddings stage."""

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import T5Config, T5EncoderModel

from video2world_common.exit_codes import UserError
from video2world_preprocess import embeddings
from video2world_preprocess.text.embedding_files import read_embedding
from video2world_preprocess.text.encoder import FusedReluFeedForward, TextEncoder, fuse_relu
from video2world_preprocess.tiny_weights import write_tiny_t5

torch.set_num_threads(1)

LONG = "The robot arm moves to the red box. " * 40


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    folder = tmp_path_factory.mktemp("t5") / "t5-tiny"
    assert write_tiny_t5(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(t5):
    return TextEncoder.load(t5)


def test_tiny_t5_is_deterministic_and_written_once(t5, tmp_path):
    assert not write_tiny_t5(t5)
    assert write_tiny_t5(tmp_path / "again")
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (t5 / name).read_bytes()
    assert write_tiny_t5(tmp_path / "other", seed=1)
    weights = (tmp_path / "other" / "model.safetensors").read_bytes()
    assert weights != (t5 / "model.safetensors").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again", "other"]


@pytest.mark.parametrize("text", ["Robot arm 7!", "żółw 机器人 🤖", "tab\tand\nline", "x" * 300])
def test_any_text_tokenizes_and_comes_back(encoder, text):
    ids = encoder.tokenizer(text)["input_ids"]
    assert ids[-1] == encoder.tokenizer.eos_token_id
    assert encoder.tokenizer.unk_token_id not in ids
    assert encoder.tokenizer.decode(ids, skip_special_tokens=True).strip() == text


def test_encoding_equals_the_padded_model(encoder):
    """Embed as upstream does: pad every caption to 512 tokens and drop the padding's rows."""
    captions = ["the robot", "a much longer caption about a shelf with mushrooms", "", "the robot"]
    arrays = encoder.encode(captions, max_length=512)
    assert arrays[0] is arrays[3]
    for caption, array in zip(captions, arrays, strict=True):
        batch = encoder.tokenizer(
            caption, padding="max_length", truncation=True, max_length=512, return_tensors="pt"
        )
        with torch.no_grad():
            hidden = encoder.model(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask
            ).last_hidden_state[0]
        tokens = int(batch.attention_mask.sum())
        assert array.shape == (tokens, 1024)
        assert array.dtype == np.float16
        np.testing.assert_allclose(array, hidden[:tokens].numpy(), atol=4e-3)
    assert not np.allclose(arrays[0][0], arrays[1][0])


def test_relu_within_the_product_is_the_same(encoder):
    captions = ["the robot", "a caption of another length"]
    plain = encoder.encode(captions)
    fused = TextEncoder(copy.deepcopy(encoder.model), encoder.tokenizer, encoder.device)
    fuse_relu(fused.model)
    assert isinstance(fused.model.encoder.block[0].layer[-1].DenseReluDense, FusedReluFeedForward)
    for expected, found in zip(plain, fused.encode(captions), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-3)


def test_attention_gets_its_bias_with_the_keys_last(encoder, monkeypatch):
    """PyTorch's fused attention on a GPU requires this layout; otherwise it falls back."""
    seen, attend = [], torch.nn.functional.scaled_dot_product_attention

    def watched(*args, attn_mask, **kwargs):
        seen.append(attn_mask)
        return attend(*args, attn_mask=attn_mask, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    encoder.encode(["the robot", "a caption of another length"])
    assert seen
    assert all(mask.stride(-1) == 1 for mask in seen)
    # some versions of torch produce that layout by themselves, the hook in all of them
    bias = encoder.model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias
    found = bias(torch.zeros(3, 5, dtype=torch.long))
    assert found.shape[:2] == (3, 5)
    assert found.permute(2, 0, 1).is_contiguous()


def test_other_activations_are_left_alone():
    config = T5Config(
        d_model=8,
        d_kv=4,
        num_heads=2,
        d_ff=16,
        num_layers=1,
        vocab_size=9,
        feed_forward_proj="gated-gelu",
    )
    model = T5EncoderModel(config)
    before = [*model.modules()]
    fuse_relu(model)
    assert [*model.modules()] == before


def test_long_captions_are_truncated_with_the_end_token(encoder):
    (array,) = encoder.encode([LONG], max_length=16)
    assert array.shape == (16, 1024)


@pytest.mark.parametrize("name", ["checkpoints/google-t5/nowhere", "/nowhere"])
def test_missing_encoder_is_explained(name):
    with pytest.raises(UserError, match=r"nowhere.*download stage"):
        TextEncoder.load(name)


def test_damaged_encoder_is_explained(t5, tmp_path):
    for path in t5.iterdir():
        data = path.read_bytes()
        (tmp_path / path.name).write_bytes(data[:1000] if "model" in path.name else data)
    with pytest.raises(UserError, match="cannot be loaded"):
        TextEncoder.load(tmp_path)


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("V2W_INPUTS_HASH", raising=False)
    for split, count in (("train", 3), ("val", 1)):
        for folder in ("metas", "videos"):
            (tmp_path / "D" / split / folder).mkdir(parents=True)
        for index in range(count):
            (tmp_path / f"D/{split}/metas/w{index}.txt").write_text(f"robot {index // 2}\n")
            (tmp_path / f"D/{split}/videos/w{index}.mp4").touch()
    return tmp_path / "D"


def assert_same(array: np.ndarray, expected: np.ndarray) -> None:
    """Equal up to float16 rounding, which may depend on the rest of a batch."""
    np.testing.assert_allclose(array, expected, rtol=2e-3, atol=2e-3, strict=True)


def run(dataset: Path, t5: Path, *extra: str) -> int:
    return embeddings.main(
        [
            "--dataset_path",
            str(dataset / "train"),
            str(dataset / "val"),
            "--cache_dir",
            str(t5),
            "--device",
            "cpu",
            *extra,
        ]
    )


def times(dataset):
    return {str(p.relative_to(dataset)): p.stat().st_mtime_ns for p in dataset.rglob("*.pickle")}


def test_writes_the_guides_pickles(dataset, t5, encoder):
    assert run(dataset, t5) == 0
    assert sorted(times(dataset)) == [
        "train/t5_xxl/w0.pickle",
        "train/t5_xxl/w1.pickle",
        "train/t5_xxl/w2.pickle",
        "val/t5_xxl/w0.pickle",
    ]
    with (dataset / "train/t5_xxl/w2.pickle").open("rb") as stream:
        content = pickle.load(stream)  # noqa: S301  the guide's loader, on our own file
    assert len(content) == 1
    assert_same(content[0], encoder.encode(["robot 1"])[0])


def test_damaged_and_outdated_embeddings_are_computed_again(dataset, t5, encoder, capsys):
    assert run(dataset, t5) == 0
    first = times(dataset)
    assert run(dataset, t5) == 0
    assert times(dataset) == first
    damaged = dataset / "train/t5_xxl/w0.pickle"
    damaged.write_bytes(damaged.read_bytes()[:100])
    (dataset / "train/metas/w1.txt").write_text("another caption")
    (dataset / "train/metas/w2.txt").unlink()
    assert run(dataset, t5) == 0
    second = times(dataset)
    assert "w0.pickle is damaged" in capsys.readouterr().out
    assert "train/t5_xxl/w2.pickle" not in second
    assert second["val/t5_xxl/w0.pickle"] == first["val/t5_xxl/w0.pickle"]
    changed = read_embedding(dataset / "train/t5_xxl/w1.pickle")
    assert_same(changed, encoder.encode(["another caption"])[0])
    assert_same(read_embedding(damaged), encoder.encode(["robot 0"])[0])


def test_another_encoder_replaces_ours_but_not_foreign_ones(dataset, t5, tmp_path):
    foreign = dataset / "train/t5_xxl/w0.pickle"
    foreign.parent.mkdir()
    foreign.write_bytes(pickle.dumps([np.ones((2, 1024), np.float16)]))
    assert run(dataset, t5) == 0
    ours = (dataset / "train/t5_xxl/w1.pickle").read_bytes()
    write_tiny_t5(tmp_path / "t5-other", seed=1)
    assert run(dataset, tmp_path / "t5-other") == 0
    assert (dataset / "train/t5_xxl/w1.pickle").read_bytes() != ours
    np.testing.assert_array_equal(read_embedding(foreign), np.ones((2, 1024)))


def test_a_foreign_embedding_is_kept_until_its_caption_changes(dataset, t5, encoder):
    foreign, ones = dataset / "train/t5_xxl/w0.pickle", np.ones((2, 1024), np.float16)
    foreign.parent.mkdir()
    foreign.write_bytes(pickle.dumps([ones]))
    for _ in range(2):
        assert run(dataset, t5) == 0
        np.testing.assert_array_equal(read_embedding(foreign), ones)
    (dataset / "train/metas/w0.txt").write_text("another caption")
    assert run(dataset, t5) == 0
    assert_same(read_embedding(foreign), encoder.encode(["another caption"])[0])


def test_missing_and_empty_captions_are_named_and_counted(dataset, t5, capsys):
    (dataset / "train/metas/w0.txt").unlink()
    (dataset / "train/metas/w1.txt").write_text(" \n")
    (dataset / "train/metas/w2.txt").write_bytes(b"\xff\xfe\xff")
    assert run(dataset, t5) == 0
    out = capsys.readouterr().out
    assert "w0.mp4: has no caption" in out
    assert "w1.txt: is empty" in out
    assert "w2.txt: cannot be read" in out
    assert '"dropped": {"caption": 3}' in out
    assert list(times(dataset)) == ["val/t5_xxl/w0.pickle"]


def test_no_captions_at_all_is_the_users_error(dataset, t5, capsys):
    for meta in dataset.rglob("*.txt"):
        meta.unlink()
    assert run(dataset, t5) == 2
    assert "no captions in metas/*.txt" in capsys.readouterr().err
    assert run(dataset, t5, "--max_length", "0") == 2


def test_two_processes_write_what_one_writes(dataset, t5, encoder):
    assert run(dataset, t5, "--processes", "2") == 0
    assert len(times(dataset)) == 4
    assert_same(read_embedding(dataset / "train/t5_xxl/w2.pickle"), encoder.encode(["robot 1"])[0])


def test_another_resource_with_another_encoder_is_refused(
    dataset, t5, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("V2W_RESOURCE", "a")
    assert run(dataset, t5) == 0
    before = times(dataset)
    monkeypatch.setenv("V2W_RESOURCE", "b")
    assert run(dataset, t5) == 0
    assert run(dataset, t5, "--max_length", "9") == 2
    assert "was made for resource a with other settings (maxLength 512, here 9)" in (
        capsys.readouterr().err
    )
    assert times(dataset) == before


def test_the_published_weights_become_safetensors_once(t5, encoder, tmp_path, capsys):
    """One file with encoder and decoder in float32, as in google-t5/t5-11b."""
    folder = tmp_path / "t5"
    folder.mkdir()
    for path in t5.iterdir():
        if path.suffix == ".json":
            (folder / path.name).write_bytes(path.read_bytes())
    state = dict(encoder.model.state_dict())
    state["decoder.block.0.weight"] = torch.zeros(1000, 1000)
    torch.save(state, folder / "pytorch_model.bin")
    converted = TextEncoder.load(folder)
    files = sorted(path.name for path in folder.glob("encoder*"))
    assert files == ["encoder-00001.safetensors", "encoder.index.json"]
    size = sum(tensor.numel() for tensor in encoder.model.parameters()) * 2
    assert (folder / files[0]).stat().st_size < size + 100_000  # bfloat16, and no decoder
    texts = ["a robot arm", "picks a lemon"]
    for ours, theirs in zip(converted.encode(texts), encoder.encode(texts), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=0.05)
    assert "once" in capsys.readouterr().out
    TextEncoder.load(folder)
    assert "once" not in capsys.readouterr().out


def test_the_time_on_a_cpu_is_estimated_in_a_warning(dataset, t5, capsys):
    assert run(dataset, t5) == 0
    out = capsys.readouterr().out
    assert "WARNING: no GPU is used; 2 captions of" in out
    assert (dataset / "report-embeddings.html").is_file()


def test_a_caption_that_cannot_be_written_affects_no_other(dataset, t5, capsys):
    """Failed batches are tried again caption by caption."""
    (dataset / "train/t5_xxl/w1.pickle").mkdir(parents=True)
    (dataset / "train/metas" / f"{'y' * 250}.txt").write_text("A long name.")
    (dataset / "train/metas/w0.txt").write_text("The first.")
    assert run(dataset, t5) == 0
    out = capsys.readouterr().out
    made = {p.name for p in (dataset / "train/t5_xxl").glob("*.pickle") if p.is_file()}
    assert made == {"w0.pickle", "w2.pickle"}
    assert "w1.pickle: unexpected IsADirectoryError" in out
    assert "its name is too long for the name of its embedding" in out
