"""Hostile text in a resource's fields or in a pod's output stays text wherever it is written."""

from __future__ import annotations

import copy
import functools
import io
import json
import os
import re
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as classic
from pydantic import BaseModel

from reconcile_world import World
from video2world_common.progress_events import parse as parse_line
from video2world_operator.api.errors import InvalidResource
from video2world_operator.api.spec import Spec
from video2world_operator.api.validation import parse
from video2world_operator.controller.metrics import Metrics
from video2world_operator.controller.resource import Resource
from video2world_operator.plan.manifests import VOLUME_DIR
from video2world_operator.plan.plan import make_plan, to_yaml
from video2world_operator.terminal import Screen

MARK = "marker9x"
HOSTILE = [
    "'; touch /tmp/owned; #",
    '"; touch /tmp/owned; "',
    "`id`",
    "$(id)",
    "$(HF_TOKEN)",
    "$$(id)",
    "${IFS}cat${IFS}/etc/passwd",
    "| tee x",
    "&& id",
    "> /etc/passwd",
    "\nid\n",
    "\r\nid",
    "\x00id",
    "-c",
    "--help",
    "--",
    "-m",
    "@/etc/passwd",
    "=x",
    "a=b",
    "a: b",
    "- a",
    "a\nkind: Pod",
    "\n---\nkind: Pod\n",
    "...",
    "&a *a",
    "*a",
    "!!python/name:os.x",
    "! x",
    "%YAML 1.1",
    "{a: b}",
    "[a]",
    "# x",
    ": ",
    "? ",
    "|",
    ">-",
    "yes",
    "null",
    "~",
    "0x10",
    "2026-11-27",
    "\u2028kind: Pod",
    "\u0085kind: Pod",
    "\ufeffx",
    "\tx",
    " x ",
    "{{ .Values.x }}",
    '{{ "x" | quote }}',
    "{{- end }}",
    "{{/* x */}}",
    "{%x%}",
    "%s",
    "{0}",
    '"} 1\nevil_metric{a="b"} 1',
    'x"',
    "x\\",
    "x\\n",
    "\nevil_metric 1\n",
    "# HELP evil x",
    "# EOF\n",
    "..",
    "../x",
    "../../etc/passwd",
    "/etc/passwd",
    "a/../../x",
    "a/..",
    "./../x",
    "~/x",
    "a//b",
    "a/./b",
    "\\..\\x",
    "%2e%2e/x",
    "\x1b[2J",
    "\x1b]0;x\x07",
    "\u202ex",
    "ａ／．．",
]
hostile = st.one_of(
    st.sampled_from(HOSTILE),
    st.text(max_size=40),
    # past the patterns that want a name to begin or to end as one
    st.builds(
        "{}{}{}".format,
        st.sampled_from(["a", "a/b", "val/"]),
        st.sampled_from(HOSTILE),
        st.sampled_from(["", "z", ".mp4"]),
    ),
)


# ---------------------------------------------------------------- every field that takes text


