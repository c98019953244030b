"""Mistakes about actions are reported with field and remedy; tests/cluster has the API server's."""

import pytest

from video2world_operator.api.errors import InvalidResource
from video2world_operator.api.validation import parse

ACTIONS = {"columns": ["action"]}
LEROBOT = {"lerobot": {"path": "mine", "validationEpisodes": [9]}, "actions": ACTIONS}
PER_CLIP = {"conditioning": {"actions": {"variant": "PerClip"}}}


def document(**spec):
    training = {"iterations": 10, "conditioning": {"actions": {}}} | spec.pop("training", {})
    base = {"model": {"size": "2B"}, "dataset": LEROBOT}
    return {
        "apiVersion": "video2world.dev/v1alpha1",
        "kind": "Video2WorldPostTrain",
        "metadata": {"name": "run"},
        "spec": base | spec | {"training": training},
    }


def test_the_variant_and_its_clips():
    spec = parse(document()).spec
    assert (spec.training.conditioning.actions.variant, spec.per_clip) == ("PerFrame", False)
    assert (spec.num_frames, spec.video_size, spec.guidance) == (93, (704, 1280), 7)
    spec = parse(document(training=PER_CLIP)).spec
    assert (spec.num_frames, spec.video_size, spec.resolution) == (13, (480, 640), "480p")
    assert [(one.iterations, one.video_size) for one in spec.phases] == [(10, (480, 640))]
    # without text there is no second branch of guidance, and all GPUs share the first
    assert (spec.guidance, spec.ranks_per_branch(4)) == (0, 4)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (
            {"dataset": {"videos": {"path": "v"}, "actions": ACTIONS}},
            "spec.dataset.actions: they are read from agibot and lerobot only",
        ),
        (
            {"dataset": LEROBOT | {"actions": {"columns": ["a", "a"]}}},
            "spec.dataset.actions.columns: a is listed twice; keep one",
        ),
        (
            {"dataset": LEROBOT | {"actions": ACTIONS | {"names": ["x", "y", "x"]}}},
            "spec.dataset.actions.names: x is listed twice; keep one",
        ),
        (
            {"dataset": LEROBOT | {"actions": {}}},
            "spec.dataset.actions.columns: missing",
        ),
        (
            {"dataset": LEROBOT | {"actions": {"columns": ["--x"]}}},
            "spec.dataset.actions.columns[0]: '--x' is not valid",
        ),
        (
            {"dataset": LEROBOT | {"actions": ACTIONS | {"normalization": "Published"}}},
            "spec.dataset.actions.normalization: Published scales the seven numbers of relative "
            "poses; use representation: RelativePose",
        ),
        (
            {"dataset": {"agibot": {}}},
            "spec.training.conditioning: the dataset has no actions; set dataset.actions",
        ),
        (
            {"training": {"conditioning": {}}},
            "spec.training.conditioning.actions: missing",
        ),
        (
            {"training": {"overrides": ["model.action_conditioning=per_clip"]}},
            "spec.training.overrides[0]: model.action_conditioning cannot be set: set "
            "spec.training.conditioning",
        ),
        (
            {
                "training": {"conditioning": None},
                "inference": {"samples": [{"input": "a.png", "actions": "left.csv"}]},
            },
            "spec.inference.samples[0].actions: the model is not conditioned on actions",
        ),
        (
            {"training": {"conditioning": None}, "evaluation": {"failWhenActionsIgnored": True}},
            "spec.evaluation.failWhenActionsIgnored: the model is not conditioned on actions",
        ),
        (
            {"inference": {"samples": [{"input": "val/videos/a.mp4"}, {"input": "a.png"}]}},
            "spec.inference.samples[1].actions: missing; the model follows actions, and the input "
            "a.png is no window",
        ),
        (
            {"inference": {"samples": [{"input": "val/videos/a.mp4"}], "framesFrom": "Last"}},
            "spec.inference.framesFrom: Last leaves no actions of the input to follow; set "
            "samples[0].actions, or use First",
        ),
        (
            {"inference": {"samples": [{"input": "a.png", "actions": "a/../../b.csv"}]}},
            "spec.inference.samples[0].actions: 'a/../../b.csv' leaves the volume",
        ),
        (
            {"training": PER_CLIP, "model": {"size": "14B"}},
            "spec.training.conditioning.actions.variant: PerClip is a network of size 2B, and "
            "spec.model.size is 14B; use 2B, or PerFrame",
        ),
        (
            {"training": PER_CLIP, "model": {"size": "2B", "resolution": "480p"}},
            "spec.model.resolution: PerClip has clips of 13 frames of 480x640; remove it",
        ),
        (
            {
                "training": PER_CLIP
                | {"overrides": ["dataloader_train.dataset.video_size=[432,768]"]}
            },
            "spec.model.resolution: PerClip has clips of 13 frames of 480x640; remove it",
        ),
        (
            {"training": PER_CLIP, "model": {"size": "2B", "fps": 16}},
            "spec.model.fps: PerClip has clips of 13 frames of 480x640; remove it",
        ),
        (
            {"training": PER_CLIP | {"experiment": "2b_agibot_head_center_fisheye_color"}},
            "spec.training.experiment: it sets another frame size and clip length",
        ),
        (
            {
                "training": PER_CLIP
                | {
                    "phases": [
                        {"resolution": "480p", "iterations": 5},
                        {"resolution": "720p", "iterations": 5},
                    ]
                }
            },
            "spec.training.phases: PerClip has one frame size, 480x640",
        ),
        (
            {"training": PER_CLIP | {"attentionPattern": "Sparse"}},
            "spec.training.attentionPattern: Sparse weights exist for 720p only, and",
        ),
        (
            {"training": PER_CLIP | {"contextParallelSize": 8}},
            "spec.training.contextParallelSize: 8 is not valid: the GPUs share the 4 latent frames "
            "of a PerClip clip; use 1, 2 or 4",
        ),
        (
            {
                "training": PER_CLIP,
                "dataset": LEROBOT | {"captions": {"endpoint": "http://vllm/v1", "model": "vlm"}},
            },
            "spec.dataset.captions: PerClip has no text",
        ),
        (
            {
                "training": PER_CLIP,
                "inference": {"samples": [{"input": "val/videos/a.mp4", "negativePrompt": "x"}]},
            },
            "spec.inference.samples[0].negativePrompt: PerClip has no text",
        ),
        (
            {"training": PER_CLIP, "inference": {"numConditionalFrames": 5}},
            "spec.inference.numConditionalFrames: 5 is not valid: PerClip continues one frame",
        ),
        (
            {"training": PER_CLIP, "inference": {"gpus": 8}},
            "spec.inference.gpus: 8 is not valid: they share the 4 latent frames of a PerClip "
            "clip; use 1, 2 or 4",
        ),
    ],
)
def test_mistakes(spec, expected):
    with pytest.raises(InvalidResource) as caught:
        parse(document(**spec))
    assert any(line.startswith(expected) for line in str(caught.value).splitlines()), caught.value
