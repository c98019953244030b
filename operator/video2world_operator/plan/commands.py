"""Build the command line of each stage; paths are relative to the volume's root."""

from __future__ import annotations

import json
from typing import Any

from video2world_common import per_clip_actions
from video2world_common.latent_folders import latents_folder
from video2world_operator.api.captions_spec import CaptionsSpec
from video2world_operator.api.dataset_spec import ActionsSpec, LeRobotDataset
from video2world_operator.api.evaluation_spec import METRIC_FLAGS, EvaluationSpec
from video2world_operator.api.experiments import passed_on
from video2world_operator.api.resource import Video2WorldPostTrain
from video2world_operator.api.spec import Spec
from video2world_operator.api.training_spec import TrainingSpec

__all__ = ["Command", "accumulating", "commands", "run_folder", "samples", "sampling"]

# settings of when to save or give up, which do not change the result
CADENCE = (
    "checkpoint.save_iter=",
    "checkpoint.keep=",
    "trainer.timeout_seconds=",
    "trainer.stop_when_diverged=",
    "trainer.run_validation=",
    "trainer.validation_",
)
# how the work is divided, checked and sent, and where weights are kept: none changes the result
SPEED = (
    "--shards=",
    "--require_val",
    "--require_actions",
    "--num_gpus=",
    "--offload",
    "--endpoint=",
    "--parallel_requests=",
    "--timeout_seconds=",
    "--max_failed_percent=",
)
# training resumes from its checkpoint when these change
LENGTH = ("trainer.max_iter=", "trainer.stop_after_validations=")

_ACCUMULATION = "trainer.grad_accum_iter="
_CONDITIONING = {"PerFrame": "per_frame", "PerClip": "per_clip"}
_ATTENTION = {
    "FlashAttention4": "flash_attention_4",
    "FlashAttention3": "flash_attention_3",
    "FlashAttention2": "flash_attention_2",
    "TransformerEngine": "transformer_engine",
    "Torch": "torch",
}


class Command:
    """Command line of a stage, and its ``outputs`` on the volume."""

    def __init__(self, argv: list[str], *outputs: str) -> None:
        self.argv = argv
        self.outputs = outputs


def commands(resource: Video2WorldPostTrain) -> dict[str, Command]:
    """Return the commands of the stages in order, without those that the spec does not need."""
    made = {"download": _download(resource), "dataset": _dataset(resource)}
    if resource.spec.dataset.captions:
        made["captions"] = _captions(resource, resource.spec.dataset.captions)
    if not resource.spec.per_clip:  # that network has no text
        made["embeddings"] = _embeddings(resource)
    made |= {"latents": _latents(resource), "train": _train(resource)}
    if resource.spec.inference.samples:
        made["inference"] = _inference(resource)
    if resource.spec.evaluation is not None:
        made["evaluation"] = _evaluation(resource, resource.spec.evaluation)
    return made


def sampling(resource: Video2WorldPostTrain, iteration: int) -> Command:
    """Build the command that generates the samples of one checkpoint during training."""
    return _sweep(resource, [str(iteration)], resource.spec.inference.pods(1), passing=True)


def run_folder(resource: Video2WorldPostTrain) -> str:
    """Return the folder of the run's checkpoints, as in the guide."""
    return f"checkpoints/posttraining/video2world/{resource.job_name}/checkpoints"


def samples(resource: Video2WorldPostTrain) -> list[dict[str, str | int]]:
    """Return the content of samples.json, in the guide's format for ``--batch_input_json``."""
    entries: list[dict[str, str | int]] = []
    for number, sample in enumerate(resource.spec.inference.samples):
        name = sample.output or f"sample-{number}.mp4"
        entry: dict[str, str | int] = {
            "input_video": _within(resource, sample.input),
            "prompt": sample.prompt,
            "output_video": f"results/{resource.job_name}/{name}",
        }
        if sample.actions is not None:
            entry["actions"] = _within(resource, sample.actions)
        if sample.negative_prompt is not None:
            entry["negative_prompt"] = sample.negative_prompt
        if sample.seed is not None:
            entry["seed"] = sample.seed
        entries.append(entry)
    return entries


