"""v2w status, v2w explain, v2w preflight and the metrics on a real control plane."""

from __future__ import annotations

import asyncio
import json
import os
import re
import runpy
import threading
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from api_proxy import Proxy
from operators import Operator, Resource, eventually, exists, grant, set_quota
from repository import ROOT
from video2world_operator.cli.cluster_run import watch
from video2world_operator.cli.main import main


@pytest.fixture(scope="module")
def operator(gpu_cluster, tmp_path_factory):
    """One operator for the whole cluster."""
    kubeconfig = gpu_cluster.write_kubeconfig(grant(gpu_cluster, "video2world-system"))
    log = tmp_path_factory.mktemp("operator") / "log"
    flags = ("--own-namespace", "video2world-system", "--lease-seconds", "4")
    with Operator(kubeconfig, *flags, log=log) as running:
        yield running


@pytest.fixture
def v2w(gpu_cluster, gpu_namespace, operator, monkeypatch, tmp_path, capsys):
    """Calls v2w as the administrator or as another user; what it printed."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments, user=gpu_cluster.admin, code=0):
        config = gpu_cluster.write_kubeconfig(user, gpu_namespace)
        monkeypatch.setenv("KUBECONFIG", os.fspath(config))
        ended = main(arguments)
        captured = capsys.readouterr()
        assert ended == code, captured
        return captured.out

    return call


def says(v2w, name, *words):
    """Wait until v2w explain says all this."""
    shown = []

    def look():
        shown[:] = [v2w("explain", name)]
        return all(word in shown[0] for word in words)

    eventually(look, 40, lambda: shown[0])


def test_explain_says_what_the_control_plane_means(v2w, gpu_cluster, gpu_namespace):
    def make(name, **spec):
        return Resource(gpu_cluster, gpu_namespace, name).create(**spec)

    greedy = {"model": {"size": "2B"}, "training": {"nodes": 1, "gpusPerNode": 16}}
    big = make("big", **greedy)
    make("nowhere", stages={"download": {"nodeSelector": {"disk": "none"}}})
    make("hungry", stages={"download": {"resources": {"requests": {"cpu": "1000"}}}})
    make("unbound", storage={"storageClassName": "fast"})
    make("resting", suspend=True)

    # reported before a GPU is held, while the first stage runs
    says(v2w, "big", "nodes for train: there is room for 0 of 1 pods on 4 nodes")
    assert big.condition("PreflightPassed")["reason"] == "ChecksFailed"
    (pod,) = big.running("download")  # its worker tells that the stages before training are done
    eventually(lambda: big.stage("latents").get("inputsHash"))
    reported = [
        json.dumps({"event": "skipped", "stage": s, "inputsHash": big.stage(s)["inputsHash"]})
        for s in ("dataset", "embeddings", "latents")
    ]
    gpu_cluster.write_pod_log(gpu_namespace, pod, "\n".join(reported))
    gpu_cluster.finish_pod(gpu_namespace, pod)

    says(v2w, "nowhere", "No node has the labels", "nodeSelector", "didn't match Pod's node")
    says(v2w, "hungry", "No node has enough free cpu for stage download", "resources.requests")
    says(v2w, "unbound", "There is no storage class fast", "storageClassName")
    says(v2w, "resting", "Suspended in stage download", "`v2w resume resting`")
    says(v2w, "big", "requests 16 GPUs, but the largest node has 8", "spec.training.gpusPerNode")

    set_quota(gpu_cluster, gpu_namespace, {"pods": "0"})
    make("refused")
    says(v2w, "refused", "quota few is exceeded: requested pods=1", "ask for a higher quota")


def test_preflight_of_a_cluster(v2w, gpu_cluster, gpu_namespace, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody answers there
    spec = Resource.body("pre", model={"size": "2B"}, storage={"size": "400Gi"})
    spec["spec"]["training"] = {"iterations": 5, "nodes": 4}
    spec["spec"]["credentials"] = {"huggingFaceTokenSecret": {"name": "hf"}}
    spec["spec"]["storage"]["claimName"] = "mine"
    spec["spec"]["images"] = NOWHERE
    file = tmp_path / "pre.yaml"

    def check(code, user=gpu_cluster.admin):
        file.write_text(json.dumps(spec))
        reported = v2w("preflight", "-f", str(file), "--cluster", user=user, code=code).splitlines()
        return {line[6:24].strip(): line for line in reported}

    failed = check(2)
    assert failed["operator"].startswith("ok")
    assert failed["nodes for train"].endswith("there is room for just 4 pods")
    assert "does not exist" in failed["Secret hf"]
    assert "there is no PVC mine" in failed["volume"]
    assert failed["gang"].startswith("ok")
    assert failed["iteration"].startswith("time")
    assert "GPU hours (5 iterations)" in failed["training"]
    base = f"/api/v1/namespaces/{gpu_namespace}"
    secret = {"metadata": {"name": "hf"}, "stringData": {"token": "not-to-be-shown"}}
    gpu_cluster.admin.post(f"{base}/secrets", secret)
    claim = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Ti"}}}
    made = {"metadata": {"name": "mine"}, "spec": claim}
    gpu_cluster.admin.post(f"{base}/persistentvolumeclaims", made)
    good = check(0)
    assert good["Secret hf"].endswith("exists")
    assert "not-to-be-shown" not in str(good)
    spec["spec"]["training"]["nodes"] = 5
    assert "there is room for 4 of 5 pods on 4 nodes" in check(2)["nodes for train"]
    quota = {"metadata": {"name": "one"}, "spec": {"hard": {"requests.nvidia.com/gpu": "8"}}}
    gpu_cluster.admin.post(f"{base}/resourcequotas", quota)
    eventually(lambda: "leaves 8 of 8 requests.nvidia.com/gpu, 40 are" in check(2)["quota"], 20)
    stranger = check(2, gpu_cluster.user("stranger"))
    assert 'User "stranger" cannot create resource' in stranger["API server"]
    for unseen in ("operator", "nodes", "Secret hf", "quota"):
        assert stranger[unseen].startswith("?")


def test_status_shows_pods_and_losses_to_those_who_may_see_them(v2w, gpu_cluster, gpu_namespace):
    run = Resource(gpu_cluster, gpu_namespace).create()
    lead, second = run.to_training()
    lines = [
        f'{{"event":"progress","stage":"train","iteration":{n},"iterations":100,"loss":{5 - n}}}'
        for n in (1, 2, 3, 4)
    ]
    gpu_cluster.write_pod_log(gpu_namespace, lead, "\n".join(lines))
    eventually(lambda: run.status.get("progress", {}).get("iteration") == 4)
    shown = v2w("status", "run")
    assert "4/100  loss 1.0000" in shown
    assert "█▆▃▁  4.0000 to 1.0000" in shown
    assert f"{second}  node-" in shown
    assert "no problems found" in v2w("explain", "run")

    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": {"name": "guest"},
        "rules": [
            {
                "apiGroups": ["video2world.dev"],
                "resources": ["video2worldposttrains"],
                "verbs": ["get"],
            }
        ],
    }
    base = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{gpu_namespace}"
    gpu_cluster.admin.post(f"{base}/roles", role)
    to = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "guest"}
    who = [{"kind": "User", "name": "guest", "apiGroup": "rbac.authorization.k8s.io"}]
    binding = {"metadata": {"name": "guest"}, "roleRef": to, "subjects": who}
    gpu_cluster.admin.post(f"{base}/rolebindings", binding)
    guest = gpu_cluster.user("guest")
    eventually(lambda: "you may not list them" in v2w("status", "run", user=guest), 20)
    assert "no problems found" in v2w("explain", "run", user=guest)

    kept = {}
    for who in (gpu_cluster.admin, guest):
        v2w("doctor", "run", user=who)
        with zipfile.ZipFile("v2w-doctor-run.zip") as archive:
            kept[who] = {name: archive.read(name).decode() for name in archive.namelist()}
    whole = kept[gpu_cluster.admin]
    assert "phase: Running" in whole["resource.yaml"]
    assert "managedFields" not in "".join(whole.values())
    assert lines[-1] in whole[f"logs/{lead}.log"]
    assert second in whole["pods.yaml"]
    assert "run-train-1" in whole["jobs.yaml"]
    assert "phase: Running" in kept[guest]["resource.yaml"]
    assert "not readable" in kept[guest]["pods.yaml"]


NOTEBOOK = ROOT / "docs/notebooks/post_train.ipynb"


def test_the_notebook_runs_and_the_metrics_count_it(
    v2w, gpu_cluster, gpu_namespace, operator, monkeypatch, capsys, tmp_path
):
    """Its cells, one after the other, while an event loop runs, as in Jupyter."""
    config = gpu_cluster.write_kubeconfig(gpu_cluster.admin, gpu_namespace)
    monkeypatch.setenv("KUBECONFIG", os.fspath(config))
    run = Resource(gpu_cluster, gpu_namespace, "from-python")
    stages = ("download", "dataset", "embeddings", "latents", "train", "inference")

    def finish():
        for stage in stages:
            pod = eventually(lambda stage=stage: run.pods(stage))[0]["metadata"]["name"]
            gpu_cluster.finish_pod(gpu_namespace, pod)

    cells = [
        c["source"] for c in json.loads(NOTEBOOK.read_text())["cells"] if c["cell_type"] == "code"
    ]
    script = tmp_path / "notebook.py"
    script.write_text("\n".join("".join(cell) for cell in cells))

    async def as_in_jupyter():
        return runpy.run_path(str(script))

    with ThreadPoolExecutor(1) as pool:
        finished = pool.submit(finish)
        names = asyncio.run(as_in_jupyter())
        finished.result(60)
    assert names["status"].phase == "Succeeded"
    assert [s.state for s in names["status"].stages] == ["Succeeded"] * 6
    assert "from-python: Succeeded" in capsys.readouterr().out
    assert not exists(gpu_cluster.admin, f"{run.path}/from-python")

    figures = {
        (sample.name.removeprefix("video2world_"), frozenset(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(operator.probe("metrics")[1])
        for sample in family.samples
    }

    def figure(name, *labels):
        return figures[name, frozenset(labels)]

    assert figure("finished_total", "Succeeded") >= 1
    for stage in ("download", "train", "inference"):
        assert figure("stage_duration_seconds_count", stage, "Succeeded") >= 1
        assert figure("time_to_running_seconds_count", stage) >= 1
    assert figure("reconcile_duration_seconds_count", "ok") >= 12
    assert figure("api_requests_total", "PATCH", "video2worldposttrains/status", "200") >= 7
    assert figure("cache_age_seconds") < 30


def test_watching_survives_an_api_server_that_is_away(v2w, gpu_cluster, gpu_namespace, tmp_path):
    run = Resource(gpu_cluster, gpu_namespace).create(suspend=True)
    run.reaches(phase="Suspended")
    asked, faults = [], []

    def judge(method, path):
        asked.append(path)
        if len(asked) in range(4, 9):  # two looks need two requests each, or three
            faults.append(path)
            return "500"
        return None

    seen = []

    def show(snapshot):
        seen.append(snapshot)
        if len(seen) == 4:
            raise KeyboardInterrupt

    with Proxy(gpu_cluster.admin, judge) as proxy:
        config = tmp_path / "config"
        config.write_text(json.dumps(proxy.kubeconfig()))
        os.environ["KUBECONFIG"] = os.fspath(config)  # v2w's fixture puts it back
        with pytest.raises(KeyboardInterrupt):
            watch("run", gpu_namespace, show, 0.1)
    assert faults
    notes = [bool(snapshot.note) for snapshot in seen]
    assert notes[0] is False
    assert True in notes
    assert notes[-1] is False
    assert all(snapshot.status.phase == "Suspended" for snapshot in seen)


# ---------------------------------------------------------------- ten mistakes


class Hub(BaseHTTPRequestHandler):
    """Says of every repository that its licence is not accepted, until ``accepted``."""

    accepted = False

    def do_GET(self):
        self.send_response(200 if Hub.accepted else 403)
        self.send_header("X-Error-Code", "GatedRepo")
        self.end_headers()

    def log_message(self, *_):
        pass


class Place:
    """What the mistakes of the table are made in."""

    def __init__(self, cluster, namespace):
        self.cluster, self.namespace = cluster, namespace
        self.base = f"/api/v1/namespaces/{namespace}"

    def secret(self, key):
        body = {"metadata": {"name": "hf"}, "stringData": {key: "x"}}
        path = f"{self.base}/secrets"
        if exists(self.cluster.admin, f"{path}/hf"):
            self.cluster.admin.patch(f"{path}/hf", body)
        else:
            self.cluster.admin.post(path, body)

    def quota(self, gpus):
        body = {"metadata": {"name": "few"}, "spec": {"hard": {"requests.nvidia.com/gpu": gpus}}}
        path = f"{self.base}/resourcequotas"
        if exists(self.cluster.admin, f"{path}/few"):
            self.cluster.admin.patch(f"{path}/few", body)
        else:
            self.cluster.admin.post(path, body)
        eventually(
            lambda: (
                self.cluster.admin.get(f"{path}/few").get("status", {}).get("hard")
                == body["spec"]["hard"]
            )
        )

    def suspended(self):
        Resource(self.cluster, self.namespace, "pre").create(suspend=True).reaches(
            phase="Suspended"
        )


@dataclass
class Mistake:
    """``spec`` and ``first`` make it; ``ask`` says ``words``; ``mended`` and ``then`` undo it."""

    ask: tuple[str, ...]
    words: str
    spec: dict[str, Any]
    mended: dict[str, Any]
    first: Callable[[Place], Any] = lambda place: None
    then: Callable[[Place, Any], Any] = lambda place, v2w: None
    file: tuple[str, str] = ("pre.yaml", "pre.yaml")  # named before and after


NOWHERE = {"preprocess": "127.0.0.1:9/p:1", "trainer": "127.0.0.1:9/t:1"}  # nobody answers there
VALIDATE, CLUSTER = ("validate",), ("preflight", "--cluster")
EIGHT = {"iterations": 5, "nodes": 1}
TOKEN = {"credentials": {"huggingFaceTokenSecret": {"name": "hf"}}}
MISTAKES = {
    "a misspelt field": Mistake(
        VALIDATE,
        "spec.training.iteratons: unknown field; did you mean iterations?",
        {"training": {"iteratons": 5}},
        {},
    ),
    "context parallelism that does not fit": Mistake(
        VALIDATE,
        "3 is not valid: it must divide nodes x gpusPerNode (8)",
        {"training": EIGHT | {"contextParallelSize": 3}},
        {"training": EIGHT | {"contextParallelSize": 4}},
    ),
    "a file that is not there": Mistake(
        VALIDATE, "pass the path of a YAML file", {}, {}, file=("per.yaml", "pre.yaml")
    ),
    "a licence that was not accepted": Mistake(
        CLUSTER,
        "its licence is not accepted",
        {},
        {},
        lambda place: setattr(Hub, "accepted", False),
        lambda place, v2w: setattr(Hub, "accepted", True),
    ),
    "a Secret without the key": Mistake(
        CLUSTER,
        "add the token under the key token; it has TOKEN",
        TOKEN,
        TOKEN,
        lambda place: place.secret("TOKEN"),
        lambda place, v2w: place.secret("token"),
    ),
    "more GPUs a node than any node has": Mistake(
        CLUSTER,
        "with too little nvidia.com/gpu (8)",
        {"training": EIGHT | {"gpusPerNode": 16}},
        {"training": EIGHT},
    ),
    "a node label that no node has": Mistake(
        CLUSTER,
        "without the label disk=fast",
        {"stages": {"train": {"nodeSelector": {"disk": "fast"}}}},
        {},
    ),
    "a quota without room": Mistake(
        CLUSTER,
        "few leaves 4 of 4 requests.nvidia.com/gpu, 8 are needed",
        {},
        {},
        lambda place: place.quota("4"),
        lambda place, v2w: place.quota("8"),
    ),
    "a storage class that is not there": Mistake(
        CLUSTER, "there is no quick", {"storage": {"storageClassName": "quick"}}, {}
    ),
    "suspended and forgotten": Mistake(
        ("explain",),
        "`v2w resume pre`",
        {},
        {},
        lambda place: place.suspended(),
        lambda place, v2w: v2w("resume", "pre"),
    ),
}


@pytest.fixture
def hub(monkeypatch):
    """A server that answers as the Hugging Face Hub does."""
    Hub.accepted = True
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield
    server.shutdown()


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named_with_its_remedy_and_the_remedy_helps(
    name, v2w, hub, gpu_cluster, gpu_namespace, tmp_path, capsys
):
    mistake, place = MISTAKES[name], Place(gpu_cluster, gpu_namespace)

    def asked(spec, file):
        """Exit code and all that is printed."""
        base = {"model": {"size": "2B"}, "training": EIGHT, "storage": {"claimName": "mine"}}
        base["images"] = NOWHERE
        body = Resource.body("pre")
        body["spec"] |= base | spec
        (tmp_path / "pre.yaml").write_text(json.dumps(body))
        if mistake.ask == ("explain",):
            return 0, v2w("explain", "pre")
        code = main([*mistake.ask, "-f", str(tmp_path / file)])
        return code, "".join(capsys.readouterr())

    claim = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Ti"}}}
    gpu_cluster.admin.post(
        f"{place.base}/persistentvolumeclaims", {"metadata": {"name": "mine"}, "spec": claim}
    )
    mistake.first(place)
    os.environ["KUBECONFIG"] = os.fspath(
        gpu_cluster.write_kubeconfig(gpu_cluster.admin, gpu_namespace)
    )
    code, reported = asked(mistake.spec, mistake.file[0])
    assert mistake.words in reported
    assert code == (0 if mistake.ask == ("explain",) else 2)
    mistake.then(place, v2w)
    eventually(lambda: mistake.words not in asked(mistake.mended, mistake.file[1])[1], 30)
    assert asked(mistake.mended, mistake.file[1])[0] == 0


def test_the_page_lists_these_ten():
    page = (ROOT / "docs" / "watching.md").read_text()
    listed = re.findall(r"^\| \d+ \| ([^|]+) \|", page.partition("## Ten common mistakes")[2], re.M)
    assert listed == list(MISTAKES)
