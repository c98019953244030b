"""List the tensors of a checkpoint's model file, and how each is computed from saved state."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from video2world_trainer.checkpoint.dcp import ModelEntry
from video2world_trainer.model.dit import VideoDiT
from video2world_trainer.model.lora import AdapterFacts, LoRALinear, merge_state

__all__ = ["merged_entries", "model_entries"]

_PARTS = ("base_layer", "lora_A.default", "lora_B.default")


def model_entries(
    net: VideoDiT, *, average: bool, iteration: int, samples: int
) -> dict[str, ModelEntry]:
    """Return the model file's tensors: bfloat16 under ``net.``, float32 EMA under ``net_ema.``.

    Names and types are those of Cosmos-Predict2's own checkpoints: see ``state_dict`` in
    cosmos_predict2/models/video2world_model.py of
    https://github.com/nvidia-cosmos/cosmos-predict2.

    Args:
        net: the network in training.
        average: whether there is an EMA.
        iteration, samples: values for the network's counters.
    """
    counters = {"accum_iteration": iteration, "accum_video_sample_counter": samples}
    entries: dict[str, ModelEntry] = {}
    for name, buffer in net.named_buffers():
        copy = buffer.detach().cpu().clone()
        if name.startswith("accum_"):
            copy.fill_(counters.get(name, 0))
        elif copy.is_floating_point():
            copy = copy.bfloat16()
        entries[f"net.{name}"] = ModelEntry(copy.shape, copy.dtype, (), lambda copy=copy: copy)
    for prefix, kind, dtype in (
        ("net", "master", torch.bfloat16),
        *([("net_ema", "ema", torch.float32)] if average else []),
    ):
        for name, one in net.named_parameters():
            source = f"{kind if one.requires_grad else 'frozen'}.{name}"
            entries[f"{prefix}.{name}"] = ModelEntry(one.shape, dtype, (source,), lambda one: one)
    return entries


def merged_entries(net: VideoDiT, entries: Mapping[str, ModelEntry]) -> dict[str, ModelEntry]:
    """Return the model file's tensors with adapters merged into weights; empty without adapters.

    Args:
        net: the network in training.
        entries: the result of :func:`model_entries`.
    """
    adapted = {name: one for name, one in net.named_modules() if isinstance(one, LoRALinear)}
    if not adapted:
        return {}
    merged = {
        key: one
        for key, one in entries.items()
        if key.startswith("net.") and ".base_layer." not in key and ".lora_" not in key
    }
    for name, module in adapted.items():
        base, *updates = (f"{name}.{part}.weight" for part in _PARTS)
        sources = (f"frozen.{base}", *(f"master.{one}" for one in updates))

        def merge(*weights: Tensor, alpha: float = module.alpha) -> Tensor:
            state = {
                f"layer.{part}.weight": one.bfloat16()
                for part, one in zip(_PARTS, weights, strict=True)
            }
            return merge_state(state, AdapterFacts(alpha))["layer.weight"]

        shape = module.base_layer.weight.shape
        merged[f"net.{name}.weight"] = ModelEntry(shape, torch.bfloat16, sources, merge)
    return merged