def _within(resource: Video2WorldPostTrain, path: str) -> str:
    inside = path.startswith(("val/", "train/"))
    return f"{resource.dataset_dir}/{path}" if inside else path


def _python(module: str, *arguments: object) -> list[str]:
    return ["python", "-m", module, *map(str, arguments)]


def _base(resource: Video2WorldPostTrain) -> str:
    size = resource.spec.model.size
    owner = "video2world" if resource.spec.tiny else "nvidia"
    return f"checkpoints/{owner}/Cosmos-Predict2-{size}-Video2World"


def _text_encoder(resource: Video2WorldPostTrain) -> str:
    name = "video2world/t5-tiny" if resource.spec.tiny else "google-t5/t5-11b"
    return f"checkpoints/{name}"


def _weights(resource: Video2WorldPostTrain) -> str | None:
    model = resource.spec.model
    if model.weights or resource.spec.tiny:  # Tiny starts from its seed
        return model.weights
    if resource.spec.per_clip:
        return f"checkpoints/{per_clip_actions.REPOSITORY}/{per_clip_actions.WEIGHTS_FILE}"
    variant = "-natten" if resource.spec.sparse else ""
    return f"{_base(resource)}/model-{resource.spec.resolution}-{model.fps}fps{variant}.pt"


def _size_flags(resource: Video2WorldPostTrain) -> list[str]:
    """Return the flags of a choice that Tiny and the published action-conditioned network lack."""
    spec = resource.spec
    if spec.per_clip:
        return []
    return ["--fps", str(spec.model.fps), "--resolution", spec.resolution.removesuffix("p")]


def _download(resource: Video2WorldPostTrain) -> Command:
    per_clip, kind = resource.spec.per_clip, _conditioning(resource.spec.training)
    argv = _python(
        "video2world_preprocess.download",
        *("--model_sizes", resource.spec.model.size),
        *("--model_types", "sample_action_conditioned" if per_clip else "video2world"),
        *_size_flags(resource),
        *("--checkpoint_dir", "checkpoints"),
        *(["--natten_only"] if resource.spec.sparse and not resource.spec.tiny else []),
        *(["--weights", weights] if (weights := resource.spec.model.weights) else []),
        *(["--attention_pattern", "sparse"] if weights and resource.spec.sparse else []),
        *(["--action_conditioning", kind] if weights and kind else []),
    )
    own = f"checkpoints/{per_clip_actions.REPOSITORY}" if per_clip else _text_encoder(resource)
    return Command(argv, f"{_base(resource)}/tokenizer", own)


def _dataset(resource: Video2WorldPostTrain) -> Command:
    dataset, folder = resource.spec.dataset, resource.dataset_dir
    # One frame more than a clip, so that a window has more than one position for it.
    shortest = ["--min_frames", resource.spec.num_frames + 1]
    if agibot := dataset.agibot:
        argv = _python(
            "video2world_preprocess.agibot",
            *("--task_ids", *agibot.task_ids),
            *("--data_dir", (agibot.path or f"datasets/{agibot.prefix}").rstrip("/")),
            *("--repo_id", agibot.repository, "--camera", agibot.camera),
            *(
                ("--val_episode_ids", *agibot.validation_episode_ids)
                if agibot.validation_episode_ids
                else ()
            ),
            *_validation_percent(agibot.validation_percent),
            *_windows(agibot.window_seconds),
            *shortest,
            *("--dataset_dir", folder, "--prepare"),
            *(["--keep_tar"] if agibot.keep_archives else []),
            *(["--local"] if agibot.path else []),
            *(["--caption_file", agibot.caption_file] if agibot.caption_file else []),
            *(["--revision", agibot.revision] if agibot.revision else []),
            *_actions(dataset.actions),
        )
    elif bridge := dataset.bridge:
        argv = _python(
            "video2world_preprocess.bridge",
            *("--data_dir", bridge.path.rstrip("/"), "--camera_id", bridge.camera_id),
            *("--dataset_dir", folder),
            # whole episodes: one that is as long as a clip has its one clip
            *("--min_frames", resource.spec.num_frames),
        )
    elif lerobot := dataset.lerobot:
        flags = [*_lerobot(lerobot), *_actions(dataset.actions)]
        argv = _python("video2world_preprocess.lerobot", *flags, "--dataset_dir", folder, *shortest)
    elif videos := dataset.videos:
        argv = _python(
            "video2world_preprocess.videos",
            *("--videos_dir", videos.path.rstrip("/"), "--dataset_dir", folder),
            *(("--val_names", *videos.validation_names) if videos.validation_names else ()),
            *_validation_percent(videos.validation_percent),
            *_windows(videos.window_seconds),
            *shortest,
            *(["--captions_optional"] if dataset.captions else []),
        )
    else:
        argv = _python("video2world_preprocess.prepared", "--dataset_dir", folder, *shortest)
        argv += ["--require_actions"] if resource.spec.training.conditioning else []
    if dataset.shards > 1 and not dataset.prepared:
        argv.append(f"--shards={dataset.shards}")
    if resource.spec.training.validation or resource.spec.evaluation is not None:
        argv.append("--require_val")
    return Command(argv, f"{folder}/train")


