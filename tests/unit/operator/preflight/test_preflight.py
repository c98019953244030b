"""v2w preflight: estimates match measured runs, and each check has its verdicts."""

import asyncio
import json
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from video2world_operator.api.quantity import quantity
from video2world_operator.api.validation import parse
from video2world_operator.cli.main import main
from video2world_operator.kube.errors import ApiError
from video2world_operator.plan.optional_apis import Capabilities, OptionalApi
from video2world_operator.plan.plan import make_plan
from video2world_operator.preflight import node_fit
from video2world_operator.preflight.caption_requests import check_captions
from video2world_operator.preflight.check import ATTENTION
from video2world_operator.preflight.checks import check_hub, check_images, check_machine, images_of
from video2world_operator.preflight.cluster_checks import check_cluster
from video2world_operator.preflight.facts import Access, ClusterFacts, Gpu, Machine
from video2world_operator.preflight.machine import gpus_in, hub, machine
from video2world_operator.preflight.node_fit import before_training, training_gpus
from video2world_operator.preflight.operator_preflight import NodePreflight
from video2world_operator.preflight.registry import parts, pullable
from video2world_operator.preflight.requirements import GIB, estimate
from video2world_operator.preflight.time_estimate import estimate_time

H100 = Gpu("NVIDIA-H100-80GB-HBM3", 81559 * 2**20, 9)
REPOSITORIES = (
    "nvidia/Cosmos-Predict2-2B-Video2World",
    "google-t5/t5-11b",
    "datasets/agibot-world/AgiBotWorld-Alpha",
)


def resource(size="2B", *, model=None, training=None, **spec):
    return parse(
        {
            "apiVersion": "video2world.dev/v1alpha1",
            "kind": "Video2WorldPostTrain",
            "metadata": {"name": "run"},
            "spec": {
                "model": {"size": size} | (model or {}),
                "dataset": {"agibot": {}},
                "training": {"iterations": 5} | (training or {}),
                **spec,
            },
        }
    )


@pytest.mark.parametrize(
    ("made", "measured"),  # docs/performance.md; the constants come from others than the last two
    [
        (resource(training={"nodes": 1, "gpusPerNode": 1, "contextParallelSize": 1}), 68.62),
        (resource(training={"nodes": 1, "gpusPerNode": 2, "contextParallelSize": 2}), 34.7),
        (
            resource(
                "14B",
                model={"resolution": "480p"},
                training={
                    "architecture": "LoRA",
                    "nodes": 1,
                    "gpusPerNode": 1,
                    "contextParallelSize": 1,
                },
            ),
            61.0,
        ),
    ],
    ids=["2B", "2B on two", "14B LoRA 480p"],
)
def test_estimated_gpu_memory_matches_measured_runs(made, measured):
    assert estimate(made).gpu / GIB == pytest.approx(measured, rel=0.02)


def test_gradient_accumulation_takes_memory_for_sums_and_time_for_each_micro_batch():
    one, four = (resource(training={"gradientAccumulation": count}) for count in (1, 4))
    gpus = four.spec.nodes * four.spec.processes_per_node
    assert estimate(four).gpu - estimate(one).gpu == pytest.approx(4 * 3.91e9 / 2 / gpus)
    lora = [
        resource(training={"architecture": "LoRA", "gradientAccumulation": count})
        for count in (1, 4)
    ]
    assert estimate(lora[0]).gpu == estimate(lora[1]).gpu
    seconds = [estimate_time(made).phases[0].step.seconds for made in (one, four)]
    assert seconds[1] == pytest.approx(4 * seconds[0])


def test_disk_and_repositories():
    estimated = estimate(resource())
    assert estimated.checkpoint == pytest.approx(43e9, rel=0.01)  # measured
    assert estimated.disk == pytest.approx(4 * 43e9 + 3.91e9 + 55.7e9 + 10e9, rel=0.01)
    assert estimated.repositories == REPOSITORIES
    fewer = estimate(resource(training={"checkpoint": {"keep": 1}, "ema": False}))
    assert fewer.disk < estimated.disk - 80e9
    kept = estimate(resource(dataset={"agibot": {"taskIDs": [327], "keepArchives": True}}))
    assert kept.disk == estimated.disk + 100e9
    assert estimate(resource("Tiny")).repositories == REPOSITORIES[2:]
    assert estimate(resource("Tiny", dataset={"prepared": {"path": "d"}})).disk < 1e9


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("500Gi", 500 * 2**30),
        ("1500m", 1.5),
        ("8", 8),
        (3, 3),
        ("2T", 2e12),
        ("1e3", 1000),
        ("0.5Gi", 2**29),
    ],
)
def test_quantities(text, number):
    assert quantity(text) == number


