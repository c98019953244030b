"""The real API server accepts and refuses by each rule of the API."""

from __future__ import annotations

import pytest

from control_plane import ApiError
from operators import Resource
from video2world_operator.api.crd_schema import build
from video2world_operator.api.errors import InvalidResource
from video2world_operator.api.mutability import CHANGEABLE, IMMUTABLE, SUSPENDED
from video2world_operator.api.spec import Spec
from video2world_operator.api.validation import parse

AGIBOT = {"agibot": {"path": "datasets/agibot"}}
HELD_OUT = {"dataset": {"agibot": {"path": "datasets/agibot", "validationEpisodeIDs": [1]}}}


def spec(**changes):
    return Resource.body(**changes)["spec"]


def refused(cluster, namespace, body):
    """The API server's error for ``body``; None if it accepts it."""
    path = Resource(cluster, namespace).path
    try:
        cluster.admin.post(f"{path}?dryRun=All&fieldValidation=Strict", body)
    except ApiError as error:
        return str(error)
    return None


CAPTIONS = {"captions": {"endpoint": "http://vllm/v1", "model": "vlm"}}
EXPERIMENT = "predict2_video2world_training_2b_agibot_head_center_fisheye_color"
TWO_PHASES = [{"resolution": "480p", "iterations": 2}, {"resolution": "720p", "iterations": 3}]
GPU = {"model": {"size": "2B"}}
MULTIKUEUE = {"managedBy": "kueue.x-k8s.io/multikueue"}
WORDS = {"captionFile": "words.csv"}
TO_CAPTION = {"path": "c", "caption": "Endpoint"}
ACTIONS = {"columns": ["action"]}
WITH_ACTIONS = {"agibot": {"path": "datasets/agibot"}, "actions": ACTIONS}
HELD_OUT_ACTIONS = HELD_OUT["dataset"] | {"actions": ACTIONS}
PER_FRAME = {"conditioning": {"actions": {}}}
AUTOMATIC = {"checkpoint": {"everyIterations": "Auto"}}
CONDITIONED = {"dataset": WITH_ACTIONS, "training": PER_FRAME}


CLAIMS = {"resourceClaims": [{"name": "gpus", "resourceClaimTemplateName": "one"}]}
ON_GPU = {"device": "GPU"}
LIMIT = {"resources": {"limits": {"nvidia.com/gpu": 1}}}


def per_clip(**changes):
    """A spec of the published action-conditioned network, with changes of its sections."""
    training = {"nodes": 1, "gpusPerNode": 8, "conditioning": {"actions": {"variant": "PerClip"}}}
    base = {"model": {"size": "2B"}, "dataset": WITH_ACTIONS, "training": training}
    sections = {*base, *changes}
    return {name: base.get(name, {}) | changes.get(name, {}) for name in sections}


