"""Low-rank adapters (LoRA) in PEFT's layout: inject them, and merge them into base weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from video2world_common.exit_codes import UserError
from video2world_trainer.model.action_conditioning import is_action_parameter

__all__ = [
    "TARGETS",
    "AdapterFacts",
    "LoRALinear",
    "has_adapters",
    "inject",
    "merge",
    "merge_state",
]

TARGETS = ("q_proj", "k_proj", "v_proj", "output_proj", "mlp.layer1", "mlp.layer2")
"""Layers that upstream adapts: suffixes of module names (``examples/video2world_lora.py``)."""

_BASE, _DOWN, _UP = ".base_layer.weight", ".lora_A.default.weight", ".lora_B.default.weight"


@dataclass(frozen=True)
class AdapterFacts:
    """What is known about a file's adapters beyond their tensors; None is unknown.

    ``targets`` are suffixes of the adapted layers' names.
    """

    alpha: float | None = None
    rank: int | None = None
    targets: tuple[str, ...] | None = None

    def combine(self, recorded: AdapterFacts) -> AdapterFacts:
        """Complete the user's facts with those that the run recorded.

        Raises:
            UserError: they contradict each other.
        """
        for name in ("alpha", "rank"):
            asked, known = getattr(self, name), getattr(recorded, name)
            if asked is not None and known is not None and asked != known:
                raise UserError(
                    f"LoRA {name} {asked:g} was requested, but its config.json records {known:g}: "
                    "remove the setting"
                )
        alpha = recorded.alpha if self.alpha is None else self.alpha
        return AdapterFacts(alpha, recorded.rank if self.rank is None else self.rank, self.targets)

    def __bool__(self) -> bool:
        """Return whether anything is known."""
        return self != AdapterFacts()


def _merged_weight(base: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """Return base + scale * up @ down, computed in float32, in the dtype of ``base``."""
    return (base.float() + scale * (up.float() @ down.float())).to(base.dtype)


class LoRALinear(nn.Module):
    """A frozen linear layer [out, in] plus alpha / r times a trainable product of rank r.

    The names ``base_layer``, ``lora_A.default`` [r, in] and ``lora_B.default`` [out, r] are PEFT's,
    and so upstream's.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.alpha, self.scale = alpha, alpha / rank
        self.base_layer = base
        like = {"device": base.weight.device, "dtype": base.weight.dtype}
        down = nn.Linear(base.in_features, rank, bias=False, **like)
        up = nn.Linear(rank, base.out_features, bias=False, **like)
        # ModuleDict is not generic: the casts give the layers their type
        self.lora_A = cast("dict[str, nn.Linear]", nn.ModuleDict({"default": down}))
        self.lora_B = cast("dict[str, nn.Linear]", nn.ModuleDict({"default": up}))

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None) -> None:
        """Initialize like PEFT: A uniform in +-1/sqrt(in), drawn on the CPU; B zero."""
        nn.init.zeros_(self.lora_B["default"].weight)
        weight = self.lora_A["default"].weight
        if weight.is_meta:
            return
        bound = 1 / math.sqrt(weight.shape[1])
        weight.copy_(torch.empty(weight.shape).uniform_(-bound, bound, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in] to [..., out]."""
        # in this order: it determines the order in which autograd sums the gradients of x
        out: Tensor = self.base_layer(x)
        update: Tensor = self.lora_B["default"](self.lora_A["default"](x))
        return out + self.scale * update

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Merge the adapter into the base layer and return that layer."""
        self.base_layer.weight.copy_(
            _merged_weight(
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

    Load the base weights before: the adapted layers' parameters have other names. The output does
    not change until the adapters are trained. Action embedders are not adapted but trained
    themselves, as base weights have none; parameters that are frozen already stay as they are.

    Args:
        net: the network, changed in place.
        rank: rank r of the adapters.
        alpha: the adapters are scaled by alpha / rank.
        targets: suffixes of module names.
        generator: for the initial values.

    Returns:
        The names of the adapted layers.

    Raises:
        UserError: the rank is below 1, or a target names no linear layer.
    """
    if rank < 1:
        raise UserError(f"model.config.lora_rank={rank}: this must be at least 1")
    layers = {
        name: one
        for name, one in net.named_modules()
        if isinstance(one, nn.Linear) and one.weight.requires_grad and not is_action_parameter(name)
    }
    chosen: set[str] = set()
    for target in targets:
        fitting = {name for name in layers if f".{name}".endswith(f".{target}")}
        if not fitting:
            raise UserError(
                f"model.config.lora_target_modules: {target} names no linear layer of the model; "
                f"upstream's are {','.join(TARGETS)}"
            )
        chosen |= fitting
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(is_action_parameter(name))
    for name in (ordered := [name for name in layers if name in chosen]):
        adapted = LoRALinear(layers[name], rank, alpha)
        adapted.init_weights(generator)
        parent, _, child = name.rpartition(".")
        setattr(net.get_submodule(parent), child, adapted)
    return ordered


def merge(net: nn.Module) -> None:
    """Merge all adapters of ``net`` into their base layers, in place, which restores the names."""
    for name, module in list(net.named_modules()):
        if isinstance(module, LoRALinear):
            parent, _, child = name.rpartition(".")
            setattr(net.get_submodule(parent), child, module.merged())


def has_adapters(state: Mapping[str, Tensor]) -> bool:
    """Return whether a state dict holds adapters in PEFT's layout."""
    return any(".lora_" in key for key in state)


def merge_state(state: Mapping[str, Tensor], facts: AdapterFacts) -> dict[str, Tensor]:
    """Merge the adapters of a state dict in PEFT's layout; without adapters, return a copy.

    Args:
        state: tensors by name.
        facts: what is known about the adapters; a layer's scale is alpha / its rank.

    Raises:
        UserError: an adapter is incomplete or of unequal ranks (the message names its layer), the
            facts contradict the tensors, or alpha is unknown.
    """
    adapters = _adapters(state)
    if not adapters:
        return dict(state)
    alpha = _checked_alpha({name: down.shape[0] for name, (_, down, _) in adapters.items()}, facts)
    merged = {}
    for key, value in state.items():
        name = key.removesuffix(_BASE)
        if name in adapters and name != key:
            base, down, up = adapters[name]
            merged[f"{name}.weight"] = _merged_weight(base, down, up, alpha / down.shape[0])
        elif ".lora_" not in key:
            merged[key] = value
    return merged


def _adapters(state: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Return base, A and B of each adapted layer, by its name."""
    ends = (_BASE, _DOWN, _UP)
    names = dict.fromkeys(
        key.removesuffix(end) for key in state for end in ends if key.endswith(end)
    )
    found = {}
    for name in names:
        for end in ends:
            if name + end not in state:
                raise UserError(
                    f"{name}{end} is missing: the file's adapters are incomplete; copy it again"
                )
        base, down, up = (state[name + end] for end in ends)
        if up.shape[1:] != down.shape[:1] or up.shape[:1] + down.shape[1:] != base.shape:
            raise UserError(
                f"the adapter of {name} does not fit: A {list(down.shape)}, B "
                f"{list(up.shape)}, base {list(base.shape)}"
            )
        found[name] = base, down, up
    return found


def _checked_alpha(ranks: Mapping[str, int], facts: AdapterFacts) -> float:
    """Return the adapters' alpha after checking the file's ranks and layers against ``facts``."""
    for name, rank in ranks.items():
        if facts.rank not in (None, rank):
            raise UserError(
                f"LoRA rank {facts.rank} was requested, but the adapter of {name} has rank {rank}: "
                "remove the setting, as the file determines it"
            )
    if facts.targets is not None:
        _check_targets(ranks, facts.targets)
    if facts.alpha is None:
        shown = ", ".join(map(str, sorted(set(ranks.values()))))
        raise UserError(
            f"it holds LoRA adapters of rank {shown}, but not the alpha that they were trained "
            "with, and they are scaled by alpha / rank: give --lora_alpha, in a resource "
            "spec.inference.loraAlpha, or for the weights that training starts from "
            "spec.model.loraAlpha (model.config.model_manager_config.lora_alpha)"
        )
    return facts.alpha


def _check_targets(ranks: Mapping[str, int], targets: Sequence[str]) -> None:
    for target in targets:
        if not any(f".{name}".endswith(f".{target}") for name in ranks):
            raise UserError(
                f"LoRA target {target}: the file has no adapter for a layer of this name"
            )
    ends = tuple(f".{target}" for target in targets)
    for name in ranks:
        if not f".{name}".endswith(ends):
            raise UserError(
                f"LoRA targets {','.join(targets)}: the file also adapts {name}; remove the "
                "setting, as the file determines it"
            )