def _actions(actions: ActionsSpec | None) -> list[str]:
    """Return the flags of the actions to read; those that have their default are left out."""
    if actions is None:
        return []
    relative = actions.representation == "RelativePose"
    return [
        *("--actions", *actions.columns),
        *(("--action_names", *actions.names) if actions.names else ()),
        *(("--action_representation", "relative_pose") if relative else ()),
        *(("--action_normalization", "published") if actions.normalization == "Published" else ()),
    ]


def _validation_percent(percent: int) -> list[str]:
    return ["--val_percent", str(percent)] if percent else []


def _lerobot(lerobot: LeRobotDataset) -> list[str]:
    """Return the flags of the source; those that are not set are left out."""
    values = {
        "--repo_id": lerobot.repo_id,
        "--data_dir": lerobot.path and lerobot.path.rstrip("/"),
        "--revision": lerobot.revision,
        "--subfolder": lerobot.subfolder and lerobot.subfolder.rstrip("/"),
        "--camera": lerobot.camera,
        "--caption": lerobot.caption,
        "--caption_file": lerobot.caption_file,
    }
    flags = [part for name, value in values.items() if value for part in (name, value)]
    for name, episodes in (
        ("--episode_ids", lerobot.episodes),
        ("--val_episode_ids", lerobot.validation_episodes),
    ):
        flags += [name, *map(str, episodes)] if episodes else []
    percent = _validation_percent(lerobot.validation_percent)
    return [*flags, *percent, *_windows(lerobot.window_seconds)]


def _windows(seconds: float) -> list[str]:
    # The rest of an episode joins the last window, unless it is at least half a window long.
    return ["--window-size", f"{seconds:g}", "--min-last-window", f"{1.5 * seconds:g}"]


def _splits(resource: Video2WorldPostTrain) -> list[str]:
    return [f"{resource.dataset_dir}/train", f"{resource.dataset_dir}/val"]


def _captions(resource: Video2WorldPostTrain, captions: CaptionsSpec) -> Command:
    argv = _python(
        "video2world_preprocess.captions",
        *("--dataset_path", *_splits(resource)),
        f"--endpoint={captions.endpoint}",
        f"--model={captions.model}",
        *([f"--prompt={captions.prompt}"] if captions.prompt else []),
        *("--frames_per_second", f"{captions.frames_per_second:g}"),
        *("--max_frames", captions.max_frames, "--max_tokens", captions.max_tokens),
        *(["--structured_output"] if captions.structured_output else []),
        f"--parallel_requests={captions.parallel_requests}",
        f"--timeout_seconds={captions.timeout_seconds}",
        f"--max_failed_percent={captions.max_failed_percent}",
        # Tiny's tokenizer takes a token per letter
        *(() if resource.spec.tiny else ("--cache_dir", _text_encoder(resource))),
    )
    return Command(argv, f"{resource.dataset_dir}/train/captions")


def _embeddings(resource: Video2WorldPostTrain) -> Command:
    captions = resource.spec.dataset.captions
    argv = _python(
        "video2world_preprocess.embeddings",
        *("--dataset_path", *_splits(resource)),
        *("--max_length", 512, "--cache_dir", _text_encoder(resource)),
        *([f"--captioned_by={captions.model}"] if captions else []),
    )
    return Command(argv, f"{resource.dataset_dir}/train/t5_xxl")


