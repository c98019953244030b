"""Tests for the VAE loader and our small VAE: shapes, causality, reconstruction, bad folders."""

import json

import numpy as np
import pytest
import torch

from video2world_common.exit_codes import UserError
from video2world_preprocess.vae.tiny_vae import TransformVAE, lapped_dct
from video2world_preprocess.vae.vae import load_vae

torch.set_num_threads(1)


def moving_arm(frames=17, height=96, width=128, seed=0):
    """Draw an anti-aliased arm swinging in front of a shaded wall: [1, 3, T, H, W]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(float)
    wall = np.stack([150 + 40 * np.sin(x / 40), 140 + 30 * y / height, 120 + 20 * np.cos(y / 30)])
    ball = rng.uniform(20, 100, 2)

    def blend(image, distance, radius, colour):
        alpha = np.clip(radius + 0.5 - distance, 0, 1)
        return image * (1 - alpha) + np.array(colour)[:, None, None] * alpha

    def to_segment(start, end):
        along = end - start
        t = ((x - start[0]) * along[0] + (y - start[1]) * along[1]) / (along @ along)
        t = np.clip(t, 0, 1)
        return np.hypot(x - start[0] - t * along[0], y - start[1] - t * along[1])

    clip = []
    for t in range(frames):
        upper, lower = 1.2 + 0.5 * np.sin(0.1 * t), 0.8 + 0.6 * np.cos(0.12 * t)
        shoulder = np.array([width / 2, 4.0])
        elbow = shoulder + 34 * np.array([np.cos(upper), np.sin(upper)])
        hand = elbow + 30 * np.array([np.cos(upper + lower), np.sin(upper + lower)])
        image = blend(wall, np.hypot(x - ball[0], y - ball[1]), 9, (40, 90, 200))
        image = blend(image, to_segment(shoulder, elbow), 6, (60, 60, 70))
        image = blend(image, to_segment(elbow, hand), 4.5, (200, 200, 205))
        clip.append(blend(image, np.hypot(x - hand[0], y - hand[1]), 6, (230, 90, 40)))
    video = torch.from_numpy(np.stack(clip, 1)).float().round() / 127.5 - 1
    return video[None]


@pytest.fixture
def codec(tmp_path):
    TransformVAE().save_pretrained(tmp_path / "tiny")
    return load_vae(tmp_path / "tiny")


def test_lapped_transform_is_orthonormal_and_reaches_over_blocks():
    matrix = lapped_dct(96).reshape(96, 96)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(96, dtype=torch.float64))
    basis = lapped_dct(96)[5, 0]
    assert (basis.abs() > 1e-9).nonzero().flatten().tolist() == list(range(36, 52))
    assert basis[36].abs() < 0.2 * basis.max()  # it fades out instead of ending abruptly


def test_reconstructs_a_moving_arm(codec):
    errors = []
    for seed in range(3):
        video = moving_arm(seed=seed)
        latents = codec.encode_latents(video)
        assert latents.shape == (1, 16, 5, 12, 16)
        assert 0.6 < latents.std() < 1.3
        decoded = codec.decode_latents(latents)
        errors.append(((decoded - video) ** 2).mean((0, 1, 3, 4)))
    psnr = 10 * torch.log10(4 / torch.stack(errors))
    assert psnr.min() > 27, f"{psnr.min():.1f} dB"
    assert psnr.mean() > 29, f"{psnr.mean():.1f} dB"


def test_reconstruction_shows_no_blocks(codec):
    """Steps across block borders are no larger than the other steps of the decoded image."""
    video = moving_arm()
    error = codec.decode_latents(codec.encode_latents(video)) - video
    steps = (error[..., 1:] - error[..., :-1]).abs().mean((0, 1, 2, 3))
    borders = torch.arange(len(steps)) % 8 == 7
    assert steps[borders].mean() < 1.5 * steps[~borders].mean()


def test_decoding_is_the_inverse_on_latents(codec):
    latents = torch.randn(2, 16, 3, 4, 5)
    again = codec.encode_latents(codec.decode_latents(latents))
    torch.testing.assert_close(again, latents, atol=1e-4, rtol=0)


def test_first_latent_sees_frame_0_only_and_the_others_their_own_four(codec):
    video = torch.rand(1, 3, 13, 16, 24) * 2 - 1
    latents = codec.encode_latents(video)
    for frame, latent in ((0, 0), (1, 1), (4, 1), (5, 2), (12, 3)):
        changed = video.clone()
        changed[:, :, frame] = -changed[:, :, frame]
        moved = (codec.encode_latents(changed) != latents).any(-1).any(-1).any(1)[0]
        assert moved.nonzero().flatten().tolist() == [latent]


def test_a_still_scene_repeats_its_first_latent(codec):
    still = moving_arm()[:, :, :1].expand(-1, -1, 9, -1, -1)
    latents = codec.encode_latents(still)
    for step in (1, 2):
        torch.testing.assert_close(latents[:, :12, step], latents[:, :12, 0], atol=1e-4, rtol=0)
        assert latents[:, 12:, step].abs().max() < 1e-4


def test_single_frame_and_precision(codec):
    image = moving_arm(frames=1)
    assert codec.encode_latents(image).shape == (1, 16, 1, 12, 16)
    assert codec.decode_latents(codec.encode_latents(image)).shape == image.shape
    assert codec.model.encode(image.bfloat16()).latent_dist.mode().dtype == torch.bfloat16


def test_unfit_sizes_are_explained(codec):
    with pytest.raises(UserError, match=r"1 \+ 4k frames.*16 frames"):
        codec.encode_latents(torch.zeros(1, 3, 16, 96, 128))
    with pytest.raises(UserError, match="90x128"):
        codec.encode_latents(torch.zeros(1, 3, 17, 90, 128))


@pytest.fixture(scope="module")
def small_wan():
    from diffusers import AutoencoderKLWan

    torch.manual_seed(0)
    return AutoencoderKLWan(base_dim=8).eval()


@pytest.mark.parametrize("frames", [1, 5, 17, 45])
def test_more_frames_in_a_pass_encode_the_same(small_wan, tmp_path, frames):
    """The causal encoder's caches do not depend on the number of frames per pass."""
    small_wan.save_pretrained(tmp_path)
    vae = load_vae(tmp_path)
    video = torch.rand(2, 3, frames, 16, 24) * 2 - 1
    expected = vae.encode_latents(video)
    for vae.frames_per_pass in (8, 16):
        torch.testing.assert_close(vae.encode_latents(video), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("frames", [1, 2, 5, 9])
def test_decoding_in_larger_passes_is_diffusers_decoding(small_wan, tmp_path, frames):
    small_wan.save_pretrained(tmp_path)
    vae = load_vae(tmp_path)
    latents = torch.randn(2, 16, frames, 3, 4)
    plain = latents / vae._inverse_std + vae._mean
    expected = small_wan.decode(plain).sample
    assert expected.shape == (2, 3, 4 * frames - 3, 24, 32)
    for vae.frames_per_pass in (4, 8, 16):
        parts = [*vae.decode_parts(latents)]
        later = 4 * (frames - 1)
        assert sum(one.shape[2] for one in parts) == 1 + later
        assert max(one.shape[2] for one in parts) == max(1, min(later, vae.frames_per_pass))
        torch.testing.assert_close(torch.cat(parts, 2).clamp(-1, 1), expected, atol=2e-5, rtol=1e-4)
    vae.model.decoder.conv_out.weight.mul_(50)
    assert vae.decode_latents(latents).abs().max() > 1  # not clamped, as in upstream


def wan_names(model):
    """Return the model's state under Wan's own names, by inverting diffusers' conversion."""
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    state = model.state_dict()
    names = [*_wan_key_space()]
    converted = convert_wan_vae_to_diffusers({name: name for name in names})
    renamed = {theirs: ours for ours, theirs in converted.items()}
    return {renamed_key: state[ours] for renamed_key, ours in renamed.items() if ours in state}


def _wan_key_space():
    convs = [f"{p}.{k}" for p in ("conv1", "conv2") for k in ("weight", "bias")]
    yield from convs
    for side, stages in (("encoder", "downsamples"), ("decoder", "upsamples")):
        for key in ("conv1.weight", "conv1.bias", "head.0.gamma", "head.2.weight", "head.2.bias"):
            yield f"{side}.{key}"
        for index in (0, 2):
            yield from _residual(f"{side}.middle.{index}")
        for key in ("norm.gamma", "to_qkv.weight", "to_qkv.bias", "proj.weight", "proj.bias"):
            yield f"{side}.middle.1.{key}"
        for index in range(15):
            yield from _residual(f"{side}.{stages}.{index}")
            for key in ("resample.1", "time_conv", "shortcut"):
                yield f"{side}.{stages}.{index}.{key}.weight"
                yield f"{side}.{stages}.{index}.{key}.bias"


def _residual(prefix):
    for key in ("0.gamma", "2.weight", "2.bias", "3.gamma", "6.weight", "6.bias"):
        yield f"{prefix}.residual.{key}"


def test_wan_checkpoint_equals_the_diffusers_folder(tmp_path, small_wan):
    state = wan_names(small_wan)
    assert len(state) == 194  # as in the published tokenizer.pth
    (tmp_path / "wan").mkdir()
    torch.save(state, tmp_path / "wan" / "tokenizer.pth")
    small_wan.save_pretrained(tmp_path / "diffusers")
    video = torch.rand(1, 3, 5, 16, 16) * 2 - 1
    from_wan, from_folder = load_vae(tmp_path / "wan"), load_vae(tmp_path / "diffusers")
    assert from_wan.name == from_folder.name == "AutoencoderKLWan"
    latents = from_wan.encode_latents(video)
    assert latents.shape == (1, 16, 2, 2, 2)
    torch.testing.assert_close(latents, from_folder.encode_latents(video), atol=0, rtol=0)
    # the posterior's mean, normalized with the constants of the Wan 2.1 VAE
    mean = small_wan.encode(video).latent_dist.mean
    torch.testing.assert_close(latents[:, 0], (mean[:, 0] + 0.7571) / 2.8184)
    torch.testing.assert_close(latents[:, 15], (mean[:, 15] + 0.2921) / 1.9160)
    torch.testing.assert_close(
        from_wan.decode_latents(latents).clamp(-1, 1),
        small_wan.decode(mean).sample,
        atol=1e-5,
        rtol=0,
    )
    direct = load_vae(tmp_path / "wan" / "tokenizer.pth")
    torch.testing.assert_close(direct.encode_latents(video), latents, atol=0, rtol=0)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "has no VAE"),
        ({"config.json": b'{"_class_name": "Other"}'}, "has no VAE"),
        ({"config.json": b"{torn"}, r"config\.json cannot be read"),
        ({"config.json": b'{"_class_name": "AutoencoderKLWan"}'}, "cannot be loaded"),
        ({"tokenizer.pth": b"PK\x03\x04 torn"}, r"tokenizer\.pth is not a Wan"),
        ({"tokenizer.pth": b""}, r"tokenizer\.pth is not a Wan"),
    ],
)
def test_bad_folders_are_explained(tmp_path, files, message):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_vae(tmp_path)


def test_a_foreign_checkpoint_is_refused(tmp_path):
    torch.save({"weight": torch.ones(2)}, tmp_path / "tokenizer.pth")
    with pytest.raises(UserError, match=r"tokenizer\.pth is not a Wan"):
        load_vae(tmp_path)


def test_config_names_the_class(tmp_path):
    TransformVAE().save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == {"_class_name": "TransformVAE"}
    with pytest.raises(ValueError, match="does not describe"):
        TransformVAE.from_pretrained(tmp_path / "elsewhere")
