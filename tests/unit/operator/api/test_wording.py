"""Every field refuses wrong values in plain words, and suggests a valid value."""

import re
from pathlib import Path

import pytest

from video2world_operator.api import wording
from video2world_operator.api.errors import InvalidResource
from video2world_operator.api.validation import load_resource, parse

BASE = {
    "apiVersion": "video2world.dev/v1alpha1",
    "kind": "Video2WorldPostTrain",
    "metadata": {"name": "run"},
    "spec": {
        "model": {"size": "Tiny"},
        "dataset": {"prepared": {"path": "datasets/mine"}},
        "training": {"iterations": 5},
    },
}
# Words of validators and programmers.
FOREIGN = re.compile(
    r"Input should|should (be|have|match)|instance of|dictionary|must match|pattern|valid string|"
    r"valid integer|valid number|Extra inputs|pydantic|NoneType|\bdict\b|\bstr\b|\bNone\b|\bTrue\b|"
    r"\bFalse\b|(?<!2)\^|\\x00|\[a-z|\[A-Z|\(\?|\]\*|\]\+"
)
REMEDY = re.compile(r"\b(write|use|set|remove|did you mean)\b")
WRONG = [
    "",
    " ",
    "a b",
    "..",
    "/a",
    "-a",
    "$",
    "yes",
    "false",
    "on",
    "1000",
    "1.5",
    "500GB",
    "x" * 6000,
    0,
    -1,
    5,
    7.5,
    2**62,
    1e300,
    True,
    False,
    [],
    [None],
    ["a"] * 2000,
    [[]],
    [{}],
    {},
    {"a": 1},
    {"a b": "c"},
    {"NCCL_DEBUG": "INFO"},
    {f"k{n}": "v" for n in range(40)},
    {f"k{n}": "$" for n in range(3)},
]


def fields(location=()):
    """The location of every field and item of a resource, without its status."""
    yield location
    for node in wording.at(location):
        for name in node.get("properties", {}):
            if (*location, name) != ("status",):
                yield from fields((*location, name))
        if "items" in node:
            yield from fields((*location, 0))
        if isinstance(wording._inner(node, ""), dict):
            yield from fields((*location, "any"))


def placed(location, value):
    """The resource with ``value`` there, in objects and lists that are otherwise right."""
    made = value
    for depth in range(len(location), 0, -1):
        part = location[depth - 1]
        if isinstance(part, int):
            made = [made]
            continue
        (node, *_) = wording.at(location[: depth - 1])
        around = BASE if depth == 1 else wording._example(node)
        if location[: depth - 1] == ("spec",):
            around = BASE["spec"]
        made = {**(around if isinstance(around, dict) else {}), part: made}
    return made


LOCATIONS = list(fields())[1:]


def problems(document):
    try:
        parse(document)
    except InvalidResource as error:
        return error.problems
    return ()


@pytest.mark.parametrize("location", LOCATIONS, ids=lambda one: ".".join(map(str, one)))
def test_a_wrong_value_is_refused_in_plain_words(location):
    refused = 0
    for wrong in WRONG:
        for problem in problems(placed(location, wrong)):
            refused += 1
            quoted = repr(wrong)[:40]
            said = problem.message.replace(repr(wrong), "").replace(quoted, "")
            said = re.sub("Coscheduling or None|did you mean None", "", said)
            assert not FOREIGN.search(said), f"{wrong!r:.60}: {problem}"
            assert REMEDY.search(problem.message), f"{wrong!r:.60}: {problem}"
            assert len(problem.message) < 1000, problem
    free = [not node.keys() & {"properties", "type"} for node in wording.at(location)]
    assert refused or all(free), "nothing wrong was refused"


@pytest.mark.parametrize("location", LOCATIONS, ids=lambda one: ".".join(map(str, one)))
def test_the_example_of_each_field_is_valid(location):
    path = ""
    for part in location:
        path = wording_path(path, part)
    for node in wording.at(location):
        given = problems(placed(location, wording._example(node)))
        schema = [p for p in given if p.path.startswith(path) and "is not valid" in p.message]
        assert schema == []


def wording_path(path, part):
    return f"{path}[{part}]" if isinstance(part, int) else f"{path}.{part}".lstrip(".")


def test_every_pattern_has_a_description_and_an_example():
    for location in LOCATIONS:
        for node in wording.at(location):
            if "pattern" in node:
                assert node["expected"], location
                assert re.search(node["pattern"], node["examples"][0]), location