def _latents(resource: Video2WorldPostTrain) -> Command:
    spec = resource.spec
    sizes = dict.fromkeys(phase.video_size for phase in reversed(spec.phases))  # final first
    argv = _python(
        "video2world_preprocess.latents",
        *("--dataset_path", *_splits(resource)),
        *("--vae_path", f"{_base(resource)}/tokenizer"),
        *("--num_frames", spec.num_frames),
        *(part for size in sizes for part in ("--video_size", *size)),
        *("--geometry", spec.model.geometry.lower()),
        *("--clips_per_window", spec.training.clips_per_window, "--seed", spec.training.seed),
    )
    folders = [latents_folder(size, spec.video_size) for size in sizes]
    return Command(argv, *(f"{resource.dataset_dir}/train/{folder}" for folder in folders))


def _train(resource: Video2WorldPostTrain) -> Command:
    spec, training = resource.spec, resource.spec.training
    height, width, time = spec.rope_ratios
    net = "model.config.pipe_config.net"
    settings: dict[str, Any] = {
        "experiment": training.experiment,
        "job.project": "posttraining",
        "job.group": "video2world",
        "job.name": resource.job_name,
        "model.size": spec.model.size,
        "model.geometry": spec.model.geometry.lower(),
        "model.config.model_manager_config.dit_path": _weights(resource),
        "model.config.train_architecture": training.architecture.lower(),
        "model.config.pipe_config.ema.enabled": training.ema,
        f"{net}.rope_h_extrapolation_ratio": height,
        f"{net}.rope_w_extrapolation_ratio": width,
        f"{net}.rope_t_extrapolation_ratio": time,
        f"{net}.atten_backend": _ATTENTION.get(training.attention),
        "model_parallel.context_parallel_size": spec.context_parallel,
        "dataloader_train.dataset.dataset_dir": f"{resource.dataset_dir}/train",
        "dataloader_train.dataset.num_frames": spec.num_frames,
        "dataloader_train.dataset.video_size": "[{},{}]".format(*spec.video_size),
        "dataloader_train.batch_size": training.batch_size,
        "optimizer.lr": spec.learning_rate,
        "scheduler.warm_up_steps": spec.warmup_iterations,
        "trainer.seed": training.seed,
        "trainer.max_iter": spec.iterations,
        "trainer.phases": _phases(spec),
        "trainer.timeout_seconds": training.hang_timeout_seconds,
        "optimizer.clip_norm": training.gradient_clip_norm,
        "checkpoint.save_iter": str(training.checkpoint.every_iterations).lower(),
        "checkpoint.keep": training.checkpoint.keep,
    }
    if training.architecture == "LoRA":
        settings["model.config.lora_rank"] = training.lora.rank
        settings["model.config.lora_alpha"] = training.lora.alpha
    settings["model.action_conditioning"] = _conditioning(training)
    settings |= _validation(training)
    if training.gradient_accumulation > 1:
        settings["trainer.grad_accum_iter"] = training.gradient_accumulation
    if spec.sparse:
        settings["model.attention_pattern"] = "sparse"
    if training.stop_when_diverged:
        settings["trainer.stop_when_diverged"] = True
    if spec.model.lora_alpha is not None:
        settings["model.config.model_manager_config.lora_alpha"] = spec.model.lora_alpha
    settings |= passed_on(training.overrides)
    argv = _python("video2world_trainer.launch", "-m", "video2world_trainer.train")
    argv += [f"{name}={_shown(value)}" for name, value in settings.items() if value is not None]
    return Command(argv, f"{run_folder(resource)}/latest_checkpoint.txt")


def accumulating(argv: tuple[str, ...], factor: int) -> tuple[str, ...]:
    """Return the train command with ``factor`` times as many accumulated batches per step."""
    if factor == 1:
        return argv
    kept = [a for a in argv if not a.startswith(_ACCUMULATION)]
    own = [int(a.removeprefix(_ACCUMULATION)) for a in argv if a.startswith(_ACCUMULATION)]
    return (*kept, f"{_ACCUMULATION}{factor * (own or [1])[-1]}")


