"""`v2w validate` and kubectl with the API server agree on every file."""

from __future__ import annotations

import json

import pytest
import yaml

from video2world_operator.api.errors import InvalidResource
from video2world_operator.api.validation import load_manifest, load_resource, parse
from video2world_operator.cli import cluster_run
from video2world_operator.plan.plan import make_plan

HEAD = """apiVersion: video2world.dev/v1alpha1
kind: Video2WorldPostTrain
metadata: {{name: {name}}}
spec:
  model: {{size: Tiny}}
  dataset: {{prepared: {{path: datasets/mine}}}}
"""
TRAINING = "  training: {iterations: 5}\n"


def training(fields: str) -> str:
    return f"  training: {{iterations: 5, {fields}}}\n"


def overrides(text: str) -> str:
    every = [text] if "max_iter" in text else [text, "trainer.max_iter=7"]
    return f"  training: {{overrides: {json.dumps(every)}}}\n"


def pods(checkpoints: str, samples: int) -> str:
    """Two pods that generate from a volume with ReadWriteOncePod."""
    listed = ", ".join(["{input: a}"] * samples)
    inference = f"{{parallelism: 2, {checkpoints}, samples: [{listed}]}}"
    return f"{TRAINING}  storage: {{accessMode: ReadWriteOncePod}}\n  inference: {inference}\n"


