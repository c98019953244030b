"""Hundreds of random specs: what the API server accepts renders, and it takes what is rendered."""

from __future__ import annotations

import typing
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from control_plane import ApiError
from operators import Resource
from video2world_operator.api import InvalidResource, parse
from video2world_operator.models import Spec
from video2world_operator.plan import make_plan

_PATHS = {
    "Job": "/apis/batch/v1/namespaces/{}/jobs",
    "Service": "/api/v1/namespaces/{}/services",
    "PersistentVolumeClaim": "/api/v1/namespaces/{}/persistentvolumeclaims",
}
# What Kubernetes itself decides and our schema leaves free.
_LEFT_OUT = {"affinity", "tolerations", "pod_template", "value_from", "node_selector"}
_WORDS = st.sampled_from(
    ["a", "b-1", "x/y", "datasets/mine", "val/videos/a.mp4", "..", "/abs", "A b"]
)


def values(annotation: Any, constraints: list[Any]) -> st.SearchStrategy[Any]:
    """Values of a field's type, most of them within its bounds, some beyond."""
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *more = get_args(annotation)
        return values(inner, [*constraints, *more])
    if origin in (Union, UnionType):
        return st.one_of(
            *(values(a, constraints) for a in get_args(annotation) if a is not type(None))
        )
    if origin is Literal:
        return st.sampled_from([*get_args(annotation), "Other"])
    if origin is list:
        return st.lists(values(get_args(annotation)[0], []), max_size=3)
    if origin is dict:
        return st.just({})
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return objects(annotation)
    if annotation is bool:
        return st.booleans()
    low, high = bounds(constraints)
    if annotation is int:
        return st.integers(low - 1, min(high, low + 70) + 1)
    if annotation is float:
        return st.floats(low, min(high, 1e6), allow_nan=False)
    patterns = [p for c in constraints if (p := getattr(c, "pattern", None))]
    if patterns:
        return st.one_of(
            st.from_regex(patterns[0], fullmatch=True).filter(lambda s: len(s) < 90), _WORDS
        )
    return _WORDS


def bounds(constraints: list[Any]) -> tuple[Any, Any]:
    """The lowest and highest value that the constraints name."""
    low, high = 0, 64
    for constraint in constraints:
        for part in getattr(constraint, "metadata", [constraint]):
            low = getattr(part, "ge", getattr(part, "gt", low))
            high = getattr(part, "le", high)
    return low, high


def objects(model: type[BaseModel]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects of a model with any of its fields given."""
    hints = typing.get_type_hints(model, include_extras=True)
    fields = {}
    for name, field in model.model_fields.items():
        if name in _LEFT_OUT:
            continue
        fields[field.alias] = values(hints[name], [field])
    required = {f.alias for f in model.model_fields.values() if f.is_required()}
    return st.fixed_dictionaries(
        {k: v for k, v in fields.items() if k in required},
        optional={k: v for k, v in fields.items() if k not in required},
    )


def answer(cluster, path, body):
    """The API server's answer to a dry run, or its refusal."""
    try:
        return cluster.admin.post(f"{path}?dryRun=All&fieldValidation=Strict", body)
    except ApiError as error:
        return error


def planned(body, namespace):
    """The plan, or the operator's refusal."""
    try:
        return make_plan(parse(body), namespace)
    except InvalidResource as error:
        return error


CHECKS = [
    HealthCheck.function_scoped_fixture,
    HealthCheck.too_slow,
    HealthCheck.data_too_large,
    HealthCheck.filter_too_much,
]


@settings(max_examples=250, deadline=None, suppress_health_check=CHECKS)
@given(objects(Spec), st.booleans())
def test_the_server_and_the_operator_are_of_one_mind(cluster, namespace, spec, tame):
    if tame:  # as most files are, so that more get past the door
        spec |= {"model": {"size": "Tiny"}, "dataset": {"prepared": {"path": "datasets/mine"}}}
        for field in ("contextParallelSize", "experiment", "overrides"):
            spec["training"].pop(field, None)
        spec["training"]["iterations"] = 5
    body = Resource.body() | {"spec": spec}
    accepted = answer(cluster, Resource(cluster, namespace).path, body)
    if isinstance(accepted, ApiError):
        assert accepted.code in (400, 422)
        return
    plan = planned(accepted, namespace)
    if isinstance(plan, InvalidResource):
        # values of overrides, and what they and experiments lead to, are the operator's to judge
        assert spec["training"].get("experiment") or spec["training"].get("overrides"), plan
        return
    for manifest in (*plan.shared, *(m for s in plan.stages for m in s.manifests)):
        cluster.admin.post(_PATHS[manifest["kind"]].format(namespace) + "?dryRun=All", manifest)
