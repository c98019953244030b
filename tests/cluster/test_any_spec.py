"""Generated specs: API server and operator agree on each, and what the plan renders is accepted."""

from __future__ import annotations

import functools
import typing
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from control_plane import ApiError
from operators import Resource
from video2world_operator.api import cel_rules
from video2world_operator.api.constants import MULTIKUEUE
from video2world_operator.api.errors import InvalidResource
from video2world_operator.api.experiments import SHORT_NAMES
from video2world_operator.api.spec import Spec
from video2world_operator.api.validation import parse
from video2world_operator.plan.plan import make_plan

_PATHS = {
    "Job": "/apis/batch/v1/namespaces/{}/jobs",
    "Service": "/api/v1/namespaces/{}/services",
    "PersistentVolumeClaim": "/api/v1/namespaces/{}/persistentvolumeclaims",
}
# Fields that Kubernetes itself validates, and our schema does not.
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


def judged(cluster, namespace, spec, refusals=None, **body):
    """Return the API server's answer to ``spec``, or None; the operator has to agree.

    The API server's refusals are added to ``refusals``.
    """
    body = Resource.body() | {"spec": spec} | body
    accepted = answer(cluster, Resource(cluster, namespace).path, body)
    try:
        parse(body)
        refusal = None
    except InvalidResource as error:
        refusal = str(error)
    if isinstance(accepted, ApiError):
        assert accepted.code in (400, 422)
        if "got float64" in str(accepted) or "XIntOrString" in str(accepted):
            # CEL cannot read 5.0 where the schema says integer. The operator can, and so it should:
            # kubectl, whose reading it repeats, sends 5.0 as 5.
            return None
        assert refusal is not None, accepted
        if refusals is not None:
            refusals.append(str(accepted))
        return None
    if refusal is not None:
        # only the operator checks values of overrides, and what experiments and overrides set
        training = spec["training"]
        assert training.get("experiment") or training.get("overrides"), (body, refusal)
        return None
    return accepted


CHECKS = [
    HealthCheck.function_scoped_fixture,
    HealthCheck.too_slow,
    HealthCheck.data_too_large,
    HealthCheck.filter_too_much,
]
TAME = {"model": {"size": "Tiny"}, "dataset": {"prepared": {"path": "datasets/mine"}}}


_CONTRADICTING = {
    "contextParallelSize",
    "experiment",
    "minNodes",
    "overrides",
    "stopWhen",
    "validation",
}


def tamed(spec):
    """Return ``spec`` with the most common mistakes fixed, so that more specs are valid."""
    training = {
        name: value for name, value in spec["training"].items() if name not in _CONTRADICTING
    }
    return spec | TAME | {"training": training | {"iterations": 5}}


@settings(max_examples=250, deadline=None, suppress_health_check=CHECKS)
@given(objects(Spec), st.booleans())
def test_the_server_and_the_operator_agree(cluster, namespace, spec, tame):
    accepted = judged(cluster, namespace, tamed(spec) if tame else spec)
    if accepted is None:
        return
    plan = make_plan(parse(accepted), namespace)
    for manifest in (*plan.shared, *(m for s in plan.stages for m in s.manifests)):
        cluster.admin.post(_PATHS[manifest["kind"]].format(namespace) + "?dryRun=All", manifest)


def some(**fields):
    """Objects with any of ``fields``, given as lists of values or as strategies."""
    strategies = {k: st.sampled_from(v) if isinstance(v, list) else v for k, v in fields.items()}
    return st.fixed_dictionaries({}, optional=strategies)


