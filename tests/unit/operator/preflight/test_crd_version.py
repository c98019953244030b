"""A CRD that is older or newer than this version, by its schema."""

from __future__ import annotations

import copy

import pytest

from video2world_operator.api.crd_schema import build
from video2world_operator.preflight.crd_version import added_defaults, unknown_fields, without

OWN = build()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


def paths(schema, path=""):
    """Every field, with the mapping that holds it."""
    for name, field in schema.get("properties", {}).items():
        below = f"{path}.{name}" if path else name
        yield below, schema["properties"], name
        yield from paths(field, below)
        yield from paths(field.get("items", {}), f"{below}[]")


FIELDS = [path for path, *_ in paths(OWN) if path.partition(".")[0] in ("spec", "status")]


def test_the_own_crd_lacks_nothing():
    assert len(FIELDS) > 200
    assert list(unknown_fields(OWN, OWN)) == []
    assert list(added_defaults(OWN, OWN)) == []


def test_each_missing_field_is_named():
    older = copy.deepcopy(OWN)
    for path, holder, name in list(paths(older)):
        if path in FIELDS:
            field = holder.pop(name)
            assert list(unknown_fields(older, OWN)) == [path]
            holder[name] = field


def test_status_values_that_an_older_crd_refuses():
    older = copy.deepcopy(OWN)
    state = older["properties"]["status"]["properties"]["stages"]["items"]["properties"]["state"]
    state["enum"].remove("Skipped")
    assert list(unknown_fields(older, OWN)) == ["status.stages[].state: Skipped"]


def test_any_field_is_known_where_none_is_declared():
    assert list(unknown_fields({"x-kubernetes-preserve-unknown-fields": True}, OWN)) == []


def newer():
    schema = copy.deepcopy(OWN)
    spec = schema["properties"]["spec"]["properties"]
    spec["quality"] = {"type": "string", "default": "Good"}
    spec["optional"] = {"type": "string"}
    rounds = {"type": "integer", "default": 3}
    spec["training"]["properties"]["distillation"] = {
        "type": "object",
        "default": {},
        "properties": {"rounds": rounds, "teacher": {}},
    }
    schema["properties"]["status"]["properties"]["mood"] = {"type": "string"}
    return schema


def test_defaults_of_a_newer_crd_are_removed():
    added = dict(added_defaults(newer(), OWN))
    assert added == {
        ("spec", "quality"): "Good",
        ("spec", "training", "distillation"): {"rounds": 3},
    }
    training = {"iterations": 1}
    body = {"spec": {"quality": "Good", "training": training | {"distillation": {"rounds": 3}}}}
    assert without(body, added) == {"spec": {"training": training}}
    assert body["spec"]["quality"] == "Good"  # another's object


@pytest.mark.parametrize(
    "spec",
    [
        {"quality": "Best"},
        {"optional": "x"},
        {"training": {"distillation": {"rounds": 4}}},
        {"training": {"distillation": {"rounds": 3, "teacher": "x"}}},
    ],
)
def test_values_that_a_user_has_set_are_kept(spec):
    """So that it is refused as unknown, not ignored."""
    assert without({"spec": spec}, dict(added_defaults(newer(), OWN))) == {"spec": spec}