CASES = {
    "fewer nodes than all": (
        {"training": {"nodes": 4, "minNodes": 2}},
        {"training": {"nodes": 4, "minNodes": 5}},
        "training.minNodes is more than training.nodes",
    ),
    "node counts that keep the global batch": (
        {"training": {"nodes": 6, "minNodes": 3}},
        {"training": {"nodes": 6, "minNodes": 4}},
        "no smaller node count divides training.nodes",
    ),
    "claims of the group, once": (
        {"training": ON_GPU | CLAIMS, "stages": {"latents": CLAIMS, "train": {"env": []}}},
        {"training": ON_GPU | CLAIMS, "stages": {"train": CLAIMS}},
        "stages.train.resourceClaims is set together with training.resourceClaims",
    ),
    "claims of stages with GPUs": (
        {"training": ON_GPU, "stages": {"train": CLAIMS, "evaluation": CLAIMS}},
        {"training": ON_GPU, "stages": {"captions": CLAIMS}},
        "the stages download, dataset, captions use no GPU",
    ),
    "claims on a CPU": (
        {"training": ON_GPU, "stages": {"inference": CLAIMS}},
        {"stages": {"inference": CLAIMS}},
        "the device is CPU; remove them",
    ),
    "claims of the group on a CPU": (
        {"training": ON_GPU | CLAIMS},
        {"training": CLAIMS | {"device": "CPU"}},
        "the device is CPU; remove them",
    ),
    "claims or a limit": (
        {"training": ON_GPU | CLAIMS, "stages": {"latents": LIMIT}},
        {"training": ON_GPU | CLAIMS, "stages": {"train": LIMIT}},
        "nvidia.com/gpu is set together with resourceClaims",
    ),
    "claims or a request": (
        {"training": ON_GPU, "stages": {"latents": CLAIMS | {"resources": {"limits": {"a": 1}}}}},
        {
            "training": ON_GPU,
            "stages": {"latents": CLAIMS | {"resources": {"requests": {"nvidia.com/gpu": "0"}}}},
        },
        "nvidia.com/gpu is set together with resourceClaims",
    ),
    "claims have names of their own": (
        {
            "training": ON_GPU
            | {"resourceClaims": [CLAIMS["resourceClaims"][0] | {"name": n} for n in "ab"]}
        },
        {"training": ON_GPU | {"resourceClaims": CLAIMS["resourceClaims"] * 2}},
        "Duplicate value",
    ),
    "a claim has a template": (
        {"training": ON_GPU | {"resourceClaims": [CLAIMS["resourceClaims"][0] | {"request": "a"}]}},
        {"training": ON_GPU | {"resourceClaims": [{"name": "gpus"}]}},
        "resourceClaimTemplateName: Required value",
    ),
    "actions are those of a robot's recordings": (
        {"dataset": {"agibot": None, "lerobot": {"path": "c"}, "actions": ACTIONS}},
        {"dataset": {"agibot": None, "videos": {"path": "c"}, "actions": ACTIONS}},
        "dataset.actions: they are read from agibot and lerobot only",
    ),
    "columns of actions differ": (
        {"dataset": WITH_ACTIONS | {"actions": {"columns": ["a", "b"], "names": ["x", "y"]}}},
        {"dataset": WITH_ACTIONS | {"actions": {"columns": ["a", "a"]}}},
        "a column or name is listed twice",
    ),
    "names of actions differ": (
        {"dataset": WITH_ACTIONS | {"actions": ACTIONS | {"names": ["a b", "a.b"]}}},
        {"dataset": WITH_ACTIONS | {"actions": ACTIONS | {"names": ["x", "y", "x"]}}},
        "a column or name is listed twice",
    ),
    "published normalization": (
        {
            "dataset": WITH_ACTIONS
            | {
                "actions": ACTIONS
                | {"representation": "RelativePose", "normalization": "Published"}
            }
        },
        {"dataset": WITH_ACTIONS | {"actions": ACTIONS | {"normalization": "Published"}}},
        "normalization: Published scales the seven numbers of relative poses",
    ),
    "conditioning needs actions": (
        CONDITIONED,
        {"training": PER_FRAME},
        "training.conditioning: the dataset has no actions",
    ),
    "conditioning on actions of Bridge": (
        {"dataset": {"agibot": None, "bridge": {"path": "c"}}, "training": PER_FRAME},
        {"dataset": {"agibot": None, "videos": {"path": "c"}}, "training": PER_FRAME},
        "training.conditioning: the dataset has no actions",
    ),
    "actions of samples are followed": (
        CONDITIONED | {"inference": {"samples": [{"input": "a.png", "actions": "moves/left.csv"}]}},
        {"inference": {"samples": [{"input": "a.png", "actions": "moves/left.csv"}]}},
        "inference.samples.actions: the model is not conditioned on actions",
    ),
    "actions of a sample stay on the volume": (
        CONDITIONED | {"inference": {"samples": [{"input": "a.png", "actions": "a..b/l.csv"}]}},
        CONDITIONED | {"inference": {"samples": [{"input": "a.png", "actions": "a/../l.csv"}]}},
        "without ..",
    ),
    "every sample has actions": (
        CONDITIONED | {"inference": {"samples": [{"input": "val/videos/a.mp4"}]}},
        CONDITIONED | {"inference": {"samples": [{"input": "mine/a.mp4"}]}},
        "inference.samples.actions: missing",
    ),
    "the last frames have no actions": (
        CONDITIONED
        | {
            "inference": {
                "samples": [{"input": "val/videos/a.mp4", "actions": "a.csv"}],
                "framesFrom": "Last",
            }
        },
        CONDITIONED
        | {"inference": {"samples": [{"input": "val/videos/a.mp4"}], "framesFrom": "Last"}},
        "inference.framesFrom: Last leaves no actions of the input",
    ),
    "only actions can be ignored": (
        {
            "dataset": HELD_OUT_ACTIONS,
            "training": PER_FRAME,
            "evaluation": {"failWhenActionsIgnored": True},
        },
        {"dataset": HELD_OUT_ACTIONS, "evaluation": {"failWhenActionsIgnored": True}},
        "evaluation.failWhenActionsIgnored: the model is not conditioned on actions",
    ),
    "PerClip is 2B": (
        per_clip(),
        per_clip(model={"size": "Tiny"}),
        "PerClip is a network of size 2B",
    ),
    "PerClip and experiments": (
        CONDITIONED
        | {
            "model": {"size": "2B"},
            "training": PER_FRAME | {"nodes": None, "experiment": EXPERIMENT},
        },
        per_clip(training=per_clip()["training"] | {"experiment": EXPERIMENT}),
        "training.experiment sets another frame size",
    ),
    "PerClip has one resolution": (
        per_clip(model={"geometry": "Stretch"}),
        per_clip(model={"resolution": "480p"}),
        "PerClip has clips of 13 frames of 480x640",
    ),
    "PerClip has one frame rate": (
        per_clip(),
        per_clip(model={"fps": 10}),
        "PerClip has clips of 13 frames of 480x640",
    ),
    "PerClip has no phases": (
        per_clip(training=per_clip()["training"] | {"phases": []}),
        per_clip(training=per_clip()["training"] | {"iterations": 5, "phases": TWO_PHASES}),
        "training.phases: PerClip has one frame size",
    ),
    "PerClip is dense": (
        per_clip(training=per_clip()["training"] | {"attentionPattern": "Dense"}),
        per_clip(training=per_clip()["training"] | {"attentionPattern": "Sparse"}),
        "training.attentionPattern: Sparse weights exist for 720p only, and PerClip",
    ),
    "PerClip has four latent frames": (
        per_clip(training=per_clip()["training"] | {"contextParallelSize": 4}),
        per_clip(training=per_clip()["training"] | {"contextParallelSize": 8}),
        "training.contextParallelSize: the GPUs share the 4 latent frames",
    ),
    "PerClip needs no captions": (
        CONDITIONED | {"dataset": WITH_ACTIONS | CAPTIONS},
        per_clip(dataset=WITH_ACTIONS | CAPTIONS),
        "dataset.captions: PerClip has no text",
    ),
    "PerClip has no prompts": (
        per_clip(inference={"samples": [{"input": "val/videos/a.mp4", "prompt": ""}]}),
        per_clip(inference={"samples": [{"input": "val/videos/a.mp4", "prompt": "a cup"}]}),
        "inference.samples: PerClip has no text",
    ),
    "PerClip continues one frame": (
        per_clip(inference={"numConditionalFrames": 1}),
        per_clip(inference={"numConditionalFrames": 5}),
        "inference.numConditionalFrames: PerClip continues one frame",
    ),
    "GPUs of a sample of PerClip": (
        per_clip(inference={"gpus": 4}),
        per_clip(inference={"gpus": 8}),
        "inference.gpus: they share the 4 latent frames",
    ),
    "one data set": (
        {"dataset": {"agibot": None, "prepared": {"path": "x"}}},
        {"dataset": {"prepared": {"path": "x"}}},
        "exactly one of",
    ),
    "captions are not for a prepared data set": (
        {"dataset": {"agibot": None, "videos": {"path": "x"}, **CAPTIONS}},
        {"dataset": {"agibot": None, "prepared": {"path": "x"}, **CAPTIONS}},
        "a prepared dataset is not changed; remove captions",
    ),
    "one place of a LeRobotDataset": (
        {"dataset": {"agibot": None, "lerobot": {"repoID": "a/b", "revision": "v3.0"}}},
        {"dataset": {"agibot": None, "lerobot": {"repoID": "a/b", "path": "c"}}},
        "set exactly one of repoID and path",
    ),
    "revision of a repository": (
        {"dataset": {"agibot": None, "lerobot": {"path": "c"}}},
        {"dataset": {"agibot": None, "lerobot": {"path": "c", "revision": "v3.0"}}},
        "revision is that of a repository",
    ),
    "file of captions": (
        {"dataset": {"agibot": None, "lerobot": {"path": "c", "caption": "File"} | WORDS}},
        {"dataset": {"agibot": None, "lerobot": {"path": "c"} | WORDS}},
        "caption: File and captionFile belong together",
    ),
    "captions of an endpoint": (
        {"dataset": {"agibot": None, "lerobot": TO_CAPTION, **CAPTIONS}},
        {"dataset": {"agibot": None, "lerobot": TO_CAPTION}},
        "caption: Endpoint leaves the captions to dataset.captions",
    ),
    "ranges of episodes": (
        {"dataset": {"agibot": None, "lerobot": {"path": "c", "episodes": [1, "2-30"]}}},
        {"dataset": {"agibot": None, "lerobot": {"path": "c", "episodes": [1, "30-2"]}}},
        "ends before it begins",
    ),
    "size or experiment": (
        {
            "model": {"size": None},
            "training": {
                "iterations": None,
                "nodes": None,
                "experiment": EXPERIMENT,
            },
        },
        {"model": {"size": None}},
        "model.size is missing",
    ),
    "size and experiment": (
        {"model": {"size": "2B"}, "training": {"nodes": None, "experiment": EXPERIMENT}},
        {"model": {"size": "14B"}, "training": {"nodes": None, "experiment": EXPERIMENT}},
        "model.size contradicts",
    ),
    "data set or override": (
        {
            "dataset": None,
            "training": {"overrides": ["dataloader_train.dataset.dataset_dir=datasets/a"]},
        },
        {"dataset": None},
        "dataset is missing",
    ),
    "overrides": (
        {"training": {"overrides": ["optimizer.weight_decay=0.1"]}},
        {"training": {"overrides": ["optimizer.weight_decoy=0.1"]}},
        "write an override as name=value",
    ),
    "fractions as bounds": (
        {"model": {"ropeRatio": 1}},
        {"model": {"ropeRatio": 0}},
        "write a number from",
    ),
    "fractions as bounds of alpha": (
        {"model": {"loraAlpha": 1}},
        {"model": {"loraAlpha": 0}},
        "write a number from 0.001",
    ),
    "iterations": ({}, {"training": {"iterations": None}}, "training.iterations is missing"),
    "context parallel": (
        {**GPU, "training": {"gpusPerNode": 8, "contextParallelSize": 4}},
        {**GPU, "training": {"gpusPerNode": 8, "contextParallelSize": 3}},
        "contextParallelSize must divide",
    ),
    "context parallel and heads": (
        {"model": {"size": "14B"}, "training": {"gpusPerNode": 8, "contextParallelSize": 8}},
        {**GPU, "training": {"nodes": 3, "gpusPerNode": 8, "contextParallelSize": 12}},
        "attention heads",
    ),
    "CPU is for Tiny": (
        {"training": {"device": "CPU"}},
        {**GPU, "training": {"device": "CPU", "gpusPerNode": 8}},
        "CPU can train",
    ),
    "sparse weights exist for 720p": (
        {**GPU, "training": {"gpusPerNode": 8, "attentionPattern": "Sparse"}},
        {
            "model": {"size": "2B", "resolution": "480p"},
            "training": {"gpusPerNode": 8, "attentionPattern": "Sparse"},
        },
        "Sparse weights exist for 720p only",
    ),
    "sparse phases": (
        {
            "model": {"size": "2B"},
            "training": {
                "gpusPerNode": 8,
                "attentionPattern": "Sparse",
                "iterations": 5,
                "phases": [{"resolution": "720p"}],
            },
        },
        {
            "model": {"size": "2B"},
            "training": {
                "gpusPerNode": 8,
                "attentionPattern": "Sparse",
                "iterations": 5,
                "phases": TWO_PHASES,
            },
        },
        "Sparse weights exist for 720p only",
    ),
    "phases set the resolution": (
        {"training": {"iterations": 5, "phases": TWO_PHASES}},
        {
            "model": {"resolution": "720p"},
            "training": {"iterations": 5, "phases": TWO_PHASES},
        },
        "model.resolution is set together with training.phases",
    ),
    "phases have iterations": (
        {"training": {"iterations": None, "phases": TWO_PHASES}},
        {"training": {"iterations": 5, "phases": [{"resolution": "480p"}, *TWO_PHASES[1:]]}},
        "iterations are missing",
    ),
    "phases differ": (
        {"training": {"iterations": 7, "phases": [*TWO_PHASES, *TWO_PHASES[:1]]}},
        {"training": {"iterations": 8, "phases": [*TWO_PHASES, *TWO_PHASES[1:]]}},
        "have the same resolution",
    ),
    "phases add up": (
        {"training": {"iterations": 6, "phases": [*TWO_PHASES[:1], {"resolution": "720p"}]}},
        {"training": {"iterations": 6, "phases": TWO_PHASES}},
        "training.iterations contradicts training.phases",
    ),
    "the last phase has iterations": (
        {"training": {"iterations": 3, "phases": [*TWO_PHASES[:1], {"resolution": "720p"}]}},
        {"training": {"iterations": 2, "phases": [*TWO_PHASES[:1], {"resolution": "720p"}]}},
        "training.iterations contradicts training.phases",
    ),
    "sparse kernels": (
        {"training": {"attention": "FlashAttention4", "attentionPattern": "Sparse"}},
        {"training": {"attention": "Torch", "attentionPattern": "Sparse"}},
        "has no Sparse attention",
    ),
    "published weights have a pattern": (
        {
            "model": {"size": "2B", "weights": "mine/model-720p-16fps-natten.pt"},
            "training": {"gpusPerNode": 8, "attentionPattern": "Sparse"},
        },
        {
            "model": {"size": "2B", "weights": "mine/model-720p-16fps.pt"},
            "training": {"gpusPerNode": 8, "attentionPattern": "Sparse"},
        },
        "training.attentionPattern contradicts model.weights",
    ),
    "published weights of sparse attention": (
        {"model": {"weights": "my-model-720p-16fps-natten.pt"}},
        {"model": {"weights": "model-720p-16fps-natten.pt"}},
        "training.attentionPattern contradicts model.weights",
    ),
    "access mode": (
        {"storage": {"accessMode": "ReadWriteMany"}},
        {"storage": {"accessMode": "ReadWriteOncePod"}},
        "does not allow several pods",
    ),
    "paths stay on the volume": (
        {"dataset": {"agibot": {"path": "a/b..c"}}},
        {"dataset": {"agibot": {"path": "a/../b"}}},
        "without ..",
    ),
    "the checkpoint stays on the volume": (
        {"inference": {"checkpoint": "mine/w.pt"}},
        {"inference": {"checkpoint": "a/../../w.pt"}},
        "without ..",
    ),
    "absolute paths": (
        {"dataset": {"agibot": {"path": "a"}}},
        {"dataset": {"agibot": {"path": "/a"}}},
        "dataset.agibot.path",
    ),
    "variables of the plan": (
        {"stages": {"train": {"env": [{"name": "NCCL_DEBUG", "value": "INFO"}]}}},
        {"stages": {"train": {"env": [{"name": "PET_NNODES", "value": "2"}]}}},
        "set by the operator",
    ),
    "WORLD_SIZE is the plan's": (
        {"stages": {"train": {"env": [{"name": "MY_WORLD_SIZE", "value": "2"}]}}},
        {"stages": {"train": {"env": [{"name": "WORLD_SIZE", "value": "2"}]}}},
        "set by the operator",
    ),
    "a variable once": (
        {"stages": {"train": {"env": [{"name": "A", "value": "1"}, {"name": "B", "value": "1"}]}}},
        {"stages": {"train": {"env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]}}},
        "Duplicate value",
    ),
    "checkpoint or checkpoints": (
        {"inference": {"checkpoints": ["latest", 500, "all", "a/b..c/w.pt", ".x/w.pt"]}},
        {"inference": {"checkpoint": "latest", "checkpoints": [500]}},
        "inference.checkpoint and inference.checkpoints are both set; keep one",
    ),
    "checkpoints stay on the volume": (
        {"inference": {"checkpoints": ["..a/w.pt"]}},
        {"inference": {"checkpoints": ["a/../../w.pt"]}},
        "inference.checkpoints[0]",
    ),
    "iterations of checkpoints": (
        {"inference": {"checkpoints": [0]}},
        {"inference": {"checkpoints": [-1]}},
        "inference.checkpoints[0]",
    ),
    "every checkpoint needs samples": (
        {"inference": {"everyCheckpoint": True}},
        {"inference": {"everyCheckpoint": True, "samples": []}},
        "there is nothing to generate; add inference.samples",
    ),
    "averaged weights are kept": (
        {"inference": {"weights": "EMA"}},
        {"inference": {"weights": "EMA"}, "training": {"ema": False}},
        "EMA weights are not saved with training.ema: false",
    ),
    "GPUs of a sample": (
        {**GPU, "training": {"gpusPerNode": 8}, "inference": {"gpus": 16}},
        {**GPU, "training": {"gpusPerNode": 8}, "inference": {"gpus": 3}},
        "inference.gpus, half of them if guidance is above 0 and they are even, must divide",
    ),
    "GPUs of a sample without guidance": (
        {"inference": {"gpus": 4, "guidance": 0}},
        {"inference": {"gpus": 8, "guidance": 0}},
        "must divide the attention heads",
    ),
    "a volume for training and samples": (
        {"storage": {"accessMode": "ReadWriteMany"}, "inference": {"everyCheckpoint": True}},
        {
            "storage": {"accessMode": "ReadWriteOncePod"},
            "training": {"nodes": 1},
            "inference": {"everyCheckpoint": True},
        },
        "does not allow several pods",
    ),
    "outputs end in mp4": (
        {"inference": {"samples": [{"input": "a", "output": "a.mp4"}]}},
        {"inference": {"samples": [{"input": "a", "output": "a.avi"}]}},
        "output",
    ),
    "outputs differ": (
        {"inference": {"samples": [{"input": "a", "output": "a.mp4"}, {"input": "a"}]}},
        {
            "inference": {
                "samples": [{"input": "a", "output": "a.mp4"}, {"input": "b", "output": "a.mp4"}]
            }
        },
        "the same output",
    ),
    "prompts fit an annotation": (
        {"inference": {"samples": [{"input": "a", "prompt": "x" * 4096}] * 20}},
        {"inference": {"samples": [{"input": "a", "prompt": "x" * 4096}] * 30}},
        "characters",
    ),
    "evaluation needs held-out windows": (
        {"evaluation": {}} | HELD_OUT,
        {"evaluation": {}, "dataset": {"agibot": {"taskIDs": [327]}}},
        "no windows are held out",
    ),
    "evaluated iterations": (
        {"evaluation": {"checkpoints": [5, "latest"]}, "training": {"iterations": 5}} | HELD_OUT,
        {"evaluation": {"checkpoints": ["6"]}, "training": {"iterations": 5}} | HELD_OUT,
        "one comes after training.iterations",
    ),
    "validation needs held-out windows": (
        # a run shorter than the interval is validated at its start and end
        {"training": {"iterations": 4, "validation": {"everyIterations": 5}}} | HELD_OUT,
        {"training": {"validation": {"everyIterations": 5}}},
        "training.validation: there are no held-out windows",
    ),
    "a percentage is held out": (
        {
            "training": {"validation": {"everyIterations": 5}},
            "dataset": {"agibot": {"path": "datasets/agibot", "validationPercent": 10}},
        },
        {
            "training": {"validation": {"everyIterations": 5}},
            "dataset": {"agibot": {"path": "datasets/agibot", "validationPercent": 0}},
        },
        "training.validation: there are no held-out windows",
    ),
    "validation of averaged weights": (
        {"training": {"validation": {"everyIterations": 5, "weights": "EMA"}}} | HELD_OUT,
        {"training": {"ema": False, "validation": {"everyIterations": 5, "weights": "EMA"}}}
        | HELD_OUT,
        "there are no EMA weights with training.ema: false",
    ),
    "stopping by the validation loss": (
        {
            "training": {
                "validation": {"everyIterations": 5},
                "stopWhen": {"validationLossNotBetterFor": 3},
            }
        }
        | HELD_OUT,
        {"training": {"stopWhen": {"validationLossNotBetterFor": 3}}} | HELD_OUT,
        "training.stopWhen.validationLossNotBetterFor: nothing is validated",
    ),
    "the best checkpoint for inference": (
        {
            "inference": {"checkpoint": "best"},
            "training": {"validation": {"everyIterations": 5}},
        }
        | HELD_OUT,
        {"inference": {"checkpoint": "best"}} | HELD_OUT,
        "inference.checkpoint: best is the checkpoint with the least validation loss",
    ),
    "the best checkpoint to evaluate": (
        {
            "evaluation": {"checkpoints": ["best"]},
            "training": {"validation": {"everyIterations": 5}},
        }
        | HELD_OUT,
        {"evaluation": {"checkpoints": ["best"]}} | HELD_OUT,
        "evaluation.checkpoints: best is the checkpoint with the least validation loss",
    ),
    "an automatic interval": (
        {"training": {"checkpoint": {"everyIterations": "Auto"}}},
        {"training": {"checkpoint": {"everyIterations": "auto"}}},
        "spec.training.checkpoint.everyIterations",
    ),
    "an interval of at least one iteration": (
        {"training": {"checkpoint": {"everyIterations": 1}}},
        {"training": {"checkpoint": {"everyIterations": 0}}},
        "spec.training.checkpoint.everyIterations",
    ),
    "an iteration that may have no checkpoint": (
        {"inference": {"checkpoint": "5"}, "training": {"iterations": 5} | AUTOMATIC},
        {"inference": {"checkpoint": "4"}, "training": {"iterations": 5} | AUTOMATIC},
        "inference.checkpoint: with training.checkpoint.everyIterations: Auto",
    ),
    "iterations that may have no checkpoint": (
        {"inference": {"checkpoints": ["latest", 5]}, "training": {"iterations": 5} | AUTOMATIC},
        {"inference": {"checkpoints": ["latest", 4]}, "training": {"iterations": 5} | AUTOMATIC},
        "inference.checkpoints: with training.checkpoint.everyIterations: Auto",
    ),
    "an evaluated iteration that may have no checkpoint": (
        {"evaluation": {"checkpoints": [5]}, "training": {"iterations": 5} | AUTOMATIC} | HELD_OUT,
        {"evaluation": {"checkpoints": [4]}, "training": {"iterations": 5} | AUTOMATIC} | HELD_OUT,
        "evaluation.checkpoints: with training.checkpoint.everyIterations: Auto",
    ),
    "metrics differ": (
        {"evaluation": {"metrics": ["PSNR", "SSIM"]}} | HELD_OUT,
        {"evaluation": {"metrics": ["PSNR", "PSNR"]}} | HELD_OUT,
        "a metric is named twice",
    ),
    "what MultiKueue sends waits in a queue": (
        MULTIKUEUE | {"scheduling": {"queueName": "gpus"}},
        MULTIKUEUE | {"scheduling": {"gang": "None"}},
        "scheduling.queueName: MultiKueue sends what waits in a queue",
    ),
    "what MultiKueue sends keeps its results": (
        MULTIKUEUE | {"scheduling": {"queueName": "gpus"}, "storage": {"retention": "Keep"}},
        MULTIKUEUE | {"scheduling": {"queueName": "gpus"}, "storage": {"retention": "Delete"}},
        "storage.retention: with Delete the results would be lost",
    ),
    "managers": (
        {"managedBy": "video2world.dev/operator"},
        {"managedBy": "example.com/other"},
        "Unsupported value",
    ),
    "enumerations": (
        {"training": {"attention": "FlashAttention4"}},
        {"training": {"attention": "FlashAttention9"}},
        "Unsupported value",
    ),
    "bounds": (
        {"training": {"nodes": 1024, "gpusPerNode": 1}},
        {"training": {"nodes": 1025}},
        "less than or equal to 1024",
    ),
    "unknown fields": ({}, {"training": {"iteratons": 3}}, "unknown field"),
    "sizes": ({"storage": {"size": "1.5Ti"}}, {"storage": {"size": "big"}}, "storage.size"),
    "units": ({"storage": {"size": "100k"}}, {"storage": {"size": "100K"}}, "storage.size"),
    "no size at all": ({"storage": {"size": "0.5Gi"}}, {"storage": {"size": "0.0Gi"}}, "storage"),
}


def messages(node):
    """The messages of all CEL rules in a part of the CRD."""
    if isinstance(node, dict):
        yield from (rule["message"] for rule in node.get("x-kubernetes-validations", ()))
        node = list(node.values())
    for part in node if isinstance(node, list) else ():
        yield from messages(part)


def test_every_rule_has_a_case():
    """A rule that is added in CEL only fails here, since the operator judges each case too."""
    elsewhere = ("metadata.name", "once work has begun", "only while spec.suspend is true")
    elsewhere += ("managedBy cannot be changed",)
    words = [*elsewhere, *(words for _, _, words in CASES.values())]
    assert [m for m in set(messages(build())) if not any(w in m for w in words)] == []


def cleaned(value):
    """``value`` without None, so that a case can remove a field of the base."""
    if isinstance(value, dict):
        return {k: cleaned(v) for k, v in value.items() if v is not None}
    return value


@pytest.mark.parametrize("name", CASES)
def test_rule(cluster, namespace, name):
    good, bad, words = CASES[name]
    accepted = cleaned(Resource.body(**good))
    assert refused(cluster, namespace, accepted) is None
    parse(accepted)  # the operator agrees
    reported = refused(cluster, namespace, cleaned(Resource.body(**bad)))
    assert reported is not None
    assert words in reported
    if name != "unknown fields":
        with pytest.raises(InvalidResource):
            parse(cleaned(Resource.body(**bad)))


@pytest.mark.parametrize("name", ["UPPER", "1st", "a" * 41, "a.b"])
def test_names(cluster, namespace, name):
    assert "metadata.name" in refused(cluster, namespace, Resource.body(name))
    with pytest.raises(InvalidResource):
        parse(Resource.body(name))


def test_defaults_are_the_servers(cluster, namespace):
    run = Resource(cluster, namespace).create()
    made = run.object["spec"]
    assert made["suspend"] is False
    assert made["cleanupPolicy"] == "Running"
    assert made["training"]["maxRestarts"] == 5
    assert made["storage"]["retention"] == "Keep"
    assert made["inference"]["guidance"] == 7
    parse(run.object)
    assert "status" not in run.object


# A change of every field of the spec, and of every field of spec.training, as a merge patch.
CHANGES = {
    "evaluation": {"samples": 3},
    "model": {"fps": 10},
    "dataset": {"agibot": {"camera": "head_color"}},
    "storage": {"size": "2Gi"},
    "inference": {"samples": [{"input": "other.mp4"}]},
    "credentials": {"huggingFaceTokenSecret": {"name": "other"}},
    "scheduling": {"priorityClassName": "high"},
    "images": {"trainer": "mine:2"},
    "stages": {"train": {"resources": {"limits": {"memory": "9Gi"}}}},
    "managedBy": "video2world.dev/operator",
    "suspend": True,
    "activeDeadlineSeconds": 500,
    "cleanupPolicy": "All",
    "ttlSecondsAfterFinished": 5,
}
OF_TRAINING = {
    "device": "CPU",
    "minNodes": 1,
    **CLAIMS,
    "overrides": ["trainer.max_iter=7"],
    "experiment": "predict2_video2world_training_2b_agibot_head_center_fisheye_color",
}
HOW = {
    "boolean": lambda field: not field.get("default", False),
    "integer": lambda field: max(field.get("minimum", 0), 1) + 2,
    "number": lambda field: max(field.get("minimum", 0), 0.125),
}


def training_changes():
    """Another value of every field of spec.training."""
    schema = build()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    for name, field in schema["properties"]["training"]["properties"].items():
        yield f"training.{name}", {"training": {name: OF_TRAINING.get(name) or _other(field)}}


def _other(field):
    if "enum" in field:
        return next(word for word in field["enum"][::-1] if word != field.get("default"))
    if "anyOf" in field:  # a number, or one word
        return HOW["integer"](field)
    if field["type"] == "object":
        name, inner = next(iter(field["properties"].items()))
        return {name: _other(inner)}
    if field["type"] == "array":
        return [_other(field["items"])]
    return "other" if field["type"] == "string" else HOW[field["type"]](field)


EVERY = {name: {name: change} for name, change in CHANGES.items()} | dict(training_changes())


def test_every_field_is_tried():
    fields = {f.alias or name for name, f in Spec.model_fields.items()}
    assert {name.partition(".")[0] for name in EVERY} == fields
    assert set(CHANGEABLE) <= set(EVERY)


@pytest.fixture(scope="module")
def begun(cluster):
    """A resource whose work has begun."""
    validated = {"validation": {"everyIterations": 1}, **ON_GPU}
    run = Resource(cluster, "default", "begun").create(**HELD_OUT, training=validated)
    started = {"status": {"startTime": "2026-11-24T12:00:00Z"}}
    cluster.admin.patch(f"{run.path}/begun/status", started)
    yield run
    run.delete()


@pytest.mark.parametrize("name", EVERY)
def test_once_work_has_begun_the_server_accepts_what_the_table_allows(cluster, begun, name):
    path = f"{begun.path}/begun?dryRun=All"
    when = CHANGEABLE.get(name)
    if when is not None and when != SUSPENDED:
        changed = cluster.admin.patch(path, {"spec": EVERY[name]})
        assert changed["spec"] != begun.object["spec"]
        return
    with pytest.raises(ApiError) as refused:
        cluster.admin.patch(path, {"spec": EVERY[name]})
    said = str(refused.value)
    if when == SUSPENDED:
        assert f"spec.{name} can be changed only while spec.suspend is true" in said
        cluster.admin.patch(path, {"spec": EVERY[name] | {"suspend": True}})
    elif name in IMMUTABLE:
        assert f"spec.{name} cannot be changed: delete this resource" in said
    elif name.startswith("training."):
        assert "of spec.training only" in said
        assert "can be changed once work has begun: create another resource" in said
    else:
        assert f"spec.{name} cannot be changed once work has begun" in said


@pytest.fixture(scope="module")
def fresh(cluster):
    """A resource whose work has not begun."""
    run = Resource(cluster, "default", "fresh").create()
    yield run
    run.delete()


@pytest.mark.parametrize("name", EVERY)
def test_before_work_has_begun_every_field_can_be_changed(cluster, fresh, name):
    said = ""
    try:
        cluster.admin.patch(f"{fresh.path}/fresh?dryRun=All", {"spec": EVERY[name]})
    except ApiError as error:  # by a rule on the value itself
        said = str(error)
    assert "once work has begun" not in said
    assert "only while spec.suspend" not in said


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, "kueue.x-k8s.io/multikueue"),
        ("kueue.x-k8s.io/multikueue", None),
        ("video2world.dev/operator", None),
        ("video2world.dev/operator", "kueue.x-k8s.io/multikueue"),
    ],
)
def test_the_manager_cannot_be_changed(cluster, namespace, before, after):
    queued = {"scheduling": {"queueName": "gpus"}}
    run = Resource(cluster, namespace).create(**queued, **({"managedBy": before} if before else {}))
    run.patch(training={"maxRestarts": 3})
    with pytest.raises(ApiError, match=r"spec\.managedBy cannot be changed"):
        run.patch(managedBy=after)


def test_annotations_at_their_size_limit_are_accepted(cluster, namespace):
    body = Resource.body()
    body["metadata"]["annotations"] = {"big": "x" * 262_000}
    run = Resource(cluster, namespace)
    cluster.admin.post(run.path, body)
    parse(run.object)
    cluster.admin.patch(f"{run.path}/run/status", {"status": {"restarts": 1}})