# The fields that rules between fields read, with values that break each of the rules.
TRAINING = {
    "iterations": [5],
    "nodes": [1, 2, 3],
    "minNodes": [1, 2, 4],
    "gpusPerNode": [1, 2, 8],
    "contextParallelSize": [1, 2, 3, 8],
    "device": ["Auto", "CPU", "GPU"],
    "ema": [False],
    "attention": ["Auto", "FlashAttention4", "Torch"],
    "attentionPattern": ["Dense", "Sparse"],
    "conditioning": [{"actions": {}}, {"actions": {"variant": "PerClip"}}],
    "phases": st.lists(
        some(iterations=[2, 3]).flatmap(
            lambda p: st.sampled_from([p | {"resolution": r} for r in ("480p", "720p")])
        ),
        max_size=3,
    ),
    "checkpoint": [
        {"everyIterations": "Auto"},
        {"everyIterations": "Auto", "keep": 1},
        {"keep": 2},
    ],
    "validation": [{}, {"everyIterations": 5}, {"everyIterations": 2, "weights": "EMA"}],
    "stopWhen": [{}, {"validationLossNotBetterFor": 2}],
}
NAMED = {
    "experiment": [*SHORT_NAMES, "2b_unknown"],
    "overrides": [
        [text]
        for text in (
            "trainer.max_iter=7",
            "trainer.run_validation=true",
            "trainer.max_iter=",
            "trainer.phases=[[432,768,2],[704,1280,3]]",
            "dataloader_train.dataset.dataset_dir=datasets/a",
            "model_parallel.context_parallel_size=2",
            "trainer.unknown=1",
            "checkpoint.save_iter=auto",
        )
    ],
}
SAMPLE = some(
    prompt=["", "x" * 4096],
    negativePrompt=["x" * 4096],
    output=["a.mp4", "b.mp4"],
    input=["val/videos/a.mp4"],
    actions=["a.csv", "a/../b.csv"],
).map(lambda s: {"input": "a"} | s)
ACTIONS = some(
    names=[["x"], ["x", "x"]], representation=["RelativePose"], normalization=["Published"]
).map(lambda a: {"columns": ["action"]} | a)
RELATED = {
    "model": some(
        size=["Tiny", "2B", "14B"],
        resolution=["480p", "720p"],
        fps=[10],
        ropeRatio=[0, 1.5],
        weights=["w.pt", "a/../w.pt", "model-720p-10fps.pt", "a/model-720p-16fps-natten.pt"],
    ),
    "dataset": some(
        agibot=[
            {"path": "a"},
            {"path": "a", "validationPercent": 5},
            {"path": "a", "validationEpisodeIDs": [1]},
        ],
        prepared=[{"path": "b"}],
        videos=[{"path": "c"}],
        bridge=[{"path": "d"}],
        actions=ACTIONS,
        captions=[{"endpoint": "http://vllm/v1", "model": "vlm"}],
        shards=[1, 2],
    )
    | some(
        lerobot=some(
            repoID=["a/b"],
            path=["d"],
            revision=["v3.0"],
            caption=["Task", "File", "Endpoint"],
            captionFile=["c.csv"],
            episodes=[[3, "0-9"], ["9-0"], ["5-5", "07-010"]],
            validationEpisodes=[["1"], ["12-3"]],
            validationPercent=[0, 5],
        )
        | st.just({"path": "d", "caption": "Endpoint"}),
        actions=ACTIONS,
        captions=[{"endpoint": "http://vllm/v1", "model": "vlm"}],
    ),
    "storage": some(accessMode=["ReadWriteOnce", "ReadWriteMany", "ReadWriteOncePod"]),
    "inference": some(
        samples=st.lists(SAMPLE, max_size=3) | st.just([{"input": "a", "prompt": "x" * 4096}] * 25),
        checkpoint=["latest", "best", "7", "w.pt", "../w.pt"],
        checkpoints=st.lists(
            st.sampled_from(["latest", "best", "all", "7", 7, "w.pt"]), max_size=2
        ),
        everyCheckpoint=[True, False],
        parallelism=[1, 2],
        gpus=[1, 2, 3, 8],
        guidance=[0, 7],
        framesFrom=["First", "Last"],
        numConditionalFrames=[1, 5],
        weights=["EMA"],  # the others are the defaults
    ),
    "evaluation": some(
        metrics=st.lists(st.sampled_from(["PSNR", "SSIM"]), min_size=1, max_size=2),
        checkpoints=st.lists(st.sampled_from(["latest", "best", 3, 7, "9"]), max_size=2),
        lpipsWeights=["w.pt", "a/../w.pt"],
        failWhenActionsIgnored=[True],
    ),
    "stages": some(
        train=[{"env": [{"name": name}]} for name in ("NCCL_DEBUG", "PET_NNODES", "RANK")]
    ),
}
CLAIMS = {"resourceClaims": [{"name": "gpus", "resourceClaimTemplateName": "one"}]}
CLAIMING = st.fixed_dictionaries(
    {
        "training": some(device=["CPU", "GPU"]).flatmap(
            lambda training: st.sampled_from([training, training | CLAIMS])
        ),
        "stages": some(
            train=[CLAIMS, {"resources": {"limits": {"nvidia.com/gpu": 1}}}],
            captions=[{}, CLAIMS],
        ),
    }
)
DISPATCHED = st.fixed_dictionaries(
    {"managedBy": st.just(MULTIKUEUE), "training": some(nodes=[1])},
    optional={
        "scheduling": some(queueName=["team"]),
        "storage": some(retention=["Keep", "Delete"]),
    },
)
SPECS = st.one_of(
    CLAIMING,
    DISPATCHED,
    *(
        st.fixed_dictionaries({"training": training}, optional=RELATED)
        for training in (some(**TRAINING), some(**TRAINING), some(**TRAINING, **NAMED))
    ),
)


