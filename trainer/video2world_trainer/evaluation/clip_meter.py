"""Measure generated clips in pixels and in the VAE's latent space, with a floor and a ceiling.

The floor repeats the last conditioning frame; the ceiling is what the VAE makes of the ground truth
itself, which no model that works in its latents can exceed. Both depend on the clip alone and are
computed once for all checkpoints.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from video2world_common.exit_codes import UserError
from video2world_common.files import read_json, write_json
from video2world_preprocess.vae.vae import VideoVAE
from video2world_trainer.evaluation.latent_moments import latent_moments
from video2world_trainer.generation.conditioning import Conditioning
from video2world_trainer.generation.denoise import decode_video, to_model
from video2world_trainer.generation.outputs import compare
from video2world_trainer.generation.quality_metrics import lpips

__all__ = ["CEILING", "FLOOR", "ClipMeter"]

FLOOR, CEILING = "repeating_the_input", "vae_round_trip"


@dataclass(frozen=True)
class ClipMeter:
    """Compute the metrics of clips; see :meth:`measure`.

    Args:
        vae: encodes and decodes clips.
        references: folder for what depends on a ground truth alone.
        lpips_weights: AlexNet's weights; None for those that torch.hub keeps.
    """

    vae: VideoVAE
    references: Path
    lpips_weights: Path | None = None

    def measure(self, video: np.ndarray, condition: Conditioning) -> dict[str, Any] | None:
        """Compute the metrics of a generated clip uint8 [T, H, W, 3]; None without ground truth.

        They are those of :func:`.outputs.compare`, and: ``latent_l2``, the mean squared difference
        of normalized latents (the posterior's mean) from those of the ground truth;
        ``latent_moments``; and ``reference``, the name of the file in the folder of references with
        the figures of floor and ceiling. Conditioning frames are excluded, in latents the latent
        frames that they are in. Up to three last frames are left out, as the VAE takes 1 + 4k.

        Raises:
            UserError: the ground truth is too short for a latent frame to compare.
        """
        if condition.ground_truth is None:
            return None
        given = len(condition.frames)
        frames = 1 + (min(len(condition.ground_truth), len(video)) - 1) // 4 * 4
        if frames <= given:
            raise UserError(
                f"only {len(condition.ground_truth)} frames: there is nothing to compare after "
                f"{given} conditioning frames"
            )
        whole = Conditioning(condition.frames, condition.ground_truth[:frames])
        metrics = compare(video[:frames], whole, self._distance)
        name = self._reference(whole)
        truth = self._encode(condition.ground_truth[:frames])
        return {**(metrics or {}), **self._in_latents(video[:frames], truth, given)} | {
            "reference": name
        }

    @property
    def _distance(self) -> partial[float | str]:
        return partial(lpips, weights=self.lpips_weights, device=self.vae.device)

    def _encode(self, frames: np.ndarray) -> Tensor:
        """Return the normalized latents [16, t, h, w] of uint8 frames, float32 on the CPU."""
        return self.vae.encode_latents(to_model(frames))[0].float().cpu()

    def _in_latents(self, video: np.ndarray, truth: Tensor, given: int) -> dict[str, Any]:
        latents = self._encode(video)
        kept = 1 + (given - 1) // self.vae.temporal_factor
        difference = latents[:, kept:] - truth[:, kept:]
        return {
            "latent_l2": round(float(difference.square().mean()), 6),
            "latent_moments": latent_moments(latents, kept).to_json(),
        }

    def _reference(self, condition: Conditioning) -> str:
        """Write the figures of floor and ceiling, unless they exist, and return the file's name."""
        truth = condition.ground_truth
        assert truth is not None
        given = len(condition.frames)
        facts = f"{self.vae.name} {truth.shape} {given} {self.lpips_weights}"
        name = hashlib.sha256(truth.tobytes() + facts.encode()).hexdigest()[:16] + ".json"
        if _readable(self.references / name):
            return name
        latents = self._encode(truth)
        still = np.concatenate(
            [condition.frames, np.repeat(condition.frames[-1:], len(truth) - given, 0)]
        )
        decoded = np.concatenate([*decode_video(self.vae, latents[None])])
        kept = 1 + (given - 1) // self.vae.temporal_factor
        write_json(
            self.references / name,
            {
                "truth": {"latent_moments": latent_moments(latents, kept).to_json()},
                FLOOR: self._figures(still, condition) | self._in_latents(still, latents, given),
                CEILING: self._figures(decoded, condition)
                | self._in_latents(decoded, latents, given),
            },
        )
        if self.vae.device.type == "cuda":
            torch.cuda.empty_cache()
        return name

    def _figures(self, video: np.ndarray, condition: Conditioning) -> dict[str, Any]:
        metrics = compare(video, condition, self._distance) or {}
        return {name: metrics[name] for name in ("psnr", "ssim", "lpips")}


def _readable(path: Path) -> bool:
    try:
        return isinstance(read_json(path), dict)
    except (OSError, ValueError):
        return False
