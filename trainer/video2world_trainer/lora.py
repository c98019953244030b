"""Low-rank adapters (LoRA) in PEFT's layout: put in, counted, folded into their base weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from video2world_preprocess.stage import UserError

__all__ = ["TARGETS", "LoRALinear", "count_parameters", "inject", "merge", "merge_state"]

TARGETS = ("q_proj", "k_proj", "v_proj", "output_proj", "mlp.layer1", "mlp.layer2")
"""The layers that upstream adapts: ends of module names (facts 2.5)."""

_BASE, _DOWN, _UP = ".base_layer.weight", ".lora_A.default.weight", ".lora_B.default.weight"


def _folded(base: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """base + scale * up @ down, computed in float32, in the base's dtype."""
    return (base.float() + scale * (up.float() @ down.float())).to(base.dtype)


class LoRALinear(nn.Module):
    """A frozen linear layer [out, in] plus ``scale`` times a trainable product of rank r.

    The names ``base_layer``, ``lora_A.default`` [r, in] and ``lora_B.default`` [out, r] are those
    of a file that PEFT, and so upstream, writes.
    """

    def __init__(self, base: nn.Linear, rank: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.base_layer = base
        like = {"device": base.weight.device, "dtype": base.weight.dtype}
        down = nn.Linear(base.in_features, rank, bias=False, **like)
        up = nn.Linear(rank, base.out_features, bias=False, **like)
        self.lora_A = nn.ModuleDict({"default": down})
        self.lora_B = nn.ModuleDict({"default": up})

    @torch.no_grad()
    def start(self, generator: torch.Generator | None) -> None:
        """PEFT's start: A uniform in +-1/sqrt(in), drawn on the CPU; B zero, so nothing changes."""
        nn.init.zeros_(self.lora_B["default"].weight)
        weight = self.lora_A["default"].weight
        if weight.is_meta:
            return
        bound = 1 / math.sqrt(weight.shape[1])
        weight.copy_(torch.empty(weight.shape).uniform_(-bound, bound, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        return self.base_layer(x) + self.scale * self.lora_B["default"](self.lora_A["default"](x))

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The plain layer that computes the same."""
        self.base_layer.weight.copy_(
            _folded(
                self.base_layer.weight,
                self.lora_A["default"].weight,
                self.lora_B["default"].weight,
                self.scale,
            )
        )
        return self.base_layer


def inject(
    net: nn.Module,
    *,
    rank: int = 16,
    alpha: float = 16.0,
    targets: Sequence[str] = TARGETS,
    generator: torch.Generator | None = None,
) -> list[str]:
    """Adapt every linear layer whose name ends in one of ``targets``; freeze everything else.

    Load the base weights first: afterwards the adapted layers' names differ. The output is the
    same until the adapters are trained.

    Returns:
        The names of the adapted layers.

    Raises:
        UserError: the rank is below 1, or a target names no linear layer.
    """
    if rank < 1:
        raise UserError(f"model.config.lora_rank={rank}: this must be at least 1")
    layers = {name: one for name, one in net.named_modules() if isinstance(one, nn.Linear)}
    chosen: set[str] = set()
    for target in targets:
        fitting = {name for name in layers if f".{name}".endswith(f".{target}")}
        if not fitting:
            raise UserError(
                f"model.config.lora_target_modules: {target} names no linear layer of the model; "
                f"upstream's are {','.join(TARGETS)}"
            )
        chosen |= fitting
    net.requires_grad_(False)
    for name in (ordered := [name for name in layers if name in chosen]):
        adapted = LoRALinear(layers[name], rank, alpha / rank)
        adapted.start(generator)
        parent, _, child = name.rpartition(".")
        setattr(net.get_submodule(parent), child, adapted)
    return ordered


def merge(net: nn.Module) -> None:
    """Fold all adapters of ``net`` into their base layers, in place; the plain names return."""
    for name, module in list(net.named_modules()):
        if isinstance(module, LoRALinear):
            parent, _, child = name.rpartition(".")
            setattr(net.get_submodule(parent), child, module.merged())


def merge_state(state: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """The plain state dict of one in PEFT's layout; others come back as they are.

    Args:
        state: tensors by name.
        scale: alpha / rank of the training.

    Raises:
        UserError: an adapter is incomplete or of unequal ranks; the message names its layer.
    """
    merged: dict[str, Tensor] = {}
    for key, value in state.items():
        if key.endswith(_BASE):
            name = key.removesuffix(_BASE)
            down, up = state.get(name + _DOWN), state.get(name + _UP)
            if down is None or up is None:
                part = _DOWN if down is None else _UP
                raise UserError(
                    f"{name}{part} is missing: the file's adapters are incomplete; copy it again"
                )
            if up.shape[1:] != down.shape[:1] or up.shape[:1] + down.shape[1:] != value.shape:
                raise UserError(
                    f"the adapter of {name} does not fit: A {list(down.shape)}, B "
                    f"{list(up.shape)}, base {list(value.shape)}"
                )
            merged[f"{name}.weight"] = _folded(value, down, up, scale)
        elif ".lora_" not in key:
            merged[key] = value
    return merged


def count_parameters(net: nn.Module) -> tuple[int, int]:
    """How many numbers are trained, and how many there are."""
    parameters = list(net.parameters())
    return (
        sum(one.numel() for one in parameters if one.requires_grad),
        sum(one.numel() for one in parameters),
    )