def test_they_agree_on_rules_between_fields(cluster, namespace):
    refusals = []

    @settings(max_examples=500, deadline=None, suppress_health_check=CHECKS)
    @given(SPECS, st.booleans())
    def check(spec, complete):
        if complete:  # without what most specs would be refused for
            spec = {"model": {"size": "Tiny"}, "dataset": {"agibot": {"path": "a"}}} | spec
            spec["training"] = {"iterations": 5} | spec["training"]
        judged(cluster, namespace, spec, refusals)

    rules = [*cel_rules.spec_rules(), *cel_rules.samples_rules(), cel_rules.path_rule()]
    rules += [cel_rules.overrides_rule(), cel_rules.env_name_rule(), *cel_rules.lerobot_rules()]
    rules += cel_rules.actions_rules()

    def unbroken():
        said = "\n".join(refusals)
        return [rule["message"] for rule in rules if rule["message"] not in said]

    check()
    for number in range(3):  # a rule that few specs break
        if unbroken():
            seed(number)(check)()
    assert unbroken() == []


ALL = {
    "model": {"size": "Tiny", "ropeRatio": 1.5, "weights": "w.pt"},
    "dataset": {
        "agibot": {
            "taskIDs": [1],
            "validationEpisodeIDs": [2],
            "windowSeconds": 2.5,
            "keepArchives": True,
            "name": "a",
            "path": "p",
        },
        "shards": 1,
    },
    "training": {
        "iterations": 5,
        "lora": {"rank": 1, "alpha": 2},
        "checkpoint": {"keep": 1, "everyIterations": 3},
        "ema": True,
        "learningRate": 0.1,
        "jobName": "j",
        "device": "CPU",
    },
    "inference": {
        "samples": [{"input": "a", "prompt": "p", "output": "a.mp4"}],
        "checkpoints": ["latest", 500],
        "numConditionalFrames": 1,
        "guidance": 3,
        "gpus": 2,
        "offload": True,
    },
    "storage": {"size": "5Gi", "accessMode": "ReadWriteMany", "claimName": "c"},
    "credentials": {"huggingFaceTokenSecret": {"name": "s", "key": "k"}},
    "scheduling": {"queueName": "q", "gang": "Auto", "topologyKey": "a.b/c"},
    "images": {"trainer": "t:1", "pullSecrets": ["s"]},
    "stages": {
        "train": {
            "resources": {"limits": {"cpu": 1, "memory": "1Gi"}},
            "nodeSelector": {"a": "b"},
            "tolerations": [{"key": "k"}],
            "affinity": {"nodeAffinity": {}},
            "podTemplate": {"spec": {}},
            "env": [{"name": "A", "value": "b"}, {"name": "B", "valueFrom": {}}],
        }
    },
    "suspend": False,
    "ttlSecondsAfterFinished": 5,
}
ODD = st.sampled_from(
    [
        None,
        True,
        False,
        0,
        1,
        -1,
        3,
        5.0,
        1.5,
        2**31,
        2**53 + 1,
        1e30,
        "",
        "1",
        "1.5",
        "true",
        "yes",
        " a",
        "a ",
        "a b",
        "a/b",
        "../a",
        "/a",
        "-a",
        "$a",
        "é",
        "a" * 41,
        "a" * 600,
        "x" * 5000,
        "500GB",
        "Auto",
        "auto",
        "latest",
        "a.mp4",
        [],
        [None],
        [[]],
        [1, 1],
        ["a", "a"],
        ["a"] * 70,
        [{}],
        {},
        {"a": None},
        {"a": 1},
        {"": "a"},
        {"name": "A"},
        [{"name": "A"}, {"name": "A"}],
        {str(n): "a" for n in range(40)},
    ]
)