def places(model: type[BaseModel] = Spec, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Paths of all fields below ``model`` that take any text; ``*`` is a list's or map's item."""
    hints = typing.get_type_hints(model, include_extras=True)
    for name, field in model.model_fields.items():
        yield from _below(hints[name], (*path, field.alias or name))


def _below(kind: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        yield from _below(inner[0], path)
    elif origin in (typing.Union, types.UnionType):
        for one in inner:
            yield from _below(one, path)
    elif origin is list:
        yield from _below(inner[0], (*path, "*"))
    elif origin is dict and inner[1] is not Any:
        yield from _below(inner[1], (*path, "*"))
    elif origin is Literal or origin is dict or kind in (int, float, bool, type(None)):
        return  # a choice, a number, or an object of Kubernetes' own, which is the tenant's to say
    elif isinstance(kind, type) and issubclass(kind, BaseModel):
        yield from places(kind, path)
    else:
        assert kind is str, kind
        yield path


TEXTS = list(places())
# Fields that another field needs for its spec to be valid.
NEEDED_WITH = {
    "prepared": {"path": "datasets/mine"},
    "videos": {"path": "videos"},
    "captions": {"endpoint": "http://vllm/v1", "model": "vlm"},
    "tokenSecret": {"name": "captions"},
    "huggingFaceTokenSecret": {"name": "hf"},
    "samples": {"input": "a.mp4"},
    "env": {"name": "A"},
}
# What a harmless value looks like, where that is not just any word.
BENIGN = {
    "repoID": f"{MARK}/{MARK}",
    "endpoint": f"http://{MARK}/v1",
    "output": f"{MARK}.mp4",
    "requests": "1",
    "limits": "1",
    "size": "9Gi",
}
MAPS = {"requests": "x.example/y", "limits": "x.example/y", "nodeSelector": "x.example/y"}
# Their text is looked up and never passed on: any but a known one is refused.
REFUSED = {("training", "experiment"), ("training", "overrides", "*")}


def put(here: dict[str, Any], path: tuple[str, ...], value: str) -> dict[str, Any]:
    """``here`` with ``value`` at ``path``."""
    key, *rest = path
    if not rest:
        return here | {key: value}
    below = here.get(key) or NEEDED_WITH.get(key, {})
    if rest[0] != "*":
        return here | {key: put(below, tuple(rest), value)}
    if key in MAPS:
        return here | {key: {MAPS[key]: value}}
    item = below[0] if isinstance(below, list) else below
    return here | {key: [put(item, tuple(rest[1:]), value) if rest[1:] else value]}


def spec_with(path: tuple[str, ...], value: str) -> dict[str, Any]:
    """A valid spec, but for ``value`` at ``path``."""
    spec: dict[str, Any] = {
        "model": {"size": "2B"},
        "dataset": {} if path[0] == "dataset" and path[1] != "captions" else {"agibot": {}},
        "training": {"iterations": 5},
        "inference": {"samples": [{"input": "val/videos/a.mp4"}]},
    }
    return put(spec, path, value)


def planned(path: tuple[str, ...], value: str):
    body = {
        "apiVersion": "video2world.dev/v1alpha1",
        "kind": "Video2WorldPostTrain",
        "metadata": {"name": "run", "namespace": "ns", "uid": "u"},
        "spec": spec_with(path, value),
    }
    return make_plan(parse(body))


def manifests(plan) -> list[Any]:
    return [*plan.shared, *(m for s in plan.stages for m in s.manifests), *plan.sampling(500)]


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """All keys and scalars of a document, each with its path."""
    if isinstance(value, dict):
        for key, one in value.items():
            yield f"{path}/(key)", key
            yield from leaves(one, f"{path}/{key}")
    elif isinstance(value, list | tuple):
        for number, one in enumerate(value):
            yield from leaves(one, f"{path}/{number}")
    else:
        yield path, value


LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
HASHES = re.compile(r"[0-9a-f]{16}")


@functools.cache
def harmless(path: tuple[str, ...]) -> list[tuple[str, Any]]:
    """The leaves of the manifests where the field has a value as it should be."""
    value = next((v for k, v in BENIGN.items() if k in path), MARK)
    return list(leaves(manifests(planned(path, value))))


def test_the_walk_finds_the_fields():
    assert {
        ("dataset", "agibot", "revision"),
        ("inference", "samples", "*", "prompt"),
        ("stages", "train", "env", "*", "value"),
        ("storage", "subPath"),
        ("training", "jobName"),
        ("images", "pullSecrets", "*"),
    } <= set(TEXTS)
    assert len(TEXTS) > 60


@settings(max_examples=600, deadline=None)
@given(path=st.sampled_from(TEXTS), value=hostile)
def test_a_hostile_value_changes_nothing_but_its_own_place(path, value):
    try:
        plan = planned(path, value)
    except InvalidResource:
        return
    assert path not in REFUSED
    made = manifests(plan)

    # YAML: what is written is read back unchanged, without another document
    assert list(yaml.load_all(to_yaml(plan), LOADER)) == [
        *plan.shared,
        *(m for s in plan.stages for m in s.manifests),
    ]

    # Manifests: as those for a harmless value, they differ by the value only, and it never
    # becomes a flag of a command
    before, after = harmless(path), list(leaves(made))
    assert [where for where, _ in before] == [where for where, _ in after]
    for (where, old), (_, new) in zip(before, after, strict=True):
        if old != new and not HASHES.search(new):
            texts = leaves(json.loads(new)) if where.endswith("/samples") else [(where, new)]
            assert any(value.rstrip("/") in str(text) for _, text in texts), where
            assert old.startswith("-") or not new.startswith("-") or "/command/" not in where

    # All of it in the resource's own namespace
    assert {manifest["metadata"]["namespace"] for manifest in made} == {"ns"}

    # Commands: lists of words without a shell, in which nothing is a reference but ours
    for manifest in made:
        if manifest["kind"] == "Job":
            (container,) = manifest["spec"]["template"]["spec"]["containers"]
            command = container["command"]
            assert command[:2] == ["python", "-m"]
            assert "args" not in container
            for word in command:
                assert isinstance(word, str)
                assert "\0" not in word
                assert "$" not in word.replace("$(V2W_CONFIG_DIR)/samples.json", "")

    # Paths: none leaves the volume
    for stage in plan.stages:
        for output in stage.outputs:
            inside(output)
    if path[-1] in ("path", "captionFile", "weights", "input", "checkpoint", "subPath"):
        inside(value)


def inside(path: str) -> None:
    real = os.path.normpath(os.path.join(VOLUME_DIR, path))  # noqa: PTH118  a pod's path
    assert real.startswith(VOLUME_DIR), path


@given(hostile)
def test_a_prompt_reaches_the_worker_as_it_was_written(prompt):
    try:
        plan = planned(("inference", "samples", "*", "prompt"), prompt)
    except InvalidResource:
        return
    template = plan.stage("inference").job["spec"]["template"]
    (sample,) = json.loads(template["metadata"]["annotations"]["video2world.dev/samples"])
    assert sample["prompt"] == prompt
    assert not any(
        prompt in word for word in template["spec"]["containers"][0]["command"] if len(prompt) > 9
    )


# ---------------------------------------------------------------- what pods and others say


FIXED = re.compile(r"[A-Za-z0-9_./+-]*")


@settings(max_examples=60, deadline=None)
@given(hostile, hostile, hostile)
def test_no_text_of_a_resource_gets_into_metrics(name, said, unit):
    world, metrics = World(), Metrics()
    world.settle()
    world.body["metadata"] |= {"name": name, "namespace": said}
    metrics.observe_resource((said, name), Resource(world.body), world.pods.values())
    status = copy.deepcopy(world.status)
    status |= {"message": said, "restarts": 2, "phase": "Failed"}
    for entry in status["stages"]:
        entry |= {
            "message": said,
            "unit": unit,
            "jobUID": said,
            "logTail": said,
            "state": "Restarting",
        }
    metrics.observe_resource((said, name), Resource(world.body | {"status": status}), ())
    metrics.count_request("GET", f"/apis/{name}/namespaces/{said}/{unit}", 200, 0.1)
    for accept, read in (
        ("", classic),
        ("application/openmetrics-text;version=1.0.0", openmetrics),
    ):
        for family in read(metrics.expose(accept)[0].decode()):
            assert family.name.startswith(("video2world_", "process_")), family
            for sample in family.samples:
                for value in sample.labels.values():
                    assert FIXED.fullmatch(value), sample
                    assert len(value) < 40


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), hostile),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(hostile, inner, max_size=3)
    ),
    max_leaves=6,
)
EVENTS = ["progress", "checkpoint", "resumed", "samples", "skipped", "finished", "failed", "report"]
FIELDS = [
    "iteration",
    "iterations",
    "done",
    "total",
    "loss",
    "path",
    "message",
    "reason",
    "unit",
    "checkpoint",
    "eta_seconds",
    "inputsHash",
    "seconds_per_iteration",
]


@given(st.sampled_from(EVENTS), st.dictionaries(st.sampled_from(FIELDS), JSON), st.binary())
def test_what_a_pod_prints_is_a_bounded_event_or_plain_text(event, fields, other):
    line = json.dumps({"event": event, "stage": "train", **fields})
    for reported in (parse_line(line), parse_line(line.encode()[: len(other)] + other)):
        for value in vars(reported).values() if reported else ():
            if isinstance(value, str):
                assert value.isprintable()
                assert len(value) <= 1000
            if isinstance(value, int):
                assert 0 <= value < 2**63


@given(hostile)
def test_text_of_a_pod_does_not_control_the_terminal(said):
    out = io.StringIO()
    Screen(out).show([f"why {said}"])
    assert "\x1b" not in out.getvalue()
    assert out.getvalue().count("\n") == 1
