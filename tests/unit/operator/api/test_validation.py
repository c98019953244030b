"""Short files suffice; mistakes are reported with field and remedy."""

import json
import subprocess
import sys
import textwrap

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from repository import ROOT
from video2world_common.model_sizes import SIZES
from video2world_operator.api.errors import InvalidResource
from video2world_operator.api.validation import load_manifest, load_resource, parse

SAMPLES = sorted((ROOT / "manifests" / "samples").glob("*.yaml"))


def document(**spec):
    base = {
        "model": {"size": "2B"},
        "dataset": {"agibot": {}},
        "training": {"iterations": 1000},
    }
    return {
        "apiVersion": "video2world.dev/v1alpha1",
        "kind": "Video2WorldPostTrain",
        "metadata": {"name": "run"},
        "spec": base | spec,
    }


def mistakes(**spec):
    with pytest.raises(InvalidResource) as caught:
        parse(document(**spec))
    return str(caught.value).splitlines()


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_samples_load(path):
    assert load_resource(path).name == path.stem


def test_the_samples_are_known():
    assert {path.stem for path in SAMPLES} == {
        "posttrain",
        "captioned-videos",
        "demo",
        "demo-actions",
        "agibot-2b",
        "agibot-14b",
        "agibot-14b-lora",
        "agibot-2b-phases",
        "agibot-2b-sparse",
        "agibot-2b-sweep",
        "bridge-2b-actions",
        "lerobot-2b",
        "lerobot-2b-actions",
        "own-videos",
    }


@pytest.mark.parametrize(
    ("size", "nodes", "processes", "parallel", "device"),
    [("Tiny", 1, 1, 1, "CPU"), ("2B", 1, 8, 2, "GPU"), ("14B", 4, 8, 8, "GPU")],
)
def test_defaults_follow_from_the_size(size, nodes, processes, parallel, device):
    spec = parse(document(model={"size": size})).spec
    assert (spec.nodes, spec.processes_per_node, spec.context_parallel) == (
        nodes,
        processes,
        parallel,
    )
    assert spec.device == device


@pytest.mark.parametrize(
    ("model", "frames", "picture"),
    [
        ({"size": "2B"}, 93, (704, 1280)),
        ({"size": "2B", "fps": 10}, 61, (704, 1280)),
        ({"size": "14B", "resolution": "480p"}, 93, (432, 768)),
        ({"size": "Tiny"}, 17, (96, 128)),
    ],
)
def test_clip(model, frames, picture):
    spec = parse(document(model=model)).spec
    assert (spec.num_frames, spec.video_size) == (frames, picture)
    assert [one.video_size for one in spec.phases] == [picture]
    assert sum(one.iterations for one in spec.phases) == spec.iterations


def test_an_invalid_context_parallel_size_lists_the_valid_ones():
    assert mistakes(
        model={"size": "14B"}, training={"iterations": 1, "contextParallelSize": 3}
    ) == [
        "spec.training.contextParallelSize: 3 is not valid: it must divide nodes x gpusPerNode "
        "(32) and the 40 attention heads of 14B; use 1, 2, 4 or 8"
    ]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["2B", "14B"]), st.integers(1, 6), st.integers(1, 8), st.integers(1, 64))
