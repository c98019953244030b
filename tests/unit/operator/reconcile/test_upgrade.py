"""A newer version of the operator repeats nothing that an older one has done or begun."""

from __future__ import annotations

import copy

import pytest

from reconcile_world import World, resource
from video2world_operator.api.pods import ImagesSpec
from video2world_operator.api.validation import parse
from video2world_operator.plan.manifests import pods_hash
from video2world_operator.plan.plan import make_plan

OLD = "0123456789abcdef"  # hash of a version that planned the same work otherwise


def hashed_by_another_version(world):
    """Let the status have another version's hashes."""
    world.body = copy.deepcopy(world.body)
    for entry in world.status["stages"]:
        entry["inputsHash"] = OLD


@pytest.fixture
def world():
    """A run whose first stage is done and whose second one runs."""
    world = World()
    world.settle()
    world.finish("download")
    world.settle()
    world.start_pods()
    world.round()
    hashed_by_another_version(world)
    return world


def hashes(world):
    return [entry["inputsHash"] for entry in world.status["stages"]]


def test_another_version_hashes_otherwise_and_nothing_is_repeated(world):
    applied = len(world.applied)
    world.settle()
    assert len(world.applied) == applied
    assert world.stage("download")["state"] == "Succeeded"
    assert (world.stage("dataset")["state"], world.stage("dataset")["attempt"]) == ("Running", 1)
    assert OLD not in hashes(world)


def test_an_edit_afterwards_repeats_what_it_changes(world):
    world.settle()
    world.body["spec"]["dataset"] = {"agibot": {"windowSeconds": 6}}
    world.body["metadata"]["generation"] += 1
    world.settle()
    assert world.stage("download")["state"] == "Succeeded"
    assert world.stage("dataset")["attempt"] == 2


def test_an_edit_that_only_the_new_version_has_seen_is_an_edit(world):
    world.body["metadata"]["generation"] += 1
    world.settle()
    assert world.stage("download")["state"] == "Running"
    assert world.stage("download")["attempt"] == 2


def test_a_spec_that_the_old_version_refused_for_the_new_crds_defaults_is_no_edit(world):
    spec = world.body["spec"]
    world.body["spec"] = spec | {"quality": "Good"}  # as the API server fills in
    world.round()
    assert "quality" in world.status["message"]
    world.body["spec"] = spec
    hashed_by_another_version(world)
    world.settle()
    assert world.stage("download")["state"] == "Succeeded"
    assert world.stage("dataset")["attempt"] == 1


def test_an_edit_that_was_refused_at_first_is_an_edit(world):
    spec = world.body["spec"]
    world.body["metadata"]["generation"] += 1
    world.body["spec"] = spec | {"quality": "Good"}
    world.round()
    world.body["spec"] = spec
    world.settle()
    assert world.stage("download")["attempt"] == 2


class NewerImages(ImagesSpec):
    """The images of a version with other defaults."""

    trainer: str = "ghcr.io/video2world/trainer:9"


def test_new_default_images_leave_pods_that_have_not_started():
    """The API server has stored the images of the version that the resource was created with."""
    stored = {key: ImagesSpec.model_fields[key].default for key in ("preprocess", "trainer")}
    run = parse(resource(images=stored))
    stage = make_plan(run).stages[0]
    before = pods_hash(run, stage)
    run.spec.images = NewerImages(**stored)
    assert pods_hash(run, stage) == before
    run.spec.images = NewerImages()
    assert pods_hash(run, stage) != before