def places(value, path=()):
    """The path of everything in ``value``."""
    yield path
    if isinstance(value, list):
        value = dict(enumerate(value))
    for name, one in value.items() if isinstance(value, dict) else ():
        yield from places(one, (*path, name))


def changed(value, path, change):
    """``value`` with the part at ``path`` replaced, removed, or extended."""
    if not path:
        return change(value)
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = changed(copy[path[0]], path[1:], change)
    if copy[path[0]] is GONE:
        del copy[path[0]]
    return copy


GONE = object()
CHANGES = st.one_of(
    ODD.map(lambda odd: lambda value: odd),
    ODD.map(lambda odd: lambda value: value | {"odd": odd} if isinstance(value, dict) else [value]),
    st.just(lambda value: GONE),
    st.just(lambda value: str(value).lower() if isinstance(value, (bool, int)) else {"a": value}),
    st.just(lambda value: value * 2 if isinstance(value, (list, str)) else value),
)


@settings(max_examples=600, deadline=None, suppress_health_check=CHECKS)
@given(st.lists(st.tuples(st.sampled_from([*places(ALL)][1:]), CHANGES), min_size=1, max_size=2))
def test_they_agree_on_any_mistake(cluster, namespace, mistakes):
    spec = ALL
    for path, change in mistakes:
        if path in set(places(spec)):  # the mistake before may have removed it
            spec = changed(spec, path, change)
    judged(cluster, namespace, spec)


def test_they_agree_on_integers_written_as_floats(cluster, namespace):
    """5.0 is an integer in JSON."""
    found = []
    for path in [*places(ALL)][1:]:
        value = functools.reduce(lambda part, key: part[key], path, ALL)
        if isinstance(value, int) and not isinstance(value, bool):
            found.append(path)
            judged(cluster, namespace, changed(ALL, path, float))
    assert ("training", "iterations") in found


METADATA = {"name": "run", "labels": {"a.b/c": "d"}, "annotations": {"e": "f"}, "finalizers": []}
KEYS = st.sampled_from(["a", "A/b", "a/B", "a b", "-a", "a/b/c", "/a", "", "a" * 63, "a" * 64, "é"])
LABELS = st.dictionaries(KEYS, KEYS, max_size=2)


@settings(max_examples=200, deadline=None, suppress_health_check=CHECKS)
@given(
    st.sampled_from([*places(METADATA)][1:]),
    CHANGES | LABELS.map(lambda labels: lambda value: labels),
    st.sampled_from(["", "kind", "apiVersion", "status"]),
)
def test_they_agree_on_metadata(cluster, namespace, path, change, more):
    body = {"metadata": changed(METADATA, path, change)}
    judged(cluster, namespace, TAME | {"training": {"iterations": 5}}, **body)
    if more:
        judged(cluster, namespace, TAME | {"training": {"iterations": 5}}, **{more: None})