def test_context_parallel_is_accepted_exactly_when_it_divides(size, nodes, gpus, parallel):
    training = {
        "iterations": 1,
        "nodes": nodes,
        "gpusPerNode": gpus,
        "contextParallelSize": parallel,
    }
    fits = nodes * gpus % parallel == 0 and SIZES[size].num_heads % parallel == 0
    wanted = document(model={"size": size}, training=training)
    if fits:
        assert parse(wanted).spec.context_parallel == parallel
    else:
        with pytest.raises(InvalidResource) as caught:
            parse(wanted)
        assert [p.path for p in caught.value.problems] == ["spec.training.contextParallelSize"]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (
            {"training": {"iteration": 5, "iterations": 5}},
            "spec.training.iteration: unknown field; did you mean iterations?",
        ),
        (
            {"training": {"gpus_per_node": 5, "iterations": 5}},
            "spec.training.gpus_per_node: unknown field; did you mean gpusPerNode?",
        ),
        (
            {
                "dataset": {
                    "prepared": {"path": "datasets/mine"},
                    "captions": {"endpoint": "http://vllm/v1", "model": "vlm"},
                }
            },
            "spec.dataset.captions: a prepared dataset is not changed; remove captions",
        ),
        (
            {
                "dataset": {
                    "agibot": {},
                    "captions": {"endpoint": "http://me@vllm/v1", "model": "vlm"},
                }
            },
            "write the base URL of an OpenAI-compatible API",
        ),
        (
            {"dataset": {"agibot": {"taskIds": [1]}}},
            "spec.dataset.agibot.taskIds: unknown field; did you mean taskIDs?",
        ),
        (
            {"inference": {"samples": [{"input": "a.mp4", "promt": ""}]}},
            "spec.inference.samples[0].promt: unknown field; did you mean prompt?",
        ),
        ({"model": {"size": "2b"}}, "did you mean 2B?"),
        ({"model": {}}, "spec.model.size: missing; use Tiny, 2B or 14B"),
        ({"training": {}}, "spec.training.iterations: missing; set the number of steps"),
        ({"training": {"iterations": 0}}, "spec.training.iterations: 0 is not valid"),
        ({"training": {"iterations": "many"}}, "spec.training.iterations: 'many' is not valid"),
        ({"dataset": {}}, "spec.dataset: none set; set exactly one of"),
        (
            {"dataset": {"agibot": {}, "videos": {"path": "v"}}},
            "spec.dataset: agibot and videos set; set exactly one",
        ),
        (
            {"dataset": {"lerobot": {"repoID": "a/b"}, "videos": {"path": "v"}}},
            "spec.dataset: lerobot and videos set; set exactly one",
        ),
        (
            {"dataset": {"lerobot": {}}},
            "spec.dataset.lerobot: set exactly one of repoID and path; none of them is set",
        ),
        (
            {"dataset": {"lerobot": {"repoID": "a/b", "path": "c"}}},
            "spec.dataset.lerobot: set exactly one of repoID and path; both are set",
        ),
        (
            {"dataset": {"lerobot": {"path": "c", "revision": "main"}}},
            "spec.dataset.lerobot.revision: it is that of a repository on the Hub; set repoID",
        ),
        (
            {"dataset": {"lerobot": {"path": "c", "caption": "File"}}},
            "spec.dataset.lerobot.captionFile: missing; set the file",
        ),
        (
            {"dataset": {"lerobot": {"path": "c", "captionFile": "a.csv"}}},
            "spec.dataset.lerobot.captionFile: not used with caption: Task; set caption: File",
        ),
        (
            {"dataset": {"lerobot": {"path": "c", "caption": "Endpoint"}}},
            "spec.dataset.lerobot.caption: caption: Endpoint leaves the captions to "
            "dataset.captions; set its endpoint and model, or use Task",
        ),
        (
            {"dataset": {"lerobot": {"path": "c", "episodes": [0, "9-1"]}}},
            "spec.dataset.lerobot.episodes[1]: '9-1' ends before it begins; write 1-9",
        ),
        (
            {"dataset": {"lerobot": {"path": "c", "validationEpisodes": ["0:5"]}}},
            "spec.dataset.lerobot.validationEpisodes[0]: '0:5' is not valid; write a number, or an "
            "inclusive range, such as 0-99",
        ),
        (
            {"dataset": {"lerobot": {"path": "c", "subfolder": "a/../../b"}}},
            "spec.dataset.lerobot.subfolder: 'a/../../b' leaves the volume",
        ),
        (
            {"dataset": {"lerobot": {"repoId": "a/b", "path": "c"}}},
            "spec.dataset.lerobot.repoId: unknown field; did you mean repoID?",
        ),
        ({"dataset": {"agibot": {"release": "beta"}}}, "did you mean Beta?"),
        ({"dataset": {"videos": {"path": "/v"}}}, "spec.dataset.videos.path: '/v' is not valid"),
        ({"dataset": {"videos": {"path": "--v"}}}, "spec.dataset.videos.path: '--v'"),
        ({"dataset": {"videos": {"path": "v/../.."}}}, "leaves the volume"),
        (
            {"training": {"iterations": 5, "device": "CPU"}},
            "spec.training.device: CPU cannot train 2B; use GPU, or spec.model.size Tiny",
        ),
        (
            {"stages": {"train": {"env": [{"name": "PET_NNODES", "value": "2"}]}}},
            "spec.stages.train.env[0].name: PET_NNODES is set by the operator; remove it",
        ),
        (
            {"storage": {"accessMode": "ReadWriteOncePod"}, "model": {"size": "14B"}},
            "spec.storage.accessMode: ReadWriteOncePod does not allow 4 pods",
        ),
        (
            {"inference": {"checkpoint": "latest", "checkpoints": [500]}},
            "spec.inference.checkpoint: latest is set together with checkpoints; keep one of them",
        ),
        (
            {"inference": {"checkpoints": ["a/../b.pt"]}},
            "spec.inference.checkpoints[0]: 'a/../b.pt' is not valid",
        ),
        (
            {"inference": {"everyCheckpoint": True}},
            "spec.inference.everyCheckpoint: there is nothing to generate; add inference.samples",
        ),
        (
            {"inference": {"weights": "EMA"}, "training": {"iterations": 5, "ema": False}},
            "spec.inference.weights: EMA weights are not saved with training.ema: false; use "
            "Regular",
        ),
        (
            {
                "inference": {"everyCheckpoint": True, "samples": [{"input": "a.mp4"}]},
                "storage": {"accessMode": "ReadWriteOncePod"},
            },
            "spec.storage.accessMode: ReadWriteOncePod does not allow 2 pods",
        ),
        (
            {
                "model": {"size": "2B", "weights": "mine/model-720p-16fps.pt"},
                "training": {"iterations": 5, "attentionPattern": "Sparse"},
            },
            "spec.training.attentionPattern: Sparse cannot start from mine/model-720p-16fps.pt "
            "(spec.model.weights), which has dense attention; use Dense, or remove the weights",
        ),
        (
            {"model": {"size": "2B", "weights": "model-720p-10fps-natten.pt"}},
            "Dense cannot start from model-720p-10fps-natten.pt (spec.model.weights), which has "
            "sparse attention; use Sparse",
        ),
        (
            {"inference": {"gpus": 3}},
            "spec.inference.gpus: 3 is not valid: they must divide the 16 attention heads of 2B; "
            "use 1, 2, 4, 8 or 16",
        ),
        (
            {"inference": {"gpus": 6}},
            "6 is not valid: the 3 that share a branch of guidance must divide the 16 attention",
        ),
        (
            {"model": {"size": "14B"}, "inference": {"gpus": 16, "guidance": 0}},
            "must divide the 40 attention heads of 14B; use 1, 2, 4, 5, 8 or 10",
        ),
        ({"model": {"size": "Tiny"}, "inference": {"gpus": 16}}, "use 1, 2, 4 or 8"),
        ({"inference": {"gpus": 0}}, "spec.inference.gpus: 0 is not valid"),
        ({"inference": {"gpus": 32}}, "spec.inference.gpus: 32 is not valid"),
        ({"inference": {"offload": "Auto"}}, "spec.inference.offload: 'Auto' is not valid"),
        (
            {"evaluation": {}, "dataset": {"agibot": {"taskIDs": [327]}}},
            "spec.evaluation: there are no held-out windows; set "
            "dataset.agibot.validationEpisodeIDs or validationPercent, or remove it",
        ),
        (
            {"managedBy": "kueue.x-k8s.io/multikueue"},
            "spec.scheduling.queueName: MultiKueue sends what waits in a queue; set the "
            "LocalQueue, or remove managedBy",
        ),
        (
            {
                "managedBy": "kueue.x-k8s.io/multikueue",
                "scheduling": {"queueName": "gpus"},
                "storage": {"retention": "Delete"},
            },
            "spec.storage.retention: with Delete the results would be lost",
        ),
        ({"managedBy": "kueue"}, "spec.managedBy: 'kueue' is not one of the choices"),
        (
            {"evaluation": {"samples": 0}, "dataset": {"prepared": {"path": "d"}}},
            "spec.evaluation.samples: 0 is not valid",
        ),
        (
            {"evaluation": {"metrics": ["PSRN"]}, "dataset": {"prepared": {"path": "d"}}},
            "did you mean PSNR?",
        ),
        (
            {"evaluation": {"metrics": ["PSNR"] * 2}, "dataset": {"prepared": {"path": "d"}}},
            "spec.evaluation.metrics: a metric is named twice; keep one",
        ),
        (
            {
                "evaluation": {"checkpoints": ["latest", 6]},
                "training": {"iterations": 5},
                "dataset": {"prepared": {"path": "d"}},
            },
            "spec.evaluation.checkpoints: 6 comes after the last iteration, 5",
        ),
        (
            {
                "evaluation": {"lpipsWeights": "a/../w.pth"},
                "dataset": {"prepared": {"path": "d"}},
            },
            "spec.evaluation.lpipsWeights: 'a/../w.pth' leaves the volume",
        ),
        ({"storage": {"size": "big"}}, "spec.storage.size: 'big' is not valid (Size of"),
        (
            {"inference": {"samples": [{"input": "a", "output": "x.avi"}]}},
            "spec.inference.samples[0].output: 'x.avi' is not valid (File name of the result",
        ),
    ],
)
def test_mistakes(spec, expected):
    lines = mistakes(**spec)
    assert len(lines) == 1
    assert expected in lines[0]


