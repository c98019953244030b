"""Read weights: upstream's ``.pt`` layout, safetensors, diffusers folders and LoRA files."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from video2world_common.events import say
from video2world_common.exit_codes import UserError
from video2world_trainer.model.action_conditioning import EMBEDDERS, is_action_parameter
from video2world_trainer.model.lora import AdapterFacts, has_adapters, merge_state

__all__ = ["fitting_weights", "from_diffusers", "load_dit_weights", "read_weights", "to_diffusers"]

UNKNOWN = AdapterFacts()

# Entries of checkpoints beyond parameters. They are recomputed here: not loaded and not required.
_DERIVED = re.compile(r"^(accum_|pos_embedder\.)|\._extra_state$")

_SIZE_QUESTION = "is --model_size (model.size) the checkpoint's own?"

# (ours, diffusers'): prefixes or parts of keys; the first that fits is replaced
_LAYERS = (
    ("x_embedder.proj.1.", "patch_embed.proj."),
    ("t_embedder.1.", "time_embed.t_embedder."),
    ("t_embedding_norm.", "time_embed.norm."),
    ("final_layer.adaln_modulation.1.", "norm_out.linear_1."),
    ("final_layer.adaln_modulation.2.", "norm_out.linear_2."),
    ("final_layer.linear.", "proj_out."),
    (".adaln_modulation_self_attn.", ".norm1.linear_"),
    (".adaln_modulation_cross_attn.", ".norm2.linear_"),
    (".adaln_modulation_mlp.", ".norm3.linear_"),
    (".self_attn.", ".attn1."),
    (".cross_attn.", ".attn2."),
    (".mlp.layer1.", ".ff.net.0.proj."),
    (".mlp.layer2.", ".ff.net.2."),
)
# likewise, for the parts of an attention layer
_PROJECTIONS = (
    (".output_proj.", ".to_out.0."),
    (".q_proj.", ".to_q."),
    (".k_proj.", ".to_k."),
    (".v_proj.", ".to_v."),
    (".q_norm.", ".norm_q."),
    (".k_norm.", ".norm_k."),
)
_BLOCKS = ("blocks.", "transformer_blocks.")


def _rename(key: str, *, back: bool) -> str:
    """Rename a key from ours to diffusers', or ``back``."""
    ours, theirs = _BLOCKS
    old, new = (theirs, ours) if back else (ours, theirs)
    if key.startswith(old):
        key = new + key.removeprefix(old)
    for table in (_LAYERS, _PROJECTIONS):
        for ours, theirs in table:
            old, new = (theirs, ours) if back else (ours, theirs)
            if key.startswith(old) or (old.startswith(".") and old in key):
                key = key.replace(old, new, 1)
                break
    return key


def to_diffusers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a state dict's keys to those of diffusers' ``CosmosTransformer3DModel``.

    The mapping is that of diffusers' ``scripts/convert_cosmos_to_diffusers.py``.
    """
    return {
        _rename(key, back=False): value for key, value in state.items() if not _DERIVED.search(key)
    }


def from_diffusers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the keys of a diffusers state dict to ours: the inverse of :func:`to_diffusers`."""
    return {_rename(key, back=True): value for key, value in state.items()}