# Text below HEAD, and whether both accept it.
SPECS = {
    # numbers
    "quoted": ('  training: {iterations: "1000"}\n', False),
    "exponent": ("  training: {iterations: 1e3}\n", True),
    "exponent-sign": ("  training: {iterations: 1e+3}\n", True),
    "point-zero": ("  training: {iterations: 5.0}\n", True),
    "half": ("  training: {iterations: 5.5}\n", False),
    "underscore": ("  training: {iterations: 1_000}\n", True),
    "octal": ("  training: {iterations: 0o10}\n", True),
    "old-octal": ("  training: {iterations: 010}\n", True),
    "no-octal": ("  training: {iterations: 08}\n", True),
    "hexadecimal": ("  training: {iterations: 0x10}\n", True),
    "binary": ("  training: {iterations: 0b11}\n", True),
    "base-sixty": ("  training: {iterations: 1:30}\n", False),
    "plus": ("  training: {iterations: +5}\n", True),
    "huge": ("  training: {iterations: 99999999999999999999999}\n", False),
    "beyond-uint": ("  training: {iterations: 18446744073709551616}\n", False),
    "nan": (training("learningRate: .nan"), False),
    "inf": (training("learningRate: .inf"), False),
    "overflow": (training("learningRate: 1e999"), False),
    "small": (training("learningRate: 1e-5"), True),
    "point-first": (training("learningRate: .5"), True),
    "integer-for-number": (training("learningRate: 1"), True),
    "whole-below-a-fraction": (training("lora: {alpha: 0}"), False),
    "bound-with-a-fraction": (training("lora: {alpha: 0.001}"), True),
    "quoted-number": (training('learningRate: "0.1"'), False),
    "true-for-number": (training("maxRestarts: true"), False),
    "tagged": ('  training: {iterations: !!int "5"}\n', True),
    "tagged-float": ("  training: {iterations: !!float 5}\n", True),
    "tagged-text": ("  training: {iterations: !!str 5}\n", False),
    # booleans
    "word-yes": (training("ema: yes"), True),
    "word-on": (training("ema: on"), True),
    "word-y": (training("ema: y"), True),
    "word-off": (training("ema: Off"), True),
    "mixed-case": (training("ema: tRUE"), False),
    "quoted-yes": (training('ema: "yes"'), False),
    "quoted-false": (TRAINING + '  suspend: "false"\n', False),
    "one-for-true": (training("ema: 1"), False),
    "true-for-choice": (TRAINING + "  inference: {numConditionalFrames: true}\n", False),
    "text-for-choice": (TRAINING + '  inference: {numConditionalFrames: "1"}\n', False),
    # text
    "date": (training("jobName: 2024-01-01"), True),
    "number-for-text": (training("jobName: 2024"), False),
    "on-for-text": (training("jobName: on"), False),
    "null-word-for-text": (training("jobName: null"), True),
    "nan-for-text": (training("jobName: .nan"), False),
    "time-for-text": (training("jobName: 12:30"), False),
    "blank-around": (training('jobName: " run "'), False),
    "blank-around-plain": (training("jobName:   run  "), True),
    "empty-text": (training('jobName: ""'), False),
    "newline-at-the-end": ("  training:\n    iterations: 5\n    jobName: |\n      run\n", False),
    "no-newline-at-the-end": ("  training:\n    iterations: 5\n    jobName: |-\n      run\n", True),
    "accents": (TRAINING + "  inference: {samples: [{input: é/ü.mp4, prompt: 日本}]}\n", True),
    "characters-not-bytes": (
        TRAINING + f"  inference: {{samples: [{{input: a, prompt: {'é' * 4096}}}]}}\n",
        True,
    ),
    "too-many-characters": (
        TRAINING + f"  inference: {{samples: [{{input: a, prompt: {'é' * 4097}}}]}}\n",
        False,
    ),
    # nothing
    "empty-object": (TRAINING + "  storage:\n  inference:\n", True),
    "tilde": (TRAINING + "  scheduling: ~\n", True),
    "empty-list": (TRAINING + "  inference: {samples: []}\n", True),
    "null-list": (TRAINING + "  inference: {samples: null}\n", True),
    "null-in-a-list": (TRAINING + "  inference: {samples: [null]}\n", False),
    "null-in-a-list-of-texts": (TRAINING + "  images: {pullSecrets: [~]}\n", False),
    "null-in-a-map": (TRAINING + "  stages: {train: {nodeSelector: {a: null}}}\n", True),
    "null-with-a-default": (training("maxRestarts: null"), True),
    "null-that-is-needed": ("  training:\n", False),
    "null-in-a-template": (
        TRAINING + "  stages: {train: {podTemplate: {spec: {hostname: null}}}}\n",
        True,
    ),
    "null-in-tolerations": (TRAINING + "  stages: {train: {tolerations: [null]}}\n", False),
    "null-input": (TRAINING + "  inference: {samples: [{input: null}]}\n", False),
    "null-data-set": (TRAINING + "  credentials: {huggingFaceTokenSecret: null}\n", True),
    "null-status": (TRAINING + "status:\n", True),
    "null-unknown": (TRAINING + "  storag:\n", False),
    # names
    "unknown": (training("iteratons: 5"), False),
    "unknown-at-the-top": (TRAINING + "spek: {}\n", False),
    "unknown-in-status": (TRAINING + "status: {fase: x}\n", False),
    "wrong-type-in-status": (TRAINING + "status: {phase: 5}\n", True),
    "other-case": (training("Seed: 5"), False),
    "on-as-a-key": (TRAINING + "  stages: {train: {nodeSelector: {on: a}}}\n", True),
    "number-as-a-key": (TRAINING + "  stages: {train: {nodeSelector: {1: a, 1.5: b}}}\n", True),
    "null-as-a-key": (TRAINING + "  stages: {train: {nodeSelector: {~: a}}}\n", False),
    "true-in-a-map": (TRAINING + "  stages: {train: {nodeSelector: {a: true}}}\n", False),
    # shapes
    "text-for-a-list": (TRAINING + "  images: {pullSecrets: a}\n", False),
    "map-for-a-list": (TRAINING + "  stages: {train: {env: {NCCL_DEBUG: INFO}}}\n", False),
    "text-for-a-sample": (TRAINING + "  inference: {samples: [val/videos/x.mp4]}\n", False),
    "list-for-an-object": (TRAINING + "  storage: []\n", False),
    "text-for-an-object": (TRAINING + "  storage: 5Gi\n", False),
    "text-for-a-template": (TRAINING + "  stages: {train: {podTemplate: x}}\n", False),
    "text-for-status": (TRAINING + "status: x\n", True),
    # quantities
    "quantity": (TRAINING + "  storage: {size: 1.5Ti}\n", True),
    "bytes": (TRAINING + "  storage: {size: 500GB}\n", False),
    "number-for-a-size": (TRAINING + "  storage: {size: 500}\n", False),
    "whole-limit": (TRAINING + "  stages: {train: {resources: {limits: {cpu: 2}}}}\n", True),
    "half-limit": (TRAINING + "  stages: {train: {resources: {limits: {cpu: 1.5}}}}\n", False),
    "quoted-limit": (TRAINING + '  stages: {train: {resources: {limits: {cpu: "1.5"}}}}\n', True),
    "negative-limit": (TRAINING + "  stages: {train: {resources: {limits: {cpu: -1}}}}\n", False),
    "huge-limit": (TRAINING + "  stages: {train: {resources: {limits: {cpu: 1e20}}}}\n", False),
    "true-limit": (TRAINING + "  stages: {train: {resources: {limits: {cpu: true}}}}\n", False),
    "quoted-checkpoint": (TRAINING + '  inference: {checkpoints: ["500", 500, 5e2]}\n', True),
    # anchors
    "alias": ("  training: &t {iterations: 5}\n  storage: {retention: &k Keep}\n", True),
    "merge": (
        "  training: {iterations: 5, checkpoint: &c {keep: 2}, lora: {rank: 1}}\n"
        "  storage: {<<: {retention: Keep}}\n",
        True,
    ),
    "merge-over": ("  training: {<<: {iterations: x}, iterations: 5}\n", True),
    "merge-comes-later": ("  training: {iterations: 5, <<: {iterations: x}}\n", False),
    "merge-several": ("  training: {<<: [{iterations: 5}, {iterations: x}]}\n", True),
    "merge-no-map": ("  training: {<<: 5, iterations: 5}\n", False),
    "unknown-anchor": ("  training: *none\n", False),
    "circle": ("  training: &t {iterations: 5, lora: *t}\n", False),
    # the guide's experiments and overrides
    "override": (overrides("trainer.max_iter=7"), True),
    "experiment-short": (
        "  model: {}\n  training: {experiment: 2b_agibot_head_center_fisheye_color}\n",
        True,
    ),
    "experiment-of-a-size": (
        "  model: {size: 14B}\n  training: {experiment: 14b_agibot_head_center_fisheye_color}\n",
        True,
    ),
    "experiment-of-another-size": (
        "  model: {size: 2B}\n  training: {experiment: 14b_agibot_head_center_fisheye_color}\n",
        False,
    ),
    "experiment-on-the-cpu": (
        "  model: {}\n  training: {device: CPU, experiment: 2b_agibot_head_center_fisheye_color}\n",
        False,
    ),
    "override-plus": (overrides(" + trainer.max_iter = '7' "), True),
    "override-empty": (overrides("trainer.max_iter="), False),
    "override-quotes-only": (overrides("trainer.max_iter=''"), False),
    "override-setting": (overrides("optimizer.weight_decay=0.2"), True),
    "override-of-text": (overrides("model.config.vae_path="), True),
    "override-of-a-choice": (overrides("model.config.keep_activations="), False),
    "override-fixed": (overrides("trainer.cudnn.benchmark=True"), True),
    "override-fixed-otherwise": (overrides("trainer.cudnn.benchmark=false"), False),
    "override-decided": (overrides("job.group=a"), False),
    "override-unknown": (overrides("trainer.max_iters=7"), False),
    "override-no-value": (overrides("trainer.max_iter"), False),
    "override-number": ("  training: {iterations: 5, overrides: [7]}\n", False),
    # rules
    "two-checkpoints": (pods("checkpoints: [latest, 500]", 1), False),
    "one-checkpoint-twice": (pods('checkpoints: [500, "500"]', 1), True),
    "all-checkpoints": (pods("checkpoints: [all]", 1), False),
    "two-samples": (pods("checkpoints: [latest]", 2), False),
    "no-sample": (pods("checkpoints: [latest, 500]", 0), True),
    "shards": (
        "  dataset: {prepared: {path: a}, shards: 2}\n"
        + TRAINING
        + "  storage: {accessMode: ReadWriteOncePod}\n",
        False,
    ),
    "claim-for-one": (TRAINING + "  storage: {accessMode: ReadWriteOncePod}\n", True),
}
FILES = {
    "byte-order-mark": ("\ufeff{head}{training}", "utf-8", True),
    "utf-16": ("\ufeff{head}{training}", "utf-16-le", True),
    "windows-lines": ("{head}{training}", "crlf", True),
    "separator": ("---\n{head}{training}---\n", "utf-8", True),
    "comment-at-the-separator": ("--- # first\n{head}{training}", "utf-8", True),
    "text-at-the-separator": ("--- {{a: 1}}\n---\n{head}{training}", "utf-8", False),
    "tabs": ("{head}  training:\n\titerations: 5\n", "utf-8", False),
    "tab-after-a-colon": ("{head}  training: {{iterations:\t5}}\n", "utf-8", True),
    "control-character": ("{head}{training}# \x07\n", "utf-8", False),
    "wrong-version": ("{other}{training}", "utf-8", False),
    "no-version": ("{no_version}{training}", "utf-8", False),
    "no-kind": ("{no_kind}{training}", "utf-8", False),
    "metadata-unknown": ("{metadata_unknown}{training}", "utf-8", False),
    "metadata-number": ("{metadata_number}{training}", "utf-8", False),
    "metadata-null": ("{metadata_null}{training}", "utf-8", True),
    "label-form": ("{label_form}{training}", "utf-8", False),
    "creation-null": ("{creation_null}{training}", "utf-8", True),
}


