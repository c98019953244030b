"""Define spec.evaluation: the comparison of checkpoints with the base weights."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from video2world_operator.api.fields import (
    ApiModel,
    CheckpointName,
    Iteration,
    VolumePath,
    with_example,
)

__all__ = ["METRIC_FLAGS", "EvaluationSpec"]

Metric = Literal["PSNR", "SSIM", "LPIPS", "LatentL2", "LatentFrechet"]
METRIC_FLAGS: dict[Metric, str] = {
    "PSNR": "psnr",
    "SSIM": "ssim",
    "LPIPS": "lpips",
    "LatentL2": "latent_l2",
    "LatentFrechet": "latent_frechet",
}


class EvaluationSpec(ApiModel):
    """Checkpoints compared with the base weights on held-out windows.

    Videos are generated with the settings of spec.inference: guidance, steps, mode, weights, seed
    and numConditionalFrames.
    """

    model_config = with_example({"samples": 16})

    samples: int = Field(
        default=16,
        ge=1,
        le=4096,
        description="Held-out windows to evaluate, evenly spaced over all of them; all are used if "
        "there are fewer. Each takes one video of the base weights and one of each checkpoint.",
    )
    metrics: list[Metric] = Field(
        default=["PSNR", "SSIM", "LatentL2", "LatentFrechet"],
        min_length=1,
        max_length=5,
        description="What the table shows. The first one decides whether post-training helped.",
    )
    checkpoints: list[CheckpointName | Iteration] = Field(
        default=[],
        max_length=16,
        description="Checkpoints to compare with the base weights: each is latest (the default), "
        "best (the least validation loss), all (every one on the volume), the number of an "
        "iteration, or a weights file on the volume, without .. in its path.",
    )
    lpips_weights: VolumePath | None = Field(
        default=None,
        description="File on the volume with torchvision's AlexNet, for LPIPS; without it, LPIPS "
        "is left out of the table, which says so.",
        examples=["checkpoints/alexnet-owt-7be5be79.pth"],
    )
    fail_when_actions_ignored: bool = Field(
        default=False,
        description="Fail if the model does not follow its actions: if its validation loss with "
        "the true actions is not clearly below that with shuffled ones. Otherwise only the "
        "condition ActionsFollowed says so.",
    )

    @property
    def names(self) -> list[str]:
        """Checkpoints to evaluate, as the spec names them."""
        return [str(name) for name in self.checkpoints] or ["latest"]

    @property
    def count(self) -> int | None:
        """Number of these checkpoints; None if it is not known yet."""
        return None if "all" in self.names else len(set(self.names))