def _read_file(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return load_file(path)
    state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"{path} is not a flat dictionary of tensors, as checkpoints' model/ are")
    return state


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a ``.pt`` or ``.safetensors`` file, or of a diffusers folder.

    Raises:
        UserError: the file is missing, damaged, or holds more than tensors, which are not loaded.
    """
    try:
        if not path.is_dir():
            return _read_file(path)
        folder = path / "transformer" if (path / "transformer").is_dir() else path
        index = folder / "diffusion_pytorch_model.safetensors.index.json"
        names = ["diffusion_pytorch_model.safetensors"]
        if index.exists():
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        if any(Path(name).name != name for name in names):
            raise UserError(f"{index} names files outside its folder; download it again")
        merged: dict[str, Tensor] = {}
        for name in names:
            merged |= _read_file(folder / name)
        return from_diffusers(merged)
    except FileNotFoundError as error:
        raise UserError(f"{error.filename or path}: no such checkpoint file") from error
    except (RuntimeError, SafetensorError, EOFError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{path} is damaged or not a checkpoint ({reason}); copy or download it again"
        ) from error
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds more than tensors and was not opened, as loading it could run code; "
            "save it as a plain state dict or as safetensors"
        ) from error


def _select(state: Mapping[str, Tensor], path: Path, *, ema: bool) -> dict[str, Tensor]:
    """Select the regular or the EMA weights, without prefix and derived entries."""
    prefix = "net_ema." if ema else "net."
    chosen = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    if not chosen and ema:
        raise UserError(f"{path} holds no EMA weights (keys net_ema.*); load the regular ones")
    if not chosen:
        chosen = {k: v for k, v in state.items() if not k.startswith("net_ema.")}
    return {key: value for key, value in chosen.items() if not _DERIVED.search(key)}


def fitting_weights(
    net: nn.Module,
    path: Path | str,
    *,
    ema: bool = False,
    adapters: AdapterFacts = UNKNOWN,
    recorded: AdapterFacts = UNKNOWN,
    adapted: bool = False,
    without_actions: bool = False,
) -> dict[str, Tensor]:
    """Read a checkpoint's tensors for the parameters of ``net``, with adapters merged.

    The file must have exactly the parameters of ``net``; buffers and upstream's ``_extra_state``
    are ignored.

    Args:
        net: the network; only names and shapes are read, so it may be on the meta device.
        path: the checkpoint.
        ema: take the EMA weights.
        adapters: what the user set about its adapters.
        recorded: what its run recorded about them.
        adapted: refuse a file without adapters.
        without_actions: accept a file without any action embedder, as base weights are, for an
            action-conditioned ``net``; the result then lacks these parameters.

    Raises:
        UserError: keys are missing, unknown or of another shape (the message names the first), or
            the adapters' alpha is unknown.
    """
    path = Path(path)
    state = _select(read_weights(path), path, ema=ema)
    if not has_adapters(state):
        if adapted:
            raise UserError(f"--use_lora: {path} holds no LoRA adapters; leave the flag out")
        if adapters:
            say(f"note: what is set about LoRA adapters has no effect: {path} holds none")
    else:
        try:
            state = merge_state(state, adapters.combine(recorded))
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
    wanted = dict(net.named_parameters())
    if without_actions and not any(map(is_action_parameter, state)):
        wanted = {key: one for key, one in wanted.items() if not is_action_parameter(key)}
    wrong = [
        f"{key} is {list(state[key].shape)}, the model has {list(one.shape)}"
        for key, one in wanted.items()
        if key in state and state[key].shape != one.shape
    ]
    wrong += [f"{key} is missing" for key in sorted(wanted.keys() - state.keys())]
    wrong += [f"{key} is unknown" for key in sorted(state.keys() - wanted.keys())]
    if wrong:
        shown = "; ".join(wrong[:3])
        raise UserError(
            f"{path} does not fit the model ({len(wrong)} of {len(wanted)} tensors: {shown}); "
            f"{_action_mismatch(state, wanted) or _SIZE_QUESTION}"
        )
    return {key: state[key] for key in wanted}


def _action_mismatch(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """Explain how a file's action embedders differ from the network's; empty if they do not."""
    key = f"{EMBEDDERS[0]}.fc1.weight"
    if key not in wanted:
        if not any(map(is_action_parameter, state)):
            return ""
        return (
            "the file is action-conditioned and this model is not: set model.action_conditioning "
            "(spec.training.conditioning.actions) as it was trained"
        )
    if not any(map(is_action_parameter, state)):
        return (
            "the file has no action embedders, as base weights are: only training may start from "
            "it; to generate videos name a checkpoint of an action-conditioned run"
        )
    if key not in state or state[key].shape == wanted[key].shape:
        return ""
    found, here = state[key].shape[-1], wanted[key].shape[-1]
    return (
        f"its action embedders read {found} numbers, the model's read {here}: it was trained with "
        "actions of another dimension, or another kind of model.action_conditioning (per_frame "
        "reads 4 x the dimension, per_clip 12 x; 28 is 4 x 7 and 84 is 12 x 7)"
    )


def load_dit_weights(
    net: nn.Module,
    path: Path | str,
    *,
    ema: bool = False,
    adapters: AdapterFacts = UNKNOWN,
    recorded: AdapterFacts = UNKNOWN,
    without_actions: bool = False,
) -> list[str]:
    """Copy a checkpoint's weights into ``net``, converted to its dtype.

    Returns:
        The parameters that are left as they are: none, or with ``without_actions`` all action
        embedders', if the file has none of them.

    Raises:
        UserError: see :func:`fitting_weights`.
    """
    state = fitting_weights(
        net,
        path,
        ema=ema,
        adapters=adapters,
        recorded=recorded,
        without_actions=without_actions,
    )
    with torch.no_grad():
        for key, value in state.items():
            net.get_parameter(key).copy_(value)
    return [key for key, _ in net.named_parameters() if key not in state]