@pytest.mark.parametrize("text", ["", "8 GPUs", "Gi", "1Zi"])
def test_text_that_is_not_a_quantity(text):
    with pytest.raises(ValueError, match="quantity"):
        quantity(text)


# ---------------------------------------------------------------------- this machine


def verdicts(checks):
    return {check.name: (str(check.verdict), check.text, check.remedy) for check in checks}


def here(made, **fields):
    base = Machine(disk=1e12, memory=1e12, gpus=[H100] * 8)
    return verdicts(check_machine(make_plan(made), estimate(made), replace(base, **fields)))


def test_a_machine_that_suffices():
    assert {verdict for verdict, *_ in here(resource()).values()} == {"ok"}


@pytest.mark.parametrize(
    ("made", "fields", "name", "text"),
    [
        (resource(), {"disk": 1e11}, "disk", "needs about 242 GB, has 100 GB"),
        (resource(), {"memory": 16e9}, "host memory", "needs about 43 GB, has 16 GB"),
        (resource(), {"gpus": None}, "GPUs", "8 are requested, 0 are available"),
        (resource("14B"), {}, "GPUs", "32 are requested, 8 are available"),
        (
            resource(training={"nodes": 1, "gpusPerNode": 1, "contextParallelSize": 1}),
            {"gpus": [Gpu("NVIDIA A100", 40 * GIB, 8)]},
            "GPU memory",
            "needs about 69 GiB",
        ),
        (
            resource(training={"attention": "FlashAttention3"}),
            {"gpus": [Gpu("NVIDIA A100", 80 * GIB, 8)] * 8},
            "attention",
            "FlashAttention3 does not run on NVIDIA A100",
        ),
    ],
)
def test_a_machine_that_does_not_suffice(made, fields, name, text):
    found = here(made, **fields)
    assert found[name][0] == "fail"
    assert text in found[name][1]
    assert found[name][2]


def test_a_cpu_needs_no_gpu():
    assert set(here(resource("Tiny"), gpus=None)) == {"disk", "host memory"}


def test_the_table_of_attention_backends_is_the_trainers():
    from video2world_trainer.model.attention_backends import BACKENDS

    ours = {
        "".join(part for part in name.lower() if part.isalnum()): majors
        for name, majors in ATTENTION.items()
    }
    theirs = {name.replace("_", ""): b.majors for name, b in BACKENDS.items() if b.majors}
    assert ours == theirs


def test_nvidia_smi_is_read():
    reported = "NVIDIA H100 80GB HBM3, 81559, 9.0\nNVIDIA GeForce RTX 5090, 32607, 12.0\n"
    assert gpus_in(reported) == [
        Gpu("NVIDIA H100 80GB HBM3", 81559 * 2**20, 9),
        Gpu("NVIDIA GeForce RTX 5090", 32607 * 2**20, 12),
    ]


def test_facts_of_this_machine(tmp_path):
    before = machine(tmp_path / "not" / "made").disk
    (tmp_path / "used").write_bytes(b"x" * 10_000_000)
    assert machine(tmp_path).disk == pytest.approx(before, rel=0.05)  # what is used counts too
    assert 1e8 < machine(tmp_path).memory < 1e14


# ---------------------------------------------------------------------- the Hub


