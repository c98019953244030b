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

from video2world_common import per_clip_actions
from video2world_common.model_sizes import SIZES
from video2world_common.sample_memory import sample_bytes
from video2world_operator.api.resource import Video2WorldPostTrain
from video2world_operator.api.spec import Spec

__all__ = ["ARCHIVES", "ResourceEstimate", "estimate"]

GIB, GB = 2**30, 10**9
STATE_BYTES, EMA_BYTES, WEIGHT_BYTES = 22, 4, 2  # per parameter
SUM_BYTES = 4  # per parameter, of gradients summed over micro-batches


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
_HEAD_CHANNELS = 128  # of 2B and 14B
_T5_ON_GPU = 9.5 * GB  # the encoder in bfloat16, released before the network is loaded
_TEXT_ENCODER, _TOKENIZER = 55.2 * GB, 0.5 * GB  # T5-11B in both formats, and the VAE
ARCHIVES = 100 * GB  # per task of AgiBotWorld, from the guide
_REST = 10 * GB  # windows, embeddings, latents, results; mostly latents, so more for each size


@dataclass(frozen=True)
class ResourceEstimate:
    """Estimated requirements in bytes.

    ``gpu`` is per training GPU, ``sample_gpu`` per GPU that generates samples, and
    ``sample_gpu_offload`` the same with weights in host memory (all 0 on a CPU); ``host`` is per
    node during training. ``repositories`` are on the Hugging Face Hub; datasets
    have the prefix ``datasets/``.
    """

    disk: float
    gpu: float
    sample_gpu: float
    sample_gpu_offload: float
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
    sums = 0.0 if lora or training.gradient_accumulation == 1 else shape.parameters * SUM_BYTES
    # FSDP shards frozen weights (LoRA) and sums as it shards the state
    gpu = (state + sums) / world + activations / spec.context_parallel
    checkpoint = shape.parameters * (WEIGHT_BYTES if lora else per_parameter)
    rest = _REST * (1 + (sum(pixels) - max(pixels)) / (704 * 1280))
    disk = checkpoint * (training.checkpoint.keep + 1) + (0 if spec.tiny else rest)
    repositories = []
    if not spec.tiny:
        disk += shape.weights + _TOKENIZER
        repositories += [f"nvidia/Cosmos-Predict2-{spec.model.size}-Video2World"]
        if spec.per_clip:
            repositories += [per_clip_actions.REPOSITORY]
        else:
            disk += _TEXT_ENCODER
            repositories += ["google-t5/t5-11b"]
    agibot = spec.dataset.agibot
    if agibot and not agibot.path and agibot.keep_archives:  # otherwise videos only are downloaded
        disk += ARCHIVES * len(agibot.task_ids)
    if spec.dataset.repository:
        repositories += [f"datasets/{spec.dataset.repository}"]
    return ResourceEstimate(
        disk=disk,
        gpu=0 if spec.device == "CPU" else gpu,
        sample_gpu=_sample_gpu(spec, offload=spec.inference.offload),
        sample_gpu_offload=_sample_gpu(spec, offload=True),
        host=checkpoint / spec.nodes,  # pinned copies for asynchronous checkpoints
        checkpoint=checkpoint,
        repositories=tuple(repositories),
    )


def _sample_gpu(spec: Spec, *, offload: bool) -> float:
    """Estimate the memory of a GPU that generates samples; 0 without one, or for Tiny."""
    if spec.device == "CPU" or spec.tiny:
        return 0
    inference, (height, width) = spec.inference, spec.video_size
    ranks = spec.ranks_per_branch(inference.gpus)
    sampling = sample_bytes(
        _SHAPES[spec.model.size].weights,
        SIZES[spec.model.size].num_heads * _HEAD_CHANNELS,
        height * width // 256 * (1 + (spec.num_frames - 1) // 4) / ranks,
        2 if spec.guidance and ranks == inference.gpus else 1,
        height * width,
        offload=offload,
    )
    return sampling if spec.per_clip else max(_T5_ON_GPU, sampling)