HELD_OUT = {"agibot": {"validationEpisodeIDs": [685393]}}


@pytest.mark.parametrize(
    ("training", "more", "expected"),
    [
        (
            {"stopWhen": {"validationLossNotBetterFor": 3}},
            {},
            "spec.training.stopWhen.validationLossNotBetterFor: nothing is validated; add "
            "spec.training.validation",
        ),
        (
            {"validation": {"weights": "EMA"}, "ema": False},
            {},
            "spec.training.validation.weights: there are no EMA weights with training.ema: false",
        ),
        (
            {"validation": {}},
            {"dataset": {"agibot": {}}},
            "spec.training.validation: there are no held-out windows; set "
            "dataset.agibot.validationEpisodeIDs or validationPercent",
        ),
        (
            {"validation": {}},
            {"dataset": {"lerobot": {"path": "l"}}},
            "set dataset.lerobot.validationEpisodes or validationPercent",
        ),
        (
            {"validation": {}},
            {"dataset": {"videos": {"path": "v"}}},
            "set dataset.videos.validationNames or validationPercent",
        ),
        ({}, {"inference": {"checkpoint": "best"}}, "spec.inference.checkpoint: best is the"),
        ({}, {"inference": {"checkpoints": [500, "best"]}}, "spec.inference.checkpoints: best is"),
        ({"validation": {"levels": 2}}, {}, "spec.training.validation.levels: 2 is not valid"),
        (
            {"validation": {}, "overrides": ["trainer.run_validation=false"]},
            {},
            "trainer.run_validation=false contradicts spec.training.validation",
        ),
    ],
)
def test_what_cannot_be_validated_is_refused(training, more, expected):
    lines = mistakes(**{"dataset": HELD_OUT, "training": {"iterations": 1000} | training} | more)
    assert len(lines) == 1
    assert expected in lines[0]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["trainer.run_validation=true"], 500),
        (["trainer.run_validation=true", "trainer.validation_iter=250"], 250),
        (["trainer.validation_iter=250", "trainer.run_validation=True"], 250),
        (["trainer.run_validation=False"], None),
    ],
)
def test_overrides_of_the_original_turn_validation_on_and_off(overrides, expected):
    training = {"iterations": 1000, "overrides": overrides}
    found = parse(document(dataset=HELD_OUT, training=training)).spec.training.validation
    assert (found.every_iterations if found else None) == expected


