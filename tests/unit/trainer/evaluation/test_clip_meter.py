"""What a clip's figures are, where their floor and ceiling lie, and what they leave out."""

import json
import math

import numpy as np
import pytest

from video2world_common.exit_codes import UserError
from video2world_preprocess.demo import draw_episode, scene
from video2world_preprocess.vae.tiny_vae import TransformVAE
from video2world_preprocess.vae.vae import VideoVAE
from video2world_trainer.evaluation.clip_meter import CEILING, FLOOR, ClipMeter
from video2world_trainer.generation.conditioning import Conditioning
from video2world_trainer.generation.denoise import to_model
from video2world_trainer.generation.quality_metrics import psnr

TRUTH = draw_episode(scene(685393))[:18]  # one frame more than the VAE takes


@pytest.fixture
def meter(tmp_path):
    import torch

    vae = VideoVAE(TransformVAE(), "TransformVAE", torch.device("cpu"), torch.float32)
    return ClipMeter(vae, tmp_path / "references")


def condition(given=1):
    return Conditioning(TRUTH[:given], TRUTH)


def noisy(scale, given=1):
    noise = np.random.default_rng(0).normal(0, scale, TRUTH.shape)
    video = np.clip(TRUTH + noise, 0, 255).astype(np.uint8)
    video[:given] = TRUTH[:given]
    return video


def test_the_floor_is_below_the_ceiling_and_the_truth_is_perfect(meter):
    found = meter.measure(TRUTH, condition())
    limits = json.loads((meter.references / found["reference"]).read_text())
    assert limits[FLOOR]["psnr"] < limits[CEILING]["psnr"]
    assert limits[FLOOR]["ssim"] < limits[CEILING]["ssim"] < 1
    assert limits[FLOOR]["latent_l2"] > limits[CEILING]["latent_l2"]
    assert (found["psnr"], found["ssim"], found["latent_l2"]) == (None, 1, 0)
    assert found["frames"] == 16
    still = np.broadcast_to(TRUTH[:1], TRUTH[1:17].shape)
    assert limits[FLOOR]["psnr"] == pytest.approx(psnr(still, TRUTH[1:17]), abs=1e-3)
    assert found["repeating_the_input"]["psnr"] == limits[FLOOR]["psnr"]
    assert found["latent_moments"] == limits["truth"]["latent_moments"]


def test_latent_l2_is_the_mean_squared_difference_of_latents(meter):
    video = noisy(20)
    found = meter.measure(video, condition())
    a, b = (meter.vae.encode_latents(to_model(one[:17]))[:, :, 1:] for one in (video, TRUTH))
    assert found["latent_l2"] == pytest.approx(float((a - b).square().mean()), abs=1e-6)
    worse = meter.measure(noisy(40), condition())
    assert worse["latent_l2"] > found["latent_l2"]
    assert worse["psnr"] < found["psnr"]


@pytest.mark.parametrize("given", [1, 5])
def test_conditioning_frames_do_not_count(meter, given):
    video = noisy(20, given)
    spoilt = video.copy()
    spoilt[: given - 1] = 255 - spoilt[: given - 1]  # the last one is what the next are made from
    first, second = (meter.measure(one, condition(given)) for one in (video, spoilt))
    assert (first["psnr"], first["ssim"]) == (second["psnr"], second["ssim"])
    assert first["frames"] == 17 - given
    assert first["reference"] == second["reference"]


def test_limits_are_computed_once_and_again_if_damaged(meter, monkeypatch):
    name = meter.measure(noisy(20), condition())["reference"]
    path = meter.references / name
    before, content = path.stat().st_mtime_ns, path.read_text()
    assert meter.measure(noisy(40), condition())["reference"] == name
    assert path.stat().st_mtime_ns == before
    assert meter.measure(noisy(20, 5), condition(5))["reference"] != name
    path.write_text("{")
    meter.measure(noisy(20), condition())
    assert json.loads(path.read_text()) == json.loads(content)


def test_a_continuation_that_is_too_short_is_refused(meter):
    short = Conditioning(TRUTH[:1], TRUTH[:4])
    with pytest.raises(UserError, match="only 4 frames: there is nothing to compare after 1"):
        meter.measure(TRUTH[:17], short)
    assert meter.measure(TRUTH, Conditioning(TRUTH[:1], None)) is None
    assert not math.isnan(meter.measure(TRUTH, Conditioning(TRUTH[:1], TRUTH[:5]))["ssim"])