class _Hub(BaseHTTPRequestHandler):
    """Answers as huggingface.co's auth-check: by token and licence."""

    def do_GET(self):
        known = self.headers.get("Authorization") == "Bearer good"
        code, why = 200, ""
        if "AgiBotWorld" in self.path:
            code, why = (403, "GatedRepo") if known else (401, "GatedRepo")
        elif "nvidia" in self.path and not known:
            code = 401
        elif "/api/models/google-t5/" in self.path:
            code = 404
        self.send_response(code)
        self.send_header("X-Error-Code", why)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def endpoint(monkeypatch, tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield tmp_path
    server.shutdown()
    thread.join()
    server.server_close()


def test_token_and_licence(endpoint, monkeypatch):
    refused = hub(REPOSITORIES)
    assert list(refused.values()) == [Access.REFUSED, Access.MISSING, Access.REFUSED]
    (endpoint / "token").write_text("good\n")  # as huggingface-cli login leaves it
    known = [Access.ALLOWED, Access.MISSING, Access.GATED]
    assert list(hub(REPOSITORIES).values()) == known
    monkeypatch.setenv("HF_TOKEN", "bad")
    assert list(hub(REPOSITORIES).values()) == list(refused.values())
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert set(hub(REPOSITORIES).values()) == {Access.UNREACHABLE}


def test_the_hubs_answer_is_reported():
    (gated,) = check_hub({REPOSITORIES[2]: Access.GATED})
    assert gated.text == "agibot-world/AgiBotWorld-Alpha: its licence is not accepted"
    assert "https://huggingface.co/datasets/agibot-world/AgiBotWorld-Alpha" in gated.remedy
    assert [c.verdict for c in check_hub(dict.fromkeys("ab", Access.UNREACHABLE))] == ["?", "?"]


def test_the_command(endpoint, capsys, tmp_path, monkeypatch):
    (endpoint / "token").write_text("good")
    file = tmp_path / "run.yaml"
    file.write_text(
        "apiVersion: video2world.dev/v1alpha1\nkind: Video2WorldPostTrain\nmetadata: {name: a}\n"
        "spec: {model: {size: Tiny}, dataset: {agibot: {}}, training: {iterations: 5}}\n"
    )
    flags = ("preflight", "-f", str(file), "--volume", str(tmp_path / "volume"))
    assert main(flags) == 2
    out = capsys.readouterr().out
    assert "fail  Hugging Face       agibot-world/AgiBotWorld-Alpha: its licence" in out
    assert "fix: accept it at https://huggingface.co/datasets/agibot-world" in out
    assert "good" not in out
    file.write_text(file.read_text().replace("agibot: {}", "prepared: {path: d}"))
    assert main(flags) == 0
    out = capsys.readouterr().out
    assert "a: 3 checks, 0 failed, 0 unknown" in out
    assert "\ntime  training           " in out
    assert main((*flags, "-o", "json")) == 0
    reported = json.loads(capsys.readouterr().out)
    assert [check["verdict"] for check in reported["checks"]] == ["ok"] * 3
    assert reported["time"]["gpu"] == "CPU"
    assert reported["time"]["trainingSeconds"] == reported["time"]["phases"][0]["seconds"] > 0
    assert not (tmp_path / "volume").exists()


# ---------------------------------------------------------------------- a cluster


def node(gpus=8, labels=(), taints=(), **spec):
    room = {"cpu": "192", "memory": "2Ti", "nvidia.com/gpu": str(gpus)}
    return {
        "metadata": {"name": "n", "labels": dict(labels)},
        "spec": {"taints": list(taints)} | spec,
        "status": {"allocatable": room},
    }


KIND = {
    "nvidia.com/gpu.product": "H100",
    "nvidia.com/gpu.memory": "81559",
    "nvidia.com/gpu.compute.major": "9",
}
DEFAULT = {"storageclass.kubernetes.io/is-default-class": "true"}
STANDARD = {"metadata": {"name": "fast", "annotations": DEFAULT}, "provisioner": "x.example"}
GOOD = ClusterFacts(
    "ns",
    nodes=[node(labels=KIND)] * 4,
    storage_classes=[STANDARD],
    quotas=[],
    leader="one",
    priority_classes=["high"],
    queues={"team": "", "held": "LocalQueue is stopped"},
    capabilities=Capabilities({OptionalApi.NATIVE_POD_GROUP: "v1beta1"}),
)


def there(made, seen=GOOD, **fields):
    plan = make_plan(made)
    return verdicts(check_cluster(plan, estimate(made), replace(seen, **fields)))


def test_a_cluster_that_suffices():
    made = resource(storage={"size": "500Gi"}, training={"nodes": 4})
    found = there(made)
    assert {verdict for verdict, *_ in found.values()} == {"ok"}
    assert "nodes for train" in found
    assert found["gang"][1].startswith("Kubernetes' own PodGroup")


def test_what_captions_will_send_is_counted_where_the_dataset_is_known(tmp_path):
    def text(volume, **changes):
        captions = {"endpoint": "https://api.example/v1", "model": "vlm"} | changes
        dataset = {"videos": {"path": "v", "name": "mine"}, "captions": captions}
        made = make_plan(resource(dataset=dataset, storage={"subPath": "team"}))
        (check,) = check_captions(made, volume)
        assert check.verdict == "ok"
        return check.text

    unknown = "frames of every window are sent to https://api.example/v1 (model vlm); how many"
    assert text(None).startswith(unknown)
    assert text(tmp_path).startswith(unknown)
    folder = tmp_path / "team/datasets/mine"
    folder.mkdir(parents=True)
    (folder / "report.json").write_text('{"counts": {"windows": 24, "seconds": 120.0}}')
    assert text(tmp_path).startswith("about 24 requests with 264 images are sent to https://api")
    assert "24 requests with 96 images" in text(tmp_path, maxFrames=4)
    (folder / ".captions").mkdir()
    (folder / ".captions/a.json").write_text("{}")
    assert text(tmp_path).endswith("less those of 1 answers on the volume that still apply")
    for damaged in ("", "[]", '{"counts": {"windows": 0, "seconds": 1}}'):
        (folder / "report.json").write_text(damaged)
        assert text(tmp_path).startswith(unknown)
    assert list(check_captions(make_plan(resource()), tmp_path)) == []


def quota(hard, used):
    return {"metadata": {"name": "q"}, "spec": {}, "status": {"hard": hard, "used": used}}


def claim(modes, size="500Gi"):
    return {"spec": {"accessModes": modes, "resources": {"requests": {"storage": size}}}}


CLAIM = {"storage": {"claimName": "mine"}}
TOKEN = {"credentials": {"huggingFaceTokenSecret": {"name": "hf"}}}
TAINT = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
BAD = {
    "no operator": ({}, {"leader": ""}, "operator", "fail", "no operator is running"),
    "who knows": ({}, {"leader": None}, "operator", "?", "no permission to read its Lease"),
    "older CRD": (
        {},
        {"definition": "The CRD is older (status.x is unknown): apply it."},
        "CRD",
        "fail",
        "The CRD is older (status.x is unknown)",
    ),
    "refused": ({}, {"refusal": "no!"}, "API server", "fail", "no!"),
    "small nodes": (
        {},
        {"nodes": [node(4)]},
        "nodes for train",
        "fail",
        "room for 0 of 1 pods on 1 nodes (1 with too little nvidia.com/gpu (4))",
    ),
    "few nodes": (
        {"training": {"nodes": 4}},
        {"nodes": [node()] * 3},
        "nodes for train",
        "fail",
        "there is room for 3 of 4 pods on 3 nodes",
    ),
    "taints": (
        {},
        {"nodes": [node(taints=[TAINT])]},
        "nodes for train",
        "fail",
        "with the taint nvidia.com/gpu",
    ),
    "cordoned": ({}, {"nodes": [node(unschedulable=True)]}, "nodes for train", "fail", "cordoned"),
    "labels": (
        {"stages": {"train": {"nodeSelector": {"a": "b"}}}},
        {},
        "nodes for train",
        "fail",
        "without the label a=b",
    ),
    "no nodes seen": ({}, {"nodes": None}, "nodes", "?", "no permission to list nodes"),
    "kernel": (
        {"training": {"attention": "FlashAttention2"}},
        {"nodes": [node(labels=KIND | {"nvidia.com/gpu.compute.major": "7"})]},
        "attention",
        "fail",
        "FlashAttention2 does not run on H100",
    ),
    "unknown GPU": (
        {"training": {"attention": "FlashAttention3"}},
        {"nodes": [node()]},
        "attention",
        "?",
        "not known",
    ),
    "no claim": (CLAIM, {}, "volume", "fail", "there is no PVC mine in namespace ns"),
    "claim of one node": (
        CLAIM | {"training": {"nodes": 2}},
        {"claim": claim(["ReadWriteOnce"])},
        "volume",
        "fail",
        "the PVC is ReadWriteOnce, but 2 nodes share it",
    ),
    "small claim": (
        CLAIM,
        {"claim": claim(["ReadWriteOnce"], "100Gi")},
        "volume size",
        "fail",
        "needs about 242 GB, has 107 GB",
    ),
    "small size": ({"storage": {"size": "10Gi"}}, {}, "volume size", "fail", "has 11 GB"),
    "no class": (
        {"storage": {"storageClassName": "slow"}},
        {},
        "storage class",
        "fail",
        "there is no slow",
    ),
    "no default": ({}, {"storage_classes": []}, "storage class", "warn", "no default"),
    "no Secret": (TOKEN, {"secrets": {"hf": None}}, "Secret hf", "fail", "does not exist"),
    "wrong key": (TOKEN, {"secrets": {"hf": ["TOKEN"]}}, "Secret hf", "fail", "no key token"),
    "secret Secret": (TOKEN, {"unreadable": frozenset({"hf"})}, "Secret hf", "?", "no permission"),
    "good Secret": (TOKEN, {"secrets": {"hf": ["token"]}}, "Secret hf", "ok", "exists"),
    "no key of the captions": (
        TOKEN
        | {
            "dataset": {
                "agibot": {},
                "captions": {
                    "endpoint": "http://vllm/v1",
                    "model": "vlm",
                    "tokenSecret": {"name": "hf", "key": "captions"},
                },
            }
        },
        {"secrets": {"hf": ["token"]}},
        "Secret hf",
        "fail",
        "no key captions",
    ),
    "quota": (
        {},
        {"quotas": [quota({"requests.nvidia.com/gpu": "4"}, {})]},
        "quota",
        "fail",
        "q leaves 4 of 4 requests.nvidia.com/gpu, 8 are needed",
    ),
    "used quota": (
        {},
        {"quotas": [quota({"pods": "5"}, {"pods": "5"})]},
        "quota",
        "warn",
        "q leaves 0 of 5 pods, 1 are needed",
    ),
    "no queue": ({"scheduling": {"queueName": "x"}}, {}, "queue", "fail", "not in this namespace"),
    "stopped queue": (
        {"scheduling": {"queueName": "held"}},
        {},
        "queue",
        "warn",
        "admits nothing: LocalQueue is stopped",
    ),
    "no Kueue": (
        {"scheduling": {"queueName": "x"}},
        {"queues": None},
        "queue",
        "fail",
        "not installed",
    ),
    "no priority": (
        {"scheduling": {"priorityClassName": "x"}},
        {},
        "priority class",
        "fail",
        "there is no x",
    ),
    "no gang": (
        {"training": {"nodes": 2}},
        {"capabilities": Capabilities()},
        "gang",
        "warn",
        "serves no PodGroup",
    ),
}


@pytest.mark.parametrize(("spec", "fields", "name", "verdict", "text"), BAD.values(), ids=BAD)
def test_a_cluster_that_does_not_suffice(spec, fields, name, verdict, text):
    found = there(resource(**spec), **fields)
    assert found[name][0] == verdict
    assert text in found[name][1]
    assert verdict != "fail" or found[name][2]


def operator_checks(made, nodes, size="1Ti"):
    """What the operator's own preflight finds."""
    checks = before_training(make_plan(made), estimate(made), nodes, size)
    return {check.name: str(check.verdict) for check in checks}


def test_the_operator_checks_training_within_its_rights():
    good = {"volume size": "ok", "nodes for train": "ok", "GPU memory": "ok", "attention": "ok"}
    assert operator_checks(resource(), [node(labels=KIND)]) == good
    assert operator_checks(resource(), [node(4)], "100Gi") == {
        "volume size": "fail",
        "nodes for train": "fail",
    }
    assert operator_checks(resource(), None, "") == {}  # Roles only, and no PVC yet


class Nodes:
    """An API server that has these nodes, until it is ``away``."""

    def __init__(self, *nodes):
        self.nodes, self.asked, self.away = nodes, 0, False

    async def list_objects(self, path, page):
        assert path == "/api/v1/nodes"
        self.asked += 1
        if self.away:
            raise ApiError(500, "", "away")
        for found in self.nodes:
            await asyncio.sleep(0)
            yield found


def test_nodes_are_listed_now_and_then_even_if_the_api_server_fails(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(
        "video2world_operator.preflight.operator_preflight.time.monotonic", lambda: clock[0]
    )
    server = Nodes(
        {
            "metadata": {"name": "a", "managedFields": ["much"]},
            **{k: v for k, v in node(4).items() if k != "metadata"},
        }
    )
    preflight, plan = NodePreflight(server), make_plan(resource())
    assert asyncio.run(preflight.check(plan, "1Ti")) == []  # without the right to list nodes
    assert server.asked == 0
    preflight.may_list_nodes = True
    for _ in range(3):
        (found,) = asyncio.run(preflight.check(plan, "1Ti"))
        assert found.startswith("nodes for train: there is room for 0 of 1 pods on 1 nodes")
        assert "spec.training" in found
    assert server.asked == 1
    server.nodes = (node(8),)
    clock[0] = 61
    assert asyncio.run(preflight.check(plan, "1Ti")) == []
    server.away, clock[0] = True, 122
    assert asyncio.run(preflight.check(plan, "1Ti")) == []
    assert server.asked == 3


def test_the_first_callers_wait_for_the_nodes_and_later_ones_use_the_list(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(
        "video2world_operator.preflight.operator_preflight.time.monotonic", lambda: clock[0]
    )
    server, plan = Nodes(node(4)), make_plan(resource())

    async def both():
        preflight = NodePreflight(server)
        preflight.may_list_nodes = True
        first = await asyncio.gather(*(preflight.check(plan, "1Ti") for _ in range(2)))
        server.nodes, clock[0] = (node(8),), 61
        looks = asyncio.create_task(preflight.check(plan, "1Ti"))
        await asyncio.sleep(0)
        return first, await preflight.check(plan, "1Ti"), await looks

    first, beside, anew = asyncio.run(both())
    assert [len(found) for found in first] == [1, 1]
    assert beside == first[0]
    assert anew == []
    assert server.asked == 2


def test_of_equal_nodes_one_is_checked(monkeypatch):
    looked = []
    misfit = node_fit._misfit
    monkeypatch.setattr(node_fit, "_misfit", lambda *of: looked.append(of) or misfit(*of))
    several = [node(8), {**node(8), "spec": {"unschedulable": True}}, node(8, labels={"zone": "b"})]
    server = Nodes(*several * 500)
    preflight = NodePreflight(server)
    preflight.may_list_nodes = True

    def judged(**spec):
        looked.clear()
        plan = make_plan(resource(training={"nodes": 1000}, **EVERY, **spec))
        return asyncio.run(preflight.check(plan, "1Ti")), len(looked)

    found, times = judged()  # of two kinds, since no pod selects by zone
    assert found == []
    assert times < 10
    pinned = {"train": {"nodeSelector": {"zone": "b"}}}
    (found,), times = judged(stages=pinned)
    assert "500 of 1000 pods on 1500 nodes (500 without the label zone=b; 500 cordoned)" in found
    assert times == 3


class _Registry(BaseHTTPRequestHandler):
    """A registry that issues anonymous tokens, which allow pulling public images."""

    def do_HEAD(self):
        port, known = self.server.server_port, self.headers.get("Authorization") == "Bearer anybody"
        name = self.path.split("/manifests/")[0].removeprefix("/v2/")
        code = 401 if not known else {"open/a": 200, "secret/b": 401}.get(name, 404)
        self.send_response(code)
        if code == 401:
            realm = f"http://127.0.0.1:{port}/token"
            self.send_header("WWW-Authenticate", f'Bearer realm="{realm}",service="s"')
        self.end_headers()

    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"token": "anybody"}')

    def log_message(self, *_):
        pass


@pytest.fixture
def registry():
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Registry)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.parametrize(
    ("image", "found"),
    [
        ("ghcr.io/video2world/trainer:0.1.0", ("ghcr.io", "video2world/trainer", "0.1.0")),
        ("python", ("docker.io", "library/python", "latest")),
        ("me/python:3", ("docker.io", "me/python", "3")),
        ("localhost:5000/a/b/c", ("localhost:5000", "a/b/c", "latest")),
        ("x.example/a:1@sha256:0ab", ("x.example", "a", "sha256:0ab")),
    ],
)
def test_the_parts_of_an_image_s_name(image, found):
    assert parts(image) == found


def test_each_image_is_requested_from_its_registry(registry):
    images = [f"{registry}/{name}:1" for name in ("open/a", "secret/b", "missing/c")]
    answers = pullable([*images, "127.0.0.1:9/a:1"])
    assert list(answers.values()) == ["allowed", "refused", "missing", "unreachable"]


def test_verdicts_for_the_answers_of_a_registry():
    def of(answer, **images):
        (check,) = check_images(make_plan(resource(images=images)), {"a": answer})
        return str(check.verdict), check.text

    assert of(Access.ALLOWED) == ("ok", "a can be pulled")
    assert of(Access.MISSING)[0] == "warn"  # a node may have it
    assert of(Access.MISSING, pullPolicy="Always")[0] == "fail"
    assert of(Access.REFUSED, pullPolicy="Always")[0] == "fail"
    assert of(Access.REFUSED, pullSecrets=["mine"]) == (
        "?",
        "a requires authentication: only a node can try mine",
    )
    assert of(Access.UNREACHABLE)[0] == "?"
    assert of(Access.MISSING, pullPolicy="Never")[0] == "?"
    made = make_plan(resource(stages={"train": {"image": "mine"}}))
    assert images_of(made) == ["ghcr.io/video2world/preprocess:0.1.0", "mine"]


@pytest.mark.parametrize(
    "container",
    [
        {"resources": None},
        {"resources": {"limits": None}},
        {"resources": "none"},
        {"resources": {"requests": {"cpu": "much"}}},
        {"resources": {"requests": {"cpu": ["1"]}}},
    ],
    ids=str,
)
def test_a_pod_template_of_any_kind_does_not_stop_the_operator(container):
    patch = {"spec": {"containers": [{"name": "train", **container}]}}
    plan = make_plan(resource(stages={"train": {"podTemplate": patch}}))
    preflight = NodePreflight(Nodes(node(8)))
    preflight.may_list_nodes = True
    assert asyncio.run(preflight.check(plan, "1Ti")) == []


EVERY = {"inference": {"everyCheckpoint": True, "samples": [{"input": "a.mp4"}]}}


@pytest.mark.parametrize(
    ("nodes", "more", "verdict", "text"),
    [
        (1, {}, "warn", "room for 0 of 1 pods"),  # training takes all eight
        (2, {}, "ok", "room for 1 alongside"),
        (2, {"training": {"nodes": 2}}, "warn", "room for 0 of 1 pods"),
        (2, {"training": {"nodes": 2, "gpusPerNode": 4}}, "ok", "room for 1 alongside"),
        # four pods fit on one node of two, and so leave the other to the sampler's two
        (
            2,
            {
                "training": {"nodes": 4, "gpusPerNode": 2},
                "inference": EVERY["inference"]
                | {"samples": [{"input": "a.mp4"}] * 2, "parallelism": 2},
            },
            "ok",
            "room for 2 alongside",
        ),
        (2, {"stages": {"inference": {"nodeSelector": {"a": "b"}}}}, "warn", "room for 0 of 1"),
    ],
)
def test_the_sampler_needs_a_gpu_alongside_training(nodes, more, verdict, text):
    made = resource(storage={"accessMode": "ReadWriteMany"}, **{**EVERY, **more})
    found = there(made, nodes=[node(labels=KIND)] * nodes)["nodes for samples"]
    assert found[0] == verdict
    assert text in found[1]
    without = resource(inference={"samples": [{"input": "a.mp4"}]})
    assert "nodes for samples" not in there(without)


def test_the_sampler_counts_against_the_quota_and_on_this_machine():
    eight = [quota({"requests.nvidia.com/gpu": "8"}, {})]
    assert there(resource(), quotas=eight)["quota"][0] == "ok"
    found = there(resource(**EVERY), quotas=eight)["quota"]
    assert found[0] == "fail"
    assert "9 are needed" in found[1]
    assert here(resource(**EVERY))["GPUs"][0] == "warn"
    fewer = {"gpusPerNode": 4, "nodes": 1}
    assert here(resource(training=fewer, **EVERY))["GPUs"][0] == "ok"


def samples(**inference):
    return {"inference": {"samples": [{"input": "a.mp4"}], **inference}}


def of_gib(gib, count=8):
    return [Gpu("GPU", gib * GIB, 9)] * count


ON_EIGHT = {"nodes": 1, "gpusPerNode": 8}


@pytest.mark.parametrize(
    ("size", "inference", "gib", "verdict", "text"),
    [
        ("2B", {}, 24, "ok", "needs about 19 GiB, GPU has 24 GiB"),
        ("2B", {}, 16, "ok", "about 19 GiB (9 with inference.offload, which is then on)"),
        ("2B", {"offload": True}, 16, "ok", "needs about 9 GiB, GPU has 16 GiB"),
        ("2B", {}, 8, "fail", "GPU has 8 GiB"),
        ("14B", {}, 80, "ok", "needs about 42 GiB"),
        ("14B", {}, 10, "fail", "(11 with inference.offload"),
    ],
)
def test_samples_need_gpu_memory_of_their_own(size, inference, gib, verdict, text):
    made = resource(size, training={**ON_EIGHT, "architecture": "LoRA"}, **samples(**inference))
    found = here(made, gpus=of_gib(gib))["GPU memory, samples"]
    assert found[0] == verdict
    assert text in found[1]
    assert bool(found[2]) == (verdict == "fail")
    memory = {"nvidia.com/gpu.memory": str(gib * 1024)}
    cluster = there(made, nodes=[node(labels=KIND | memory)])["GPU memory, samples"]
    assert cluster[0] == verdict
    assert "GPU memory, samples" not in here(resource(size))


def test_the_gpus_of_a_sample_are_counted():
    one = {"nodes": 1, "gpusPerNode": 1, "contextParallelSize": 1}
    made = resource(training=one, storage={"accessMode": "ReadWriteMany"}, **samples(gpus=4))
    found = here(made, gpus=[H100] * 2)["GPUs"]
    assert found[:2] == ("fail", "inference.gpus requests 4, 2 are available")
    assert here(made, gpus=[H100] * 4)["GPUs"][0] == "ok"
    every = resource(training=one, **samples(gpus=4, everyCheckpoint=True))
    assert here(every, gpus=[H100] * 4)["GPUs"][0] == "warn"
    assert here(every, gpus=[H100] * 5)["GPUs"][0] == "ok"
    two = [{"input": "a.mp4"}, {"input": "b.mp4"}]
    made = resource(training=one, **samples(gpus=4, samples=two, parallelism=2))
    found = here(made, gpus=[H100] * 4)["GPUs"]
    assert found[:2] == ("warn", "inference requests 2 pods x 4, 4 are available")
    found = there(made)["nodes for inference"]
    assert found[:2] == ("ok", "there is room for 2 pods with 4 GPUs each, 8 in all")
    small = there(made, nodes=[node(2, labels=KIND)] * 8)["nodes for inference"]
    assert small[0] == "fail"
    assert "8 with too little nvidia.com/gpu (2)" in small[1]
    assert small[2] == "change spec.inference or spec.stages.inference, or add nodes"
    assert operator_checks(made, [node(2)])["nodes for inference"] == "fail"


@pytest.mark.parametrize("size", ["Tiny", "2B", "14B"])
def test_the_claim_of_a_short_file_is_large_enough(size):
    assert there(resource(size, storage={"accessMode": "ReadWriteMany"}))["volume size"][0] == "ok"


def test_several_small_pods_share_a_node():
    small = {"nodes": 8, "gpusPerNode": 1, "contextParallelSize": 1}
    made = resource(training=small, storage={"accessMode": "ReadWriteOnce"})
    found = there(made, nodes=[node(labels=KIND)])
    assert found["nodes for train"][:2] == ("ok", "there is room for just 8 pods")


def test_times_are_for_the_gpus_that_can_train():
    made = make_plan(resource(training={"gpusPerNode": 8}))
    a100, h100 = KIND | {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"}, KIND
    nodes = [node(8, labels=h100), node(8, labels=h100), node(4, labels=a100)]
    assert {gpu.name for gpu in training_gpus(made, ClusterFacts("ns", nodes=nodes))} == {"H100"}
    nodes.append(node(8, labels=a100))
    assert {gpu.name for gpu in training_gpus(made, ClusterFacts("ns", nodes=nodes))} == {
        "H100",
        "NVIDIA-A100-SXM4-80GB",
    }
    assert (
        training_gpus(made, ClusterFacts("ns", nodes=[node(8)]))[0].name == "a GPU of unknown model"
    )


def test_a_taint_that_is_tolerated():
    tolerates = {"tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}]}
    found = there(resource(stages={"train": tolerates}), nodes=[node(taints=[TAINT])])
    assert found["nodes for latents"][0] == "fail"
    assert found["nodes for train"][0] == "ok"
