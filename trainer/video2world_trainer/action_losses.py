"""Measure on held-out clips whether a checkpoint follows its actions: the action gate.

The loss of each clip is measured at the same noise with its own actions, with those of another
clip, with the data set's mean, and with its own one latent frame too late and too early. Clips are
those of ``val/`` of the data set, which has latents, embeddings and actions. Videos from one first
frame under several sequences of actions are compared with videos of several seeds. The evaluation
stage runs this for its last checkpoint. Arguments after ``--`` are flags of
video2world_trainer.inference.
"""

from __future__ import annotations

import argparse
import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from video2world_common.events import ProgressReporter, say
from video2world_common.exit_codes import UserError
from video2world_common.files import write_json
from video2world_common.markers import Provenance
from video2world_common.stage_runner import run_stage
from video2world_preprocess.video.resize import Geometry
from video2world_trainer import inference
from video2world_trainer.checkpoint.recorded_actions import RecordedActions
from video2world_trainer.checkpoint.run_config import actions_of, attention_pattern
from video2world_trainer.distributed.process_group import World
from video2world_trainer.evaluation.action_gate import VARIANTS, action_variants, gate
from video2world_trainer.generation.checkpoint_choice import choose_checkpoint
from video2world_trainer.generation.clip_format import ClipFormat, choose_clip_format
from video2world_trainer.generation.denoise import SamplingSettings, denoise, network_velocity
from video2world_trainer.generation.denoise import conditioning_mask as mask_of
from video2world_trainer.generation.guidance_parallel import shard_sample
from video2world_trainer.generation.load import empty_network, loaded_network
from video2world_trainer.model.attention import Attend
from video2world_trainer.model.attention_backends import select_for
from video2world_trainer.model.dit import VideoDiT
from video2world_trainer.model.lora import AdapterFacts
from video2world_trainer.model.presets import preset
from video2world_trainer.model.sparse_kernels import sparse_for
from video2world_trainer.model.state_dict import fitting_weights
from video2world_trainer.training.clip_losses import ClipLosses, evaluations
from video2world_trainer.training.config import clip_latent_shape
from video2world_trainer.training.dataset import LatentDataset, TrainingSample
from video2world_trainer.training.loss import NoiseDistribution, training_loss
from video2world_trainer.training.validation import choose_clips

__all__ = ["main", "parser"]

LEVELS = 4  # noise levels per clip, as in validation
SEQUENCES, SEEDS, STEPS = 3, 2, 10  # of the videos that are compared
CONDITIONAL = 1  # latent frames to condition on


