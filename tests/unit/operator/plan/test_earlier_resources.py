"""Resources of earlier versions are still valid and mean the same plan.

``earlier_resources`` has every complete resource that this repository's samples and documents ever
showed, and three more that use what v0.1.0 had. ``plans.json`` has the plans that v0.1.0 (2fc87cf)
made of them, or for newer resources those of 837466f. Plans may not change: a changed command line
is unknown to a worker image that is older than the operator, and a changed hash runs stages again
in a local run.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from video2world_operator.api.validation import load_resource
from video2world_operator.plan.plan import make_plan

FOLDER = Path(__file__).with_name("earlier_resources")
FILES = sorted(FOLDER.glob("*.yaml"))
PLANS = json.loads((FOLDER / "plans.json").read_text())
# What did change before the first release, as (resource, stage): flags now added or left out.
CHANGED = {
    # a Tiny model has neither of them; it is for demonstrations
    **dict.fromkeys(
        [("demo", "inference"), ("demo-2", "inference"), ("demo-3", "inference")],
        frozenset({"--fps", "16", "--resolution", "720"}),
    ),
    # the download stage checks the user's own weights
    ("every-field", "download"): {"--weights", "weights/model.pt"},
}


def test_every_file_has_a_recorded_plan() -> None:
    assert {file.stem for file in FILES} == set(PLANS)
    assert {name for name, _ in CHANGED} < set(PLANS)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_an_earlier_resource_means_the_same_plan(file: Path) -> None:
    recorded = PLANS[file.stem]["stages"]
    plan = make_plan(load_resource(file))
    assert [stage.name for stage in plan.stages] == list(recorded)
    for stage in plan.stages:
        before = recorded[stage.name]
        changed = CHANGED.get((file.stem, stage.name), set())
        if "argv" in before:
            assert set(before["argv"].split(" ")) ^ set(" ".join(stage.argv).split(" ")) == changed
        if not changed:
            assert f"inputs-hash {stage.inputs_hash}" == before["hash"], stage.name
