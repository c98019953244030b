"""The Python client without a cluster: its manifests and its errors."""

import subprocess
import sys

import pytest

import video2world_operator
from repository import ROOT
from video2world_operator.api.errors import InvalidResource
from video2world_operator.api.model_spec import ModelSpec
from video2world_operator.api.training_spec import CheckpointSpec, TrainingSpec
from video2world_operator.api.validation import load_resource
from video2world_operator.cli.cluster_run import RequestFailed
from video2world_operator.client import Video2World

SAMPLES = ROOT / "manifests/samples"
AGIBOT = {"agibot": {"taskIDs": [327]}}


def test_typed_parts_and_mappings_make_the_same_resource():
    typed = Video2World(
        "run",
        model=ModelSpec(size="2B", fps=10),
        dataset=AGIBOT,
        training=TrainingSpec(iterations=5, checkpoint=CheckpointSpec(every_iterations=2)),
    )
    mapped = Video2World(
        "run",
        model={"size": "2B", "fps": 10},
        dataset=AGIBOT,
        training={"iterations": 5, "checkpoint": {"everyIterations": 2}},
    )
    assert typed.manifest == mapped.manifest
    assert typed.manifest["spec"]["training"] == {
        "iterations": 5,
        "checkpoint": {"everyIterations": 2},
    }
    assert repr(typed) == "Video2World('run', size='2B')"


def test_a_lerobot_dataset():
    lerobot = {"repoID": "my-team/cups", "camera": "top", "episodes": ["0-9"]}
    run = Video2World(
        "cups", model={"size": "2B"}, dataset={"lerobot": lerobot}, training={"iterations": 5}
    )
    assert run.resource.dataset_dir == "datasets/cups"
    assert run.manifest["spec"]["dataset"] == {"lerobot": lerobot}
    with pytest.raises(InvalidResource, match="repo_id: unknown field; did you mean repoID"):
        Video2World(
            "cups",
            model={"size": "2B"},
            dataset={"lerobot": {"path": "cups", "repo_id": "a/b"}},
            training={"iterations": 5},
        )


@pytest.mark.parametrize("sample", sorted(SAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_file_makes_the_same_resource(sample):
    run = Video2World.from_file(sample)
    assert run.resource == load_resource(sample)
    assert run.manifest["kind"] == "Video2WorldPostTrain"


def test_mistakes_are_reported_before_anything_is_sent():
    with pytest.raises(InvalidResource, match="did you mean iterations"):
        Video2World("run", model={"size": "2B"}, dataset=AGIBOT, training={"iteratons": 5})
    with pytest.raises(InvalidResource, match=r"spec\.stages\.train\.imag"):
        Video2World(
            "run",
            model={"size": "2B"},
            dataset=AGIBOT,
            training={"iterations": 5},
            stages={"train": {"imag": "x"}},
        )


def test_a_missing_cluster_is_reported(monkeypatch, tmp_path):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    run = Video2World("run", model={"size": "2B"}, dataset=AGIBOT, training={"iterations": 5})
    with pytest.raises(RequestFailed, match="kubeconfig"):
        run.apply()


def test_importing_the_package_is_cheap():
    code = "import sys, video2world_operator; assert 'pydantic' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="nothing"):
        video2world_operator.nothing  # noqa: B018
