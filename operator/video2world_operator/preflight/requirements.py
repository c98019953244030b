"""Estimate disk, GPU memory and host memory of a resource, from measured runs.

The constants come from two runs (docs/performance.md): 2B on one GPU at 720p and 16 fps used 68.6
GiB, and its checkpoint 43 GB, which is 22 bytes per parameter for weights, master weights, moments
and average; the rest of the GPU memory is activations, which scale with depth times width and with
the clip's tokens. Two other runs confirm them: for 2B on two GPUs the estimate is 34.3 of 34.7
GiB, for 14B with LoRA at 480p 60.4 of 61.0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from video2world_operator.api.resource import Video2WorldPostTrain

__all__ = ["ResourceEstimate", "estimate"]

GIB, GB = 2**30, 10**9
STATE_BYTES, EMA_BYTES, WEIGHT_BYTES = 22, 4, 2  # per parameter


class _Shape(NamedTuple):
    """Size of a network: its parameters, and depth times width relative to 2B."""

    parameters: float
    activations: float
    weights: float  # bytes of the file of base weights


_SHAPES: Mapping[str, _Shape] = {
    "Tiny": _Shape(3e6, 0.001, 0),
    "2B": _Shape(3.91 * GB / 2, 1.0, 3.91 * GB),
    "14B": _Shape(28.53 * GB / 2, 36 * 40 / (28 * 16), 28.53 * GB),
}
_ACTIVATIONS = 68.62 * GIB - STATE_BYTES * _SHAPES["2B"].parameters  # 2B, 93 frames of 704x1280
_TEXT_ENCODER, _TOKENIZER = 55.2 * GB, 0.5 * GB  # T5-11B in both formats, and the VAE
_ARCHIVES = 100 * GB  # per task of AgiBotWorld, from the guide
_REST = 10 * GB  # windows, embeddings, latents, results; mostly latents, so more for each size


@dataclass(frozen=True)
class ResourceEstimate:
    """Estimated requirements in bytes.

    ``gpu`` is per training GPU (0 on a CPU), ``host`` per node during training. ``repositories``
    are on the Hugging Face Hub; datasets have the prefix ``datasets/``.
    """

    disk: float
    gpu: float
    host: float
    checkpoint: float
    repositories: tuple[str, ...]


def estimate(resource: Video2WorldPostTrain) -> ResourceEstimate:
    """Estimate what ``resource`` needs."""
    spec, training = resource.spec, resource.spec.training
    shape = _SHAPES[spec.model.size]
    lora = training.architecture == "LoRA"
    per_parameter = STATE_BYTES - (0 if training.ema else EMA_BYTES)
    state = shape.parameters * (WEIGHT_BYTES if lora else per_parameter)
    pixels = {math.prod(phase.video_size) for phase in spec.phases}
    latents = 1 + (spec.num_frames - 1) // 4
    tokens = max(pixels) * latents / (704 * 1280 * 24)  # of the largest phase
    activations = _ACTIVATIONS * shape.activations * tokens * training.batch_size
    world = spec.nodes * spec.processes_per_node
    # FSDP shards frozen weights (LoRA) as it shards the state
    gpu = state / world + activations / spec.context_parallel
    checkpoint = shape.parameters * (WEIGHT_BYTES if lora else per_parameter)
    rest = _REST * (1 + (sum(pixels) - max(pixels)) / (704 * 1280))
    disk = checkpoint * (training.checkpoint.keep + 1) + (0 if spec.tiny else rest)
    repositories = []
    if not spec.tiny:
        disk += shape.weights + _TEXT_ENCODER + _TOKENIZER
        repositories += [f"nvidia/Cosmos-Predict2-{spec.model.size}-Video2World"]
        repositories += ["google-t5/t5-11b"]
    agibot = spec.dataset.agibot
    if agibot and not agibot.path:
        if agibot.keep_archives:  # otherwise only the videos are downloaded
            disk += _ARCHIVES * len(agibot.task_ids)
        repositories += [f"datasets/{agibot.repo_id}"]
    return ResourceEstimate(
        disk=disk,
        gpu=0 if spec.device == "CPU" else gpu,
        host=checkpoint / spec.nodes,  # pinned copies for asynchronous checkpoints
        checkpoint=checkpoint,
        repositories=tuple(repositories),
    )