@pytest.mark.parametrize(
    "dataset",
    [
        HELD_OUT,
        {"agibot": {"validationPercent": 5}},
        {"lerobot": {"path": "l", "validationPercent": 5}},
        {"lerobot": {"path": "l", "validationEpisodes": ["0-3"]}},
        {"videos": {"path": "v", "validationPercent": 5}},
        {"videos": {"path": "v", "validationNames": ["last"]}},
        {"prepared": {"path": "p"}},  # its dataset stage counts the windows in val/
    ],
)
def test_every_source_can_hold_out_windows(dataset):
    training = {"iterations": 1000, "validation": {}, "stopWhen": {"validationLossNotBetterFor": 2}}
    inference = {"checkpoint": "best", "samples": [{"input": "a.mp4"}]}
    parse(document(dataset=dataset, training=training, inference=inference))


def test_every_mistake_is_listed_at_once():
    lines = mistakes(model={"size": "3B"}, training={"iterations": -1}, dataset={"agibt": {}})
    assert [line.partition(":")[0] for line in lines] == [
        "spec.model.size",
        "spec.dataset.agibt",
        "spec.training.iterations",
    ]


@pytest.mark.parametrize("name", ["Run", "1run", "a" * 41, "run.1", "-run"])
def test_names_that_would_break_a_child_are_refused(name):
    with pytest.raises(InvalidResource, match=r"metadata\.name"):
        parse(document() | {"metadata": {"name": name}})