def _conditioning(training: TrainingSpec) -> str | None:
    conditioning = training.conditioning
    return _CONDITIONING[conditioning.actions.variant] if conditioning else None


def _phases(spec: Spec) -> str | None:
    """Write the phases without the last one's length, as a run that is made longer is the same."""
    *earlier, last = spec.phases
    if not earlier:
        return None
    sizes = [[*phase.video_size, phase.iterations] for phase in earlier]
    return json.dumps([*sizes, list(last.video_size)], separators=(",", ":"))


def _validation(training: TrainingSpec) -> dict[str, Any]:
    validation = training.validation
    if validation is None:
        return {}
    return {
        "trainer.run_validation": True,
        "trainer.validation_iter": validation.every_iterations,
        "trainer.validation_clips": validation.clips,
        "trainer.validation_levels": validation.levels,
        "trainer.validation_weights": validation.weights.lower(),
        "trainer.stop_after_validations": training.stop_when.validation_loss_not_better_for,
    }


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value) if isinstance(value, float) else str(value)


def _inference(resource: Video2WorldPostTrain) -> Command:
    inference = resource.spec.inference
    return _sweep(resource, inference.names, inference.pods(inference.count), passing=False)


def _sweep(
    resource: Video2WorldPostTrain, checkpoints: list[str], pods: int, *, passing: bool
) -> Command:
    inference = resource.spec.inference
    argv = _python(
        "video2world_trainer.sweep",
        *("--run_folder", run_folder(resource), "--checkpoints", *checkpoints),
        *("--batch_input_json", "$(V2W_CONFIG_DIR)/samples.json"),
        *(["--by_checkpoint"] if inference.by_checkpoint else []),
        *(["--pass_over_missing"] if passing else []),
        *(["--lora_alpha", f"{alpha:g}"] if (alpha := inference.lora_alpha) else []),
        *([f"--shards={pods}"] if pods > 1 else []),
        "--",
        *_generation_flags(resource),
    )
    return Command(argv, f"results/{resource.job_name}")


def _evaluation(resource: Video2WorldPostTrain, evaluation: EvaluationSpec) -> Command:
    spec, base = resource.spec, _weights(resource)
    folder = f"results/{resource.job_name}/evaluation"
    lpips = evaluation.lpips_weights
    argv = _python(
        "video2world_trainer.evaluate",
        *("--run_folder", run_folder(resource), "--checkpoints", *evaluation.names),
        *(("--base_weights", base) if base else ()),
        *("--dataset_dir", resource.dataset_dir, "--samples", evaluation.samples),
        *("--metrics", *(METRIC_FLAGS[name] for name in evaluation.metrics)),
        *(("--lpips_weights", lpips) if lpips else ()),
        *(["--fail_when_actions_ignored"] if evaluation.fail_when_actions_ignored else []),
        *("--save_dir", folder, "--seed", spec.inference.seed),
        *(["--lora_alpha", f"{alpha:g}"] if (alpha := spec.inference.lora_alpha) else []),
        "--",
        *_generation_flags(resource),
    )
    return Command(argv, f"{folder}/evaluation.json")


def _generation_flags(resource: Video2WorldPostTrain) -> list[object]:
    """Return the flags of the inference command that all videos of a resource share."""
    spec, inference = resource.spec, resource.spec.inference
    return [
        *("--model_size", spec.model.size),
        *([] if spec.tiny else _size_flags(resource)),  # Tiny's frame size and rate are fixed
        *("--num_conditional_frames", inference.num_conditional_frames),
        *("--seed", inference.seed, "--guidance", f"{spec.guidance:g}"),
        *(("--num_steps", inference.steps) if inference.steps != 35 else ()),
        *(["--load_ema"] if inference.weights == "EMA" else []),
        *(["--approximate"] if inference.mode == "Approximate" else []),
        *([f"--num_gpus={inference.gpus}"] if inference.gpus > 1 else []),
        *(["--offload"] if inference.offload else []),
        *("--vae_path", f"{_base(resource)}/tokenizer"),
        *([] if spec.per_clip else ["--text_encoder_path", _text_encoder(resource)]),
        *("--frames", inference.frames_from.lower()),
    ]
