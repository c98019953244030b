"""The CRD accepts what that of the previous release accepted, with the same meaning."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from benchmarks.upgrade.previous import V0_1_0, Unreachable, previous, unpack

from video2world_operator.api.crd_schema import build

# Changes since v0.1.0 (2fc87cf) that refuse no resource that could have worked; other releases
# have none.
ALLOWED = {
    V0_1_0: {
        # Kubernetes refuses such names in the objects that use them
        "spec.credentials.huggingFaceTokenSecret.name: pattern",
        "spec.credentials.huggingFaceTokenSecret.key: pattern",
        "spec.images.pullSecrets[]: pattern",
        "spec.scheduling.queueName: pattern",
        "spec.scheduling.queueName: maxLength",  # it is a label's value
        "spec.scheduling.priorityClassName: pattern",
        "spec.scheduling.schedulerName: pattern",
        "spec.storage.storageClassName: pattern",
        "spec.storage.claimName: pattern",
        "spec.inference.checkpoint: pattern",  # wider: best
        # wider: a whole number, or Auto
        "spec.training.checkpoint.everyIterations: type",
        "spec.training.checkpoint.everyIterations: pattern",
        "spec.training.checkpoint.everyIterations: maxLength",
        # stored in resources with the value that is now chosen by the operator
        "spec.training.hangTimeoutSeconds: default",
        "spec.dataset.agibot.repoID: default",
    }
}
UPPER = ("maximum", "maxLength", "maxItems", "maxProperties", "exclusiveMaximum")
LOWER = ("minimum", "minLength", "minItems", "minProperties", "exclusiveMinimum")
SAME = ("type", "format", "pattern", "default", "x-kubernetes-list-type")
SAME += ("x-kubernetes-list-map-keys", "x-kubernetes-preserve-unknown-fields")
NONE = object()


def incompatibilities(old: dict[str, Any], new: dict[str, Any], path: str) -> Iterator[str]:
    """Yield what of ``old`` the schema ``new`` refuses or understands otherwise."""
    for key in SAME:
        if old.get(key) != new.get(key):
            yield f"{path}: {key}"
    for keys, sign in ((UPPER, 1), (LOWER, -1)):
        for key in keys:
            before, after = old.get(key), new.get(key)
            if after is not None and (before is None or sign * after < sign * before):
                yield f"{path}: {key}"
    if "enum" in new and not set(old.get("enum", [NONE])) <= set(new["enum"]):
        yield f"{path}: enum"
    for name in sorted({*new.get("required", ())} - {*old.get("required", ())}):
        yield f"{path}.{name}: required"
    properties = new.get("properties", {})
    for name, value in old.get("properties", {}).items():
        if name not in properties:
            yield f"{path}.{name}: removed"
        else:
            yield from incompatibilities(value, properties[name], f"{path}.{name}")
    if "items" in old:
        yield from incompatibilities(old["items"], new.get("items", {}), f"{path}[]")


def schema(definition: dict[str, Any], section: str) -> dict[str, Any]:
    (version,) = definition["spec"]["versions"]
    found: dict[str, Any] = version["schema"]["openAPIV3Schema"]["properties"][section]
    return found


def test_the_crd_is_compatible_with_the_previous_release(tmp_path: Path) -> None:
    name = previous()
    try:
        release = unpack(name, tmp_path)
    except Unreachable as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))
    text = (release.folder / "manifests" / "crd.yaml").read_text()
    old = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506
    found = list(incompatibilities(schema(old, "spec"), schema(build(), "spec"), "spec"))
    allowed = ALLOWED.get(name, set())
    images = {"spec.images.preprocess: default", "spec.images.trainer: default"}  # their tags
    assert set(found) - allowed - images == set()
    gone = incompatibilities(schema(old, "status"), schema(build(), "status"), "status")
    assert [one for one in gone if one.endswith((": removed", ": required", ": type"))] == []


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ({"properties": {"a": {}}}, {}, "s.a: removed"),
        ({"type": "string"}, {"type": "integer"}, "s: type"),
        ({"maximum": 5}, {"maximum": 4}, "s: maximum"),
        ({}, {"minLength": 1}, "s: minLength"),
        ({"enum": ["A", "B"]}, {"enum": ["A"]}, "s: enum"),
        ({}, {"enum": ["A"]}, "s: enum"),
        ({}, {"required": ["a"]}, "s.a: required"),
        ({"items": {"default": 1}}, {"items": {"default": 2}}, "s[]: default"),
    ],
)
def test_each_incompatibility_is_found(old, new, problem) -> None:
    assert list(incompatibilities(old, new, "s")) == [problem]


def test_a_wider_schema_is_compatible() -> None:
    old = {"maximum": 5, "enum": ["A"], "required": ["a"], "properties": {"a": {}}}
    new = {"maximum": 6, "enum": ["A", "B"], "properties": {"a": {}, "b": {}}}
    assert list(incompatibilities(old, new, "s")) == []