TEXT = """
    apiVersion: video2world.dev/v1alpha1
    kind: Video2WorldPostTrain
    metadata: {name: run}
    spec:
      model: {size: Tiny}
      dataset: {prepared: {path: datasets/mine}}
      training: {iterations: 5}
"""


def test_other_documents_are_ignored():
    text = textwrap.dedent(TEXT) + "---\nkind: Secret\napiVersion: v1\n---\n"
    resource = load_resource(text)
    assert resource.dataset_dir == "datasets/mine"


def test_a_file_and_its_text_are_equivalent(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(textwrap.dedent(TEXT))
    assert load_resource(path) == load_resource(str(path)) == load_resource(textwrap.dedent(TEXT))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [1\nb: 2\n", r"the text, line 2, column \d+: not valid YAML"),
        ("a: 1\na: 2\n", r"the text, line 2, column 1: not valid YAML: a is set twice"),
        ("kind: Job\n", "contains Job, not a Video2WorldPostTrain; write apiVersion: video2world"),
        ("\n", "contains no object"),
        ("- 1\n", "contains no object"),
        (textwrap.dedent(TEXT) + "---" + textwrap.dedent(TEXT), "contains 2 resources"),
        (textwrap.dedent(TEXT).replace("v1alpha1", "v2"), "apiVersion: 'video2world.dev/v2' is"),
        (textwrap.dedent(TEXT).replace("PostTrain", "Posttrain"), "did you mean Video2WorldPost"),
    ],
)
def test_files_that_are_refused(text, expected):
    with pytest.raises(InvalidResource, match=expected):
        load_resource(text)


def test_missing_file_and_binary_file(tmp_path):
    with pytest.raises(InvalidResource, match=r"cannot be read \(No such file"):
        load_resource(tmp_path / "none.yaml")
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidResource, match="is not valid UTF-16"):
        load_resource(tmp_path / "b.yaml")


def written(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("kind", ["utf-8-sig", "utf-16", "json", "json with tabs", "crlf"])
def test_files_of_other_forms(tmp_path, kind):
    text, file = textwrap.dedent(TEXT), tmp_path / "x.yaml"
    if kind.startswith("json"):
        plain = yaml.safe_load(text)
        text = json.dumps(plain, indent="\t" if "tabs" in kind else None) + "\n"
    text = text.replace("\n", "\r\n") if kind == "crlf" else text
    written(file, text, kind if kind.startswith("utf") else "utf-8")
    assert load_resource(file) == load_resource(textwrap.dedent(TEXT))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: b\n\tc: d\n", r"x.yaml, line 2, column 1: .*; indent with spaces, not with tabs"),
        ("a: \x07\n", r"x.yaml, line 1, column 4: .* a control character \(0x07\); remove it"),
        ("--- {a: 1}\n", "x.yaml, line 1, column 4: .* text after ---; put --- on a line"),
        ("a: .inf\n", r"line 1, column 4: .*JSON has no number \.inf"),
        ("a: &a [*a]\n", "an anchor contains itself"),
        ("a: !mine 5\n", "the tag !mine is not supported; remove it"),
        ("a: !!int x\n", "'x' does not match the tag tag:yaml.org,2002:int"),
        ("? [a]\n: b\n", "a key is not a string; write it in quotes"),
        ("? {a: b}\n", "a key is not a string"),
        ("a: {<<: 5}\n", "<< takes a mapping"),
        ("on: 1\ntrue: 2\n", "line 2, column 1: .*true is set twice"),
        ('{"a": 1, "a": 2}', "a is set twice; keep one"),
        ('{"a": NaN}', "not valid JSON: NaN is not a number in JSON"),
        ("{a: 1, a: 2}\n", "a is set twice"),
        ("", "contains no object, not a Video2WorldPostTrain; write apiVersion"),
        ("# nothing\n", "contains no object"),
        ("x\n", "contains no object"),
        ("[" * 5000, "not valid YAML: exceeded maximum nesting depth"),
        ("{a: " * 300 + "}" * 300, "contains an object without kind"),
        (
            "".join(
                f"{c}: &{c} [{', '.join(['*' + b] * 10)}]\n" if b else f"{c}: &{c} [1]\n"
                for b, c in zip(["", *"abcdefg"], "abcdefgh", strict=True)
            ),
            "too many values; shorten it, or use fewer aliases",
        ),
    ],
)
def test_errors_in_a_file_name_line_and_column(tmp_path, text, expected):
    with pytest.raises(InvalidResource, match=expected):
        load_resource(written(tmp_path / "x.yaml", text))