def heads(name: str) -> dict[str, str]:
    head = HEAD.format(name=name)
    more = {
        "metadata_unknown": "nam: a",
        "metadata_number": "labels: {a: 5}",
        "metadata_null": "labels: {a: null}, annotations: null, namespace: null",
        "label_form": "labels: {a: b c}",
        "creation_null": "creationTimestamp: null",
    }
    made = {key: head.replace(f"name: {name}", f"name: {name}, {v}") for key, v in more.items()}
    for key, word in (("no_version", "apiVersion: "), ("no_kind", "kind: ")):
        made[key] = "".join(x for x in head.splitlines(True) if not x.startswith(word))
    return {"head": head, "training": TRAINING, "other": head.replace("v1alpha1", "v1"), **made}


def spec_of(name: str, text: str) -> str:
    """A file with ``text`` in its spec, which replaces the same fields of HEAD."""
    lines = HEAD.format(name=name).splitlines(keepends=True)
    given = {line.partition(":")[0] for line in text.splitlines()}
    return "".join(x for x in lines if x.partition(":")[0] not in given) + text


def ours(path) -> str | None:
    try:
        load_resource(path)
    except InvalidResource as error:
        return str(error)
    return None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One file for each case, named as its resource."""
    folder = tmp_path_factory.mktemp("files")
    for name, (text, _) in SPECS.items():
        (folder / f"{name}.yaml").write_text(spec_of(name, text), encoding="utf-8")
    for name, (text, kind, _) in FILES.items():
        content = text.format(**heads(name))
        if kind == "crlf":
            content, kind = content.replace("\n", "\r\n"), "utf-8"
        (folder / f"{name}.yaml").write_bytes(content.encode(kind))
    document = yaml.safe_load(HEAD.format(name="json-tabs") + TRAINING)
    (folder / "json-tabs.json").write_text(json.dumps(document, indent="\t"))
    document["metadata"]["name"] = "json-number"
    document["spec"]["training"]["iterations"] = 5.0
    (folder / "json-number.json").write_text(json.dumps(document))
    return folder


@pytest.fixture(scope="module")
def server_takes(cluster, folder):
    """The names that kubectl create accepts in a server-side dry run, and its errors."""
    asked = ("create", "--dry-run=server", "--validate=strict", "-o", "name", "-f", folder)
    done = cluster.kubectl(*asked, check=False)
    return {line.rpartition("/")[2] for line in done.stdout.splitlines()}, done.stderr


WANTED = (
    {name: good for name, (_, good) in SPECS.items()}
    | {name: good for name, (_, _, good) in FILES.items()}
    | {"json-tabs": True, "json-number": True}
)


@pytest.mark.parametrize("name", WANTED)
def test_kubectl_and_validate_agree(folder, server_takes, name):
    accepted, said = server_takes
    (path,) = folder.glob(f"{name}.*")
    refusal = ours(path)
    lines = [line for line in said.splitlines() if f"{name}." in line or f'"{name}"' in line]
    assert (name in accepted) == WANTED[name], lines
    assert (refusal is None) == WANTED[name], refusal


def test_preflight_submits_the_file_as_written(cluster, namespace, monkeypatch):
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
    manifest = load_manifest(HEAD.format(name="submitted") + TRAINING)
    plan = make_plan(parse(manifest))
    assert cluster_run.preflight(plan, manifest, namespace).refusal == ""
    manifest["spec"]["training"]["iterations"] = "5"
    refusal = cluster_run.preflight(plan, manifest, namespace).refusal
    assert "spec.training.iterations" in refusal
    manifest["spec"]["training"] = {"iterations": 5, "iteratons": 5}
    assert "unknown field" in cluster_run.preflight(plan, manifest, namespace).refusal
