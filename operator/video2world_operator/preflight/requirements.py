"""What a resource needs of disk, GPU and host memory, by the figures that were measured.

Two runs give the constants (docs/performance.md): 2B on one GPU at 720p and 16 fps took 68.6 GiB,
and its checkpoint 43 GB, which is 22 bytes a parameter for weights, masters, moments and average;
what is left of the GPU's memory are activations, which grow with depth times width and with the
clip's tokens. Two more runs were not used for them: 2B on two GPUs comes out at 34.3 of 34.7 GiB,
14B with LoRA at 480p at 60.4 of 61.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from video2world_operator.api.resource import Video2WorldPostTrain

__all__ = ["Needs", "needs"]

GIB, GB = 2**30, 10**9
STATE_BYTES, EMA_BYTES, WEIGHT_BYTES = 22, 4, 2  # a parameter


class _Shape(NamedTuple):
    """Of a network: its parameters, and depth times width against 2B's."""

    parameters: float
    activations: float
    weights: float  # bytes of the base weights' file


_SHAPES: Mapping[str, _Shape] = {
    "Tiny": _Shape(3e6, 0.001, 0),
    "2B": _Shape(3.91 * GB / 2, 1.0, 3.91 * GB),
    "14B": _Shape(28.53 * GB / 2, 36 * 40 / (28 * 16), 28.53 * GB),
}
_ACTIVATIONS = 68.62 * GIB - STATE_BYTES * _SHAPES["2B"].parameters  # 2B, 93 frames of 704x1280
_TEXT_ENCODER, _TOKENIZER = 55.2 * GB, 0.5 * GB  # T5-11B as published and as read, the VAE
_ARCHIVES = 100 * GB  # of a task of AgiBotWorld, as the guide says
_REST = 10 * GB  # windows, embeddings, latents, results


@dataclass(frozen=True)
class Needs:
    """In bytes. ``gpu`` is for each training GPU, 0 on a CPU; ``host`` for each node at training;
    ``repositories`` are those on the Hugging Face Hub, data sets with the prefix ``datasets/``."""

    disk: float
    gpu: float
    host: float
    checkpoint: float
    repositories: tuple[str, ...]


def needs(resource: Video2WorldPostTrain) -> Needs:
    """What ``resource`` needs; estimates, but for the repositories."""
    spec, training = resource.spec, resource.spec.training
    shape = _SHAPES[spec.model.size]
    lora = training.architecture == "LoRA"
    per_parameter = STATE_BYTES - (0 if training.ema else EMA_BYTES)
    state = shape.parameters * (WEIGHT_BYTES if lora else per_parameter)
    height, width = spec.video_size
    latents = 1 + (spec.num_frames - 1) // 4
    tokens = height * width * latents / (704 * 1280 * 24)
    activations = _ACTIVATIONS * shape.activations * tokens * training.batch_size
    world = spec.nodes * spec.processes_per_node
    # LoRA's frozen weights are whole on each GPU of one; more GPUs share them as they share state
    gpu = state / world + activations / spec.context_parallel
    checkpoint = shape.parameters * (WEIGHT_BYTES if lora else per_parameter)
    disk = checkpoint * (training.checkpoint.keep + 1) + (0 if spec.tiny else _REST)
    repositories = []
    if not spec.tiny:
        disk += shape.weights + _TEXT_ENCODER + _TOKENIZER
        repositories += [f"nvidia/Cosmos-Predict2-{spec.model.size}-Video2World"]
        repositories += ["google-t5/t5-11b"]
    agibot = spec.dataset.agibot
    if agibot and not agibot.path:
        if agibot.keep_archives:  # otherwise they are read where they are
            disk += _ARCHIVES * len(agibot.task_ids)
        repositories += [f"datasets/{agibot.repo_id}"]
    return Needs(
        disk=disk,
        gpu=0 if spec.device == "CPU" else gpu,
        host=checkpoint / spec.nodes,  # pinned copies from which checkpoints are written
        checkpoint=checkpoint,
        repositories=tuple(repositories),
    )