def test_other_encodings_are_named_with_the_line(tmp_path):
    file = written(tmp_path / "x.yaml", "a: b\nc: é\n", "latin-1")
    with pytest.raises(InvalidResource, match=r"UTF-8 \(line 2, byte 0xe9\); save it as UTF-8"):
        load_resource(file)


def test_values_that_json_cannot_represent():
    for value in (float("nan"), {1, 2}, "\ud800"):
        with pytest.raises(InvalidResource, match="JSON cannot represent it"):
            parse(document(model={"size": value}))


@pytest.mark.parametrize("spec", [5, [], "x", {"model": "2B"}, {"training": []}])
@pytest.mark.parametrize("training", [{}, {"experiment": "2b"}, {"overrides": ["a=b", 5, None]}])
def test_any_shape_is_refused_without_a_traceback(spec, training):
    raw = document() | {
        "spec": spec
        if not isinstance(spec, dict)
        else {"model": {}, "dataset": {}, "training": training} | spec
    }
    with pytest.raises(InvalidResource):
        parse(raw)


def test_tuples_and_integral_floats_are_converted_as_by_json():
    made = parse(document(dataset={"agibot": {"taskIDs": (1, 2)}}, training={"iterations": 5.0}))
    assert made.spec.dataset.agibot.task_ids == [1, 2]
    assert made.spec.iterations == 5


def test_the_manifest_is_the_file_as_kubectl_sends_it():
    text = textwrap.dedent(TEXT).replace("5}", '"5", nodes: 1e0, experiment: null}')
    training = load_manifest(text)["spec"]["training"]
    assert training == {"iterations": "5", "nodes": 1, "experiment": None}


def test_yaml_cannot_execute(tmp_path):
    with pytest.raises(InvalidResource, match="not valid YAML"):
        load_resource(f"a: !!python/object/apply:os.mkdir ['{tmp_path}/made']\nb: 1\n")
    assert not (tmp_path / "made").exists()


def test_fields_of_the_api_server_are_accepted():
    raw = document()
    raw["metadata"] |= {"uid": "u", "managedFields": [{}], "resourceVersion": "1", "generation": 2}
    raw["status"] = {"phase": "Running"}
    resource = parse(raw)
    assert resource.metadata.generation == 2
    assert resource.status is not None


def test_round_trip():
    resource = load_resource(SAMPLES[0])
    again = resource.model_dump(by_alias=True, exclude_none=True, exclude_unset=True)
    assert parse(again) == resource


def test_importing_needs_neither_yaml_nor_torch():
    program = (
        "import sys; import video2world_operator.api.validation, video2world_operator.plan.plan;"
        "print([m for m in ('yaml', 'torch', 'numpy', 'av') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ({"fase": "x"}, "status.fase: unknown field; did you mean phase?"),
        ({"phase": 3, "fase": "x"}, "status.fase: unknown field"),
        ({"stages": [{"name": "train", "stat": 1}]}, "status.stages[0].stat: unknown field; did"),
    ],
)
def test_unknown_fields_of_a_status_are_refused(status, expected):
    with pytest.raises(InvalidResource) as caught:
        parse(document() | {"status": status})
    assert str(caught.value).startswith(expected)


def test_wrong_values_in_a_status_are_dropped():
    assert parse(document() | {"status": {"phase": 3}}).status is None