def parser() -> argparse.ArgumentParser:
    """Return the parser of the flags; arguments after ``--`` are flags of inference."""
    flags = argparse.ArgumentParser(
        prog="python -m video2world_trainer.action_losses",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = flags.add_argument
    add("--dit_path", type=Path, required=True, help="the action-conditioned checkpoint")
    add("--dataset_dir", type=Path, required=True, help="data set whose val/ has the clips")
    add("--clips", type=int, default=16, help="held-out clips (default: 16, or all)")
    add("--seed", type=int, default=0, help="seed of the videos' noise")
    add("--output", type=Path, required=True, help="JSON file to write")
    add("flags", nargs="*", help="flags of video2world_trainer.inference, after --")
    return flags


@dataclass(frozen=True)
class _Model:
    """A checkpoint on one device, and what its clips look like."""

    net: VideoDiT
    actions: RecordedActions
    clip: ClipFormat
    geometry: Geometry
    text_length: int  # 0 if the network reads no captions

    @property
    def device(self) -> torch.device:
        return next(self.net.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.net.parameters()).dtype


def _load(args: argparse.Namespace, device: torch.device) -> _Model:
    """Load the checkpoint that flags of inference name.

    Raises:
        UserError: there is no such checkpoint, or it reads no actions.
    """
    checkpoint, run = choose_checkpoint(args, preset(args.model_size))
    actions = actions_of(checkpoint, run)
    if actions is None:
        raise UserError(
            f"--dit_path {checkpoint}: it was trained without actions, so there is nothing to "
            "follow (spec.training.conditioning.actions)"
        )
    chosen = preset(args.model_size, rope_ratios=run.rope_ratios, actions=actions.conditioning)
    clip = choose_clip_format(args, chosen, run, checkpoint, 1)
    weights = fitting_weights(
        empty_network(chosen.dit),
        checkpoint,
        ema=args.load_ema,
        adapters=AdapterFacts(args.lora_alpha, args.lora_rank, None),
        recorded=run.adapters,
    )
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    net = loaded_network(chosen.dit, weights, device, dtype)
    choice = select_for("auto", device, dtype)
    attend: Attend | Sequence[Attend] = choice.attend
    if args.natten or attention_pattern(checkpoint, run) == "sparse":
        _, attend = sparse_for(chosen.size, clip.grid, device, dtype, choice.attend)
    shard_sample(net, attend, choice.cross_attention, World(device=device), 1, clip.grid[0])
    return _Model(
        net,
        actions,
        clip,
        cast("Geometry", args.geometry or run.geometry or "crop"),
        (run.text_length or chosen.text_tokens) if actions.conditioning.uses_text else 0,
    )


def _held_out(model: _Model, dataset_dir: Path) -> LatentDataset:
    """Return the held-out windows, which have latents, embeddings and actions."""
    dataset = LatentDataset(
        dataset_dir / "val",
        shape=clip_latent_shape(model.clip.frames, model.clip.size),
        geometry=model.geometry,
        text_length=model.text_length,
        cache=True,
        actions=model.actions.statistics,
    )
    dataset.report()
    return dataset


@torch.no_grad()
def _losses(
    model: _Model,
    dataset: LatentDataset,
    clips: Sequence[tuple[int, int]],
    samples: Sequence[TrainingSample],
    after_each: Callable[[], None],
) -> dict[str, list[list[float]]]:
    """Return by variant the loss of each clip, read as ``samples``, at each noise level."""
    measure = ClipLosses(
        dataset,
        clip_latent_shape(model.clip.frames, model.clip.size),
        NoiseDistribution(),
        functools.partial(training_loss, dtype=model.dtype),
        model.device,
    )
    rows = torch.stack([_actions(sample) for sample in samples])
    losses: dict[str, list[list[float]]] = {}
    for name, variant in action_variants(rows, [window for window, _ in clips]).items():
        by_name = {one.name: rows for one, rows in zip(samples, variant, strict=True)}

        def lend(sample: TrainingSample, lent: dict[str, Tensor] = by_name) -> Tensor:
            return lent[sample.name]

        found = []
        for one in evaluations(clips, LEVELS):
            found.append(float(measure(model.net, one, change_actions=lend)))
            after_each()
        losses[name] = torch.tensor(found).reshape(len(clips), LEVELS).tolist()
    return losses


def _actions(sample: TrainingSample) -> Tensor:
    assert sample.actions is not None
    return sample.actions


@torch.no_grad()
def _motion(
    model: _Model,
    clips: Sequence[TrainingSample],
    seed: int,
    after_each: Callable[[], None],
) -> dict[str, Any]:
    """Compare videos from the first clip's first frame, by their actions and by their seeds.

    Returns:
        Root mean square differences of latents: ``by_actions`` between videos of different actions
        and equal seeds, ``by_seed`` the other way round, and ``ratio``, the former over the latter;
        None if there is a single clip.
    """
    first = clips[0]
    step = max(len(clips) // SEQUENCES, 1)
    sequences = [_actions(one) for one in clips[::step]][:SEQUENCES]
    given = first.latents[None].to(model.device)
    mask = mask_of(given, CONDITIONAL)
    videos = {}
    for number, actions in enumerate(sequences):
        velocity = network_velocity(model.net, first.text[None], mask, actions=actions[None])
        for other in range(SEEDS):
            settings = SamplingSettings(seed + other, STEPS, guidance=0.0)
            videos[number, other] = denoise(
                velocity, given, CONDITIONAL, settings, after_step=after_each
            )[:, :, CONDITIONAL:]

    def apart(same: int) -> float | None:
        """Average over pairs that have the part ``same`` of their key in common, alone."""
        found = [
            float((videos[one] - videos[two]).square().mean().sqrt())
            for one, two in itertools.combinations(videos, 2)
            if one[same] == two[same] and one != two
        ]
        return sum(found) / len(found) if found else None

    by_actions, by_seed = apart(1), apart(0)
    return {
        "sequences": len(sequences),
        "by_actions": by_actions,
        "by_seed": by_seed,
        "ratio": by_actions / by_seed if by_actions is not None and by_seed else None,
    }


def _work(args: argparse.Namespace) -> tuple[Provenance, dict[str, Any]]:
    if args.clips < 1:
        raise UserError(f"--clips {args.clips}: at least 1")
    settings = inference.parser().parse_args([*args.flags, "--dit_path", str(args.dit_path)])
    model = _load(settings, inference.device_of(settings.device))
    dataset = _held_out(model, args.dataset_dir)
    clips = choose_clips(dataset.clip_counts, args.clips)
    samples = [dataset.read(*clip) for clip in clips]
    passes = len(clips) * LEVELS * len(VARIANTS)
    passes += min(len(clips), SEQUENCES) * SEEDS * (STEPS + 1)
    progress = ProgressReporter("evaluation", passes, "passes")
    losses = _losses(model, dataset, clips, samples, progress.advance)
    found = gate(losses) | {"motion": _motion(model, samples, args.seed, progress.advance)}
    per_clip = {name: [sum(row) / len(row) for row in rows] for name, rows in losses.items()}
    names = [sample.name for sample in samples]
    write_json(args.output, found | {"names": names, "losses": per_clip, "levels": LEVELS})
    say(found["text"])
    return Provenance().left([args.output]), {"clips": found["clips"], "lift": found["lift"]}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    args = parser().parse_args(argv)
    return run_stage(lambda: _work(args), stage="action-gate")


if __name__ == "__main__":
    raise SystemExit(main())