def spec(**changes):
    return {**BASE, "spec": BASE["spec"] | changes}


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (
            BASE | {"metadata": {"name": "My.Run_2"}},
            "metadata.name: 'My.Run_2' is not valid; write lowercase letters, digits and dashes, "
            "starting with a letter, at most 40 characters, such as my-run-2",
        ),
        (spec(training={"iterations": "1000"}), "write 1000 without quotes"),
        (
            spec(training={"iterations": "0"}),
            "write a whole number from 1 to 10000000, such as 1000",
        ),
        (spec(training={"iterations": 5, "learningRate": "1e-5"}), "write 1e-5 without quotes"),
        (
            spec(training={"iterations": 5, "learningRate": 2}),
            "write a number above 0 and at most 1, such as",
        ),
        (spec(training={"iterations": 5, "ema": "yes"}), "write true or false without quotes"),
        (
            spec(training={"iterations": 5, "ema": 1}),
            "1 is not valid (Keep an exponential moving "
            "average of the weights in checkpoints); write true or false",
        ),
        (
            spec(inference={"samples": ["val/videos/b.mp4"]}),
            "spec.inference.samples[0]: 'val/videos/b.mp4' is not valid (One video to generate); "
            "write `- input: val/videos/b.mp4`",
        ),
        (spec(inference={"samples": "a.mp4"}), "write a list: `- input: val/videos/x.mp4`"),
        (
            spec(inference={"samples": {"input": "a.mp4"}}),
            "a mapping is not valid (Videos to generate); write a list: "
            "`- input: val/videos/x.mp4`",
        ),
        (spec(inference={"samples": [None]}), "an empty entry is not valid (One video"),
        (spec(inference={"samples": [{}]}), "spec.inference.samples[0].input: missing; set it"),
        (spec(inference={"numConditionalFrames": "5"}), "write 5 without quotes"),
        (spec(inference={"numConditionalFrames": 2}), "2 is not one of the choices; use 1 or 5"),
        (spec(inference={"numConditionalFrames": True}), "true is not valid"),
        (spec(storage={"size": "500GB"}), "write 500G or 500Gi"),
        (
            spec(storage={"size": "1 tb"}),
            "write a number above zero with or without one of the units k, M, G, T, P, E, Ki",
        ),
        (spec(storage={"size": "100K"}), "write 100k or 100Ki"),
        (spec(storage={"size": 500}), 'write it in quotes, such as "500"'),
        (
            spec(stages={"train": {"env": {"NCCL_DEBUG": "INFO"}}}),
            "write a list: `- {name: NCCL_DEBUG, value: INFO}`",
        ),
        (
            spec(stages={"train": {"env": ["NCCL_DEBUG=INFO"]}}),
            "write `- {name: NCCL_DEBUG, value: INFO}`",
        ),
        (
            spec(stages={"train": {"env": [{"name": "A", "value": 1}]}}),
            'write it in quotes, such as "1"',
        ),
        (
            spec(stages={"train": {"resources": {"limits": {"memory": "16GB"}}}}),
            "write 16G or 16Gi",
        ),
        (
            spec(stages={"train": {"resources": {"limits": {"cpu": 1.5}}}}),
            'write it in quotes, such as "1.5"',
        ),
        (spec(stages={"train": {"nodeSelector": ["a"]}}), "write fields in it, as in name: "),
        (spec(images={"pullSecrets": "mine"}), "write a list: [mine]"),  # pragma: allowlist secret
        (spec(dataset={"agibot": {"taskIDs": 327}}), "write a list: [327]"),
        (spec(dataset={"agibot": {"taskIDs": []}}), "write at least 1 entry, such as [327]"),
        (spec(dataset={"agibot": {"taskIDs": [1] * 65}}), "it has 65 entries, use at most 64"),
        (
            spec(credentials={"huggingFaceTokenSecret": "hf"}),  # pragma: allowlist secret
            "write {name: hugging-face}",
        ),
        (spec(storage="5Gi"), "'5Gi' is not valid (The volume); write {size: 500Gi}"),
        (spec(training=5), "write {iterations: 1000}"),
        (spec(dataset=[]), "a list is not valid (The training videos); write {agibot: {taskIDs"),
        (BASE | {"metadata": {"name": "a", "labels": {"a b": "c"}}}, "is not valid as a key; use"),
        (BASE | {"metadata": {"name": "a", "nam": "b"}}, "unknown field; did you mean name?"),
        (BASE | {"spek": {}}, "spek: unknown field; did you mean spec?"),
        ({k: v for k, v in BASE.items() if k != "spec"}, "spec: missing; write model, dataset"),
    ],
)
def test_messages(document, expected):
    reported = problems(document)
    assert len(reported) == 1, reported
    assert expected in str(reported[0])


TEXT = """apiVersion: video2world.dev/v1alpha1
kind: Video2WorldPostTrain
metadata: {name: run}
spec:
  model: {size: Tiny}
  dataset:
    videos:
      path: clips
      validationNames: [001, on, 1.50]
  training: {iterations: 5}
"""


def test_a_value_that_yaml_reads_as_a_number_is_shown_as_written():
    with pytest.raises(InvalidResource) as caught:
        load_resource(TEXT)
    assert [(p.line, p.path, p.message.rpartition("; ")[2]) for p in caught.value.problems] == [
        (9, "spec.dataset.videos.validationNames[0]", 'write it in quotes, such as "001"'),
        (9, "spec.dataset.videos.validationNames[1]", 'write it in quotes, such as "on"'),
        (9, "spec.dataset.videos.validationNames[2]", 'write it in quotes, such as "1.50"'),
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_the_line_is_named_in_any_encoding(tmp_path: Path, encoding):
    file = tmp_path / "x.yaml"
    before = "# clips of the café\nkind: Secret\napiVersion: v1\n---\n"
    file.write_text(before + TEXT.replace("[001, on, 1.50]\n", "[a]\n      pth: b\n"), encoding)
    with pytest.raises(InvalidResource) as caught:
        load_resource(file)
    assert str(caught.value) == (
        "line 14: spec.dataset.videos.pth: unknown field; did you mean path?"
    )
