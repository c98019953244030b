"""Compare a generated video with the ground truth: PSNR, SSIM and LPIPS."""

from __future__ import annotations

import math
import pickle
import warnings
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from video2world_common.exit_codes import UserError
from video2world_trainer.model.attention_backends import installed

__all__ = ["default_lpips_weights", "lpips", "psnr", "ssim", "why_no_lpips"]

LUMA = (0.299, 0.587, 0.114)
ALEXNET = "alexnet-owt-7be5be79.pth"  # torchvision's weights, as torch.hub keeps them


def _check_shapes(video: np.ndarray, truth: np.ndarray) -> None:
    if video.shape != truth.shape or video.size == 0:
        raise ValueError(f"cannot compare {video.shape} with {truth.shape}")


def psnr(video: np.ndarray, truth: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio in dB of uint8 videos [T, H, W, 3]; infinite if equal.

    10 log10(255^2 / MSE), with the mean squared error over all frames.

    Raises:
        ValueError: the shapes differ, or the videos are empty.
    """
    _check_shapes(video, truth)
    # frame by frame: a clip in float64 would take gigabytes
    errors = [np.square(a.astype(np.float64) - b).mean() for a, b in zip(video, truth, strict=True)]
    error = float(np.mean(errors))
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def ssim(video: np.ndarray, truth: np.ndarray) -> float:
    """Return the structural similarity of the luma of uint8 videos [T, H, W, 3], mean over frames.

    Wang, Bovik, Sheikh and Simoncelli 2004 (https://doi.org/10.1109/TIP.2003.819861): a Gaussian
    window of 11 x 11 with deviation 1.5 at all positions inside the frame, K1 = 0.01, K2 = 0.03.

    Raises:
        ValueError: the shapes differ, or frames are smaller than the window.
    """
    _check_shapes(video, truth)
    if min(video.shape[1:3]) < 11:
        raise ValueError(f"frames of {video.shape[1]}x{video.shape[2]} are smaller than 11x11")
    return float(np.mean([_ssim(a, b) for a, b in zip(video, truth, strict=True)]))


def _ssim(frame: np.ndarray, truth: np.ndarray) -> float:
    a, b = (torch.from_numpy(one @ np.array(LUMA))[None, None].float() for one in (frame, truth))
    weights = torch.exp(-((torch.arange(11) - 5.0) ** 2) / (2 * 1.5**2))
    weights /= weights.sum()

    def blurred(x: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(x, weights.view(1, 1, 11, 1)), weights.view(1, 1, 1, 11))

    mean_a, mean_b = blurred(a), blurred(b)
    variance_a, variance_b = blurred(a * a) - mean_a**2, blurred(b * b) - mean_b**2
    covariance = blurred(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity = ((2 * mean_a * mean_b + c1) * (2 * covariance + c2)) / (
        (mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2)
    )
    return float(similarity.mean())


def lpips(
    video: np.ndarray,
    truth: np.ndarray,
    weights: Path | None = None,
    device: torch.device | str = "cpu",
) -> float | str:
    """Return LPIPS with AlexNet of uint8 videos [T, H, W, 3], mean over frames.

    Zhang et al. 2018, https://arxiv.org/abs/1801.03924. Returns the reason as text if the package
    or AlexNet's weights (by default those that torch.hub keeps) are missing; nothing is downloaded.

    Raises:
        ValueError: the shapes differ, or the videos are empty.
        UserError: the file of weights is damaged.
    """
    _check_shapes(video, truth)
    weights = weights or default_lpips_weights()
    if why := why_no_lpips(weights):
        return why
    model = _lpips_model(weights, torch.device(device))

    def input_of(frame: np.ndarray) -> Tensor:
        return torch.from_numpy(frame).to(device).permute(2, 0, 1)[None].float() / 127.5 - 1

    distances = [float(model(input_of(a), input_of(b))) for a, b in zip(video, truth, strict=True)]
    return float(np.mean(distances))


def default_lpips_weights() -> Path:
    """Return where torch.hub keeps torchvision's AlexNet."""
    return Path(torch.hub.get_dir()) / "checkpoints" / ALEXNET


def why_no_lpips(weights: Path) -> str:
    """Return why LPIPS cannot be computed with AlexNet's ``weights``; empty if it can."""
    for package in ("lpips", "torchvision"):
        if not installed(package):
            return f"the package {package} is not installed (pip install lpips)"
    if not weights.is_file():
        return f"AlexNet's weights are missing: put torchvision's {ALEXNET} into {weights.parent}"
    return ""


@lru_cache(maxsize=1)
def _lpips_model(weights: Path, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    """Load the package's linear heads and torchvision's AlexNet from ``weights``."""
    import lpips as lpips_package

    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
        with warnings.catch_warnings():  # the package names torchvision's arguments as of old
            warnings.simplefilter("ignore")
            model = lpips_package.LPIPS(net="alex", pnet_rand=True, verbose=False)
        backbone = {
            name: state[f"features.{name.partition('.')[2]}"] for name in model.net.state_dict()
        }
        model.net.load_state_dict(backbone)
    except (KeyError, TypeError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(
            f"{weights} does not hold torchvision's AlexNet ({type(error).__name__}): put "
            f"{ALEXNET} there"
        ) from None
    ready: Callable[[Tensor, Tensor], Tensor] = model.eval().requires_grad_(False).to(device)
    return ready
