"""Conditioning frames, quality metrics and contact sheets."""

import importlib
import math
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from video2world_common.exit_codes import UserError
from video2world_preprocess.video.writer import write_video
from video2world_trainer.generation.conditioning import read_conditioning
from video2world_trainer.generation.contact_sheet import (
    HEADER,
    LABEL,
    contact_sheet,
    write_contact_sheet,
)
from video2world_trainer.generation.quality_metrics import lpips, psnr, ssim

SIZE = (32, 48)


def grey(levels, height=32, width=48):
    frames = np.empty((len(levels), height, width, 3), np.uint8)
    frames[:] = np.array(levels, np.uint8)[:, None, None, None]
    return frames


@pytest.fixture
def video(tmp_path):
    path = tmp_path / "v.mp4"
    write_video(path, grey(range(20, 220, 10)), 30)  # 20 frames, each 10 brighter
    return path


def condition(path, **changes):
    options = {"count": 1, "clip_frames": 9, "size": SIZE, "geometry": "crop"} | changes
    return read_conditioning(path, **options)


def test_first_frames_have_a_ground_truth(video):
    got = condition(video, count=5)
    assert got.frames.shape == (5, *SIZE, 3)
    assert got.ground_truth.shape == (9, *SIZE, 3)
    assert [round(float(frame.mean()), -1) for frame in got.frames] == [20, 30, 40, 50, 60]


def test_last_frames_have_no_ground_truth(video):
    got = condition(video, frames="last")
    assert got.frames.mean() == pytest.approx(210, abs=3)
    assert got.ground_truth is None


def test_ground_truth_of_a_short_video_ends_with_it(tmp_path):
    path = tmp_path / "s.mp4"
    write_video(path, grey([50, 60, 70]), 30)
    assert len(condition(path).ground_truth) == 3
    write_video(path, grey([50]), 30)
    assert condition(path).ground_truth is None


@pytest.mark.parametrize("suffix", [".png", ".JPG", ".webp"])
def test_images_of_any_size_and_case(tmp_path, suffix):
    path = tmp_path / f"i{suffix}"
    Image.new("RGB", (100, 100), (200, 100, 50)).save(path, "png")
    got = condition(path)
    assert got.frames.shape == (1, *SIZE, 3)
    assert tuple(got.frames[0, 0, 0]) == (200, 100, 50)
    with pytest.raises(UserError, match="num_conditional_frames 1"):
        condition(path, count=5)


def test_a_file_that_is_not_an_image_is_named(tmp_path):
    with pytest.raises(UserError, match=r"gone\.png"):
        condition(tmp_path / "gone.png")
    (tmp_path / "bad.png").write_bytes(b"x")
    with pytest.raises(UserError, match=r"bad\.png"):
        condition(tmp_path / "bad.png")


def test_psnr_of_known_errors():
    a = grey([100])
    assert psnr(a, a) == math.inf
    assert psnr(grey([101]), a) == pytest.approx(20 * math.log10(255))
    assert psnr(grey([0]), grey([255])) == pytest.approx(0)  # no wrap-around of bytes
    with pytest.raises(ValueError, match="cannot compare"):
        psnr(a, grey([1, 2]))


def test_ssim_of_known_changes():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (2, 32, 48, 3), dtype=np.uint8)
    assert ssim(noise, noise) == pytest.approx(1)
    # of flat frames only the comparison of means is left: (2ab + c1) / (a^2 + b^2 + c1)
    c1 = (0.01 * 255) ** 2
    expected = (2 * 100 * 120 + c1) / (100**2 + 120**2 + c1)
    assert ssim(grey([100]), grey([120])) == pytest.approx(expected, abs=1e-4)
    assert ssim(255 - noise, noise) < -0.9
    assert -0.1 < ssim(noise[:1], noise[1:]) < 0.1
    with pytest.raises(ValueError, match="cannot compare"):
        ssim(noise, noise[:1])
    with pytest.raises(ValueError, match="smaller than 11x11"):
        ssim(noise[:, :8], noise[:, :8])


LPIPS = """
import torch
class LPIPS(torch.nn.Module):
    def __init__(self, net, pnet_rand, verbose):
        super().__init__()
        assert (net, pnet_rand, verbose) == ("alex", True, False)
        self.net = torch.nn.Sequential()
        self.net.add_module("slice1", torch.nn.Sequential())
        self.net.slice1.add_module("0", torch.nn.Linear(1, 1))
    def forward(self, a, b):
        assert a.shape[:2] == (1, 3) and a.min() >= -1 and a.max() <= 1
        return (a - b).abs().mean() * self.net.slice1[0].bias
"""


def test_lpips_needs_its_package_and_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("video2world_trainer.generation.quality_metrics.installed", lambda _: False)
    assert lpips(grey([0]), grey([1])) == "the package lpips is not installed (pip install lpips)"
    monkeypatch.setattr("video2world_trainer.generation.quality_metrics.installed", lambda _: True)
    assert "alexnet-owt-7be5be79.pth" in lpips(grey([0]), grey([1]))
    assert "weights are missing" in lpips(grey([0]), grey([1]), tmp_path / "other.pth")
    weights = tmp_path / "hub/checkpoints/alexnet-owt-7be5be79.pth"
    weights.parent.mkdir(parents=True)
    state = {"features.0.weight": torch.ones(1, 1), "features.0.bias": torch.tensor([3.0])}
    torch.save(state | {"classifier.1.weight": torch.ones(1)}, weights)
    (tmp_path / "lpips.py").write_text(LPIPS)  # a stand-in with its call convention and names
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    assert lpips(grey([0, 0]), grey([255, 0])) == pytest.approx(3)  # 3 times the mean of 2 and 0
    for content in (b"x", None):
        bad = tmp_path / "bad.pth"
        bad.write_bytes(content) if content else torch.save({"a": torch.ones(1)}, bad)
        with pytest.raises(UserError, match=r"bad.pth does not hold torchvision's AlexNet"):
            lpips(grey([0]), grey([1]), bad)
    sys.modules.pop("lpips")


def test_contact_sheet_shows_rows_over_time(tmp_path):
    rows = {"input": grey([10]), "truth": grey(range(0, 200, 10)), "generated": grey([99] * 20)}
    sheet = contact_sheet(rows, 10.0)
    pixels = np.asarray(sheet)
    cell_width, cell_height = 48 * 4, 32 * 4
    columns = [LABEL + i * (cell_width + 4) + 20 for i in range(6)]
    tops = [HEADER + i * (cell_height + 4) + 20 for i in range(3)]
    assert [int(pixels[tops[0], x, 0]) for x in columns] == [10] * 6
    # evenly spaced, first and last frame included
    assert [int(pixels[tops[1], x, 0]) for x in columns] == [0, 40, 80, 110, 150, 190]
    assert [int(pixels[tops[2], x, 0]) for x in columns] == [99] * 6
    write_contact_sheet(tmp_path / "s.png", rows, 10.0, title="a title")
    with Image.open(tmp_path / "s.png") as titled:
        assert titled.height == sheet.height + HEADER
    with pytest.raises(ValueError, match="at least one row"):
        contact_sheet({}, 10.0)
