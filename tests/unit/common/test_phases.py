"""Phases of a run mean the same to the resource, the latents command and the trainer."""

from pathlib import Path

import pytest

from video2world_common.latent_folders import latents_folder
from video2world_operator.api.errors import InvalidResource
from video2world_operator.api.validation import parse
from video2world_operator.plan.commands import commands
from video2world_operator.plan.plan import make_plan
from video2world_operator.plan.stage import run_hash
from video2world_operator.preflight.requirements import estimate
from video2world_preprocess import latents
from video2world_trainer.training.config_parser import read_config
from video2world_trainer.training.phases import phases_of

LOW, HIGH = (432, 768), (704, 1280)
EXPERIMENT = "predict2_video2world_training_2b_agibot_head_center_fisheye_color_480p_16fps"


def resource(**spec):
    body = {"apiVersion": "video2world.dev/v1alpha1", "kind": "Video2WorldPostTrain"}
    return parse(body | {"metadata": {"name": "a"}, "spec": {"dataset": {"agibot": {}}} | spec})


def train_settings(made):
    argv = commands(made)["train"].argv
    return argv[argv.index("video2world_trainer.train") + 1 :]


def phases(*pairs):
    names = ("resolution", "iterations")
    return [dict(zip(names, pair, strict=False)) for pair in pairs]


TWO = phases(("480p", 700), ("720p", 300))
OPEN = phases(("480p", 700), ("720p",))


@pytest.mark.parametrize(
    ("training", "expected"),
    [
        ({"iterations": 9}, [("720p", 9, HIGH)]),
        ({"phases": []} | {"iterations": 9}, [("720p", 9, HIGH)]),
        ({"phases": TWO}, [("480p", 700, LOW), ("720p", 300, HIGH)]),
        ({"phases": TWO, "iterations": 1000}, [("480p", 700, LOW), ("720p", 300, HIGH)]),
        ({"phases": OPEN, "iterations": 1500}, [("480p", 700, LOW), ("720p", 800, HIGH)]),
        ({"phases": phases(("480p", 7))}, [("480p", 7, LOW)]),
        (
            {"phases": phases(("720p", 1), ("480p", 2), ("720p", 3))},
            [("720p", 1, HIGH), ("480p", 2, LOW), ("720p", 3, HIGH)],
        ),
        (
            {"phases": TWO, "experiment": EXPERIMENT},
            [("480p", 700, LOW), ("720p", 300, HIGH)],
        ),
        (
            {"phases": OPEN, "experiment": EXPERIMENT},
            [("480p", 700, LOW), ("720p", 99_300, HIGH)],
        ),
        (
            {"overrides": ["trainer.phases=[[432,768,700],[704,1280,300]]"]},
            [("480p", 700, LOW), ("720p", 300, HIGH)],
        ),
        (
            {"overrides": ["trainer.phases=[[432,768,7],[704,1280]]", "trainer.max_iter=9"]},
            [("480p", 7, LOW), ("720p", 2, HIGH)],
        ),
    ],
)
def test_operator_and_workers_agree(training, expected):
    model = {} if "experiment" in training else {"model": {"size": "2B"}}
    made = resource(training=training, **model)
    assert list(made.spec.phases) == expected
    assert sum(phase.iterations for phase in made.spec.phases) == made.spec.iterations
    trained = phases_of(read_config(train_settings(made)))
    assert [(one.end - one.start, one.video_size) for one in trained] == [
        (phase.iterations, phase.video_size) for phase in made.spec.phases
    ]
    command = commands(made)["latents"]
    split = Path(made.dataset_dir) / "train"
    assert {str(split / one.latents) for one in trained} == set(command.outputs)
    flags = latents.parser().parse_args(command.argv[command.argv.index("--dataset_path") :])
    sizes = [tuple(size) for size in flags.video_size]
    assert sizes[0] == made.spec.video_size == expected[-1][2]
    assert {latents_folder(size, sizes[0]) for size in sizes} == {one.latents for one in trained}
    weights = read_config(train_settings(made)).dit_path
    assert weights.endswith(f"model-{expected[-1][0]}-16fps.pt")


def test_tiny_has_two_sizes():
    made = resource(model={"size": "Tiny"}, training={"phases": TWO})
    assert [phase.video_size for phase in made.spec.phases] == [(64, 80), (96, 128)]


def test_a_longer_run_resumes_from_the_same_checkpoints():
    def train(iterations):
        training = {"phases": OPEN, "iterations": iterations}
        return make_plan(resource(model={"size": "2B"}, training=training)).stage("train")

    short, long = train(1000), train(1500)
    assert short.inputs_hash != long.inputs_hash
    assert run_hash(short.argv, []) == run_hash(long.argv, [])
    other = make_plan(resource(model={"size": "2B"}, training={"phases": TWO})).stage("train")
    assert other.argv == short.argv  # the same, written with or without the sum


def test_requirements_are_those_of_the_largest_phase_and_of_all_latents():
    def needs(**training):
        return estimate(resource(model={"size": "2B"}, training=training))

    high, both = needs(iterations=1000), needs(phases=TWO)
    assert both.gpu == high.gpu == needs(phases=phases(("720p", 1), ("480p", 9))).gpu
    assert needs(phases=phases(("480p", 9))).gpu < high.gpu
    assert 1e9 < both.disk - high.disk < 10e9


@pytest.mark.parametrize(
    ("model", "training", "message"),
    [
        (
            {},
            {"phases": phases(("480p", 0), ("720p", 3))},
            "spec.training.phases[0].iterations: 0 is not valid (Optimizer steps of this phase)",
        ),
        ({}, {"phases": phases(("1080p", 1))}, "spec.training.phases[0].resolution: '1080p'"),
        (
            {},
            {"phases": TWO, "iterations": 900},
            "spec.training.iterations: 900 contradicts training.phases, which add up to 1000",
        ),
        (
            {},
            {"phases": OPEN, "iterations": 700},
            "spec.training.iterations: 700 leaves no iteration for the last of training.phases",
        ),
        ({}, {"phases": OPEN}, "spec.training.iterations: missing"),
        (
            {},
            {"phases": phases(("480p",), ("720p", 3))},
            "spec.training.phases[0].iterations: missing; set how long this phase is",
        ),
        (
            {},
            {"phases": phases(("480p", 1), ("480p", 3))},
            "spec.training.phases[1].resolution: 480p is that of the phase before, too",
        ),
        (
            {"resolution": "720p"},
            {"phases": TWO},
            "spec.model.resolution: 720p is set together with training.phases",
        ),
        (
            {},
            {"phases": TWO, "overrides": ["dataloader_train.dataset.video_size=[432,768]"]},
            "spec.model.resolution: 480p is set together with training.phases",
        ),
        (
            {},
            {"phases": TWO, "attentionPattern": "Sparse"},
            "spec.training.attentionPattern: Sparse weights exist for 720p only, and a phase's",
        ),
        (
            {},
            {"overrides": ["trainer.phases=[[430,768,7],[704,1280,3]]"]},
            "is not valid for trainer.phases; use [[432,768,700],[704,1280,300]]",
        ),
        (
            {},
            {"phases": TWO, "overrides": ["trainer.phases=[[432,768,7],[704,1280,3]]"]},
            "contradicts spec.training.phases",
        ),
    ],
)
def test_invalid_phases_are_refused(model, training, message):
    with pytest.raises(InvalidResource) as caught:
        resource(model={"size": "2B"} | model, training=training)
    assert message in str(caught.value)
