"""An operator with a CRD in the cluster that is older or newer than itself."""

from __future__ import annotations

import copy
import os
import time

import pytest

from operators import Operator, Resource, eventually, grant
from video2world_operator.api.crd_schema import build
from video2world_operator.cli.main import main
from video2world_operator.controller.rbac import ACCOUNT

NAME = "video2worldposttrains.video2world.dev"
PATH = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{NAME}"
MANIFEST = """\
apiVersion: video2world.dev/v1alpha1
kind: Video2WorldPostTrain
metadata: {name: run}
spec: {model: {size: Tiny}, dataset: {prepared: {path: x}}, training: {iterations: 1}}
"""


def schema_of(definition):
    return definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]


def older(definition):
    """Without fields that the operator writes, at two depths."""
    status = schema_of(definition)["status"]["properties"]
    del status["activeSince"], status["stages"]["items"]["properties"]["jobUID"]


def newer(definition):
    """With fields of which the operator does not know, that the API server fills in."""
    properties = schema_of(definition)
    properties["status"]["properties"]["mood"] = {"type": "string"}
    spec = properties["spec"]["properties"]
    spec["quality"] = {"type": "string", "default": "Good"}
    spec["training"]["properties"]["distillation"] = {
        "type": "object",
        "default": {},
        "properties": {"rounds": {"type": "integer", "default": 3}},
    }


@pytest.fixture
def define(cluster):
    """Install a changed CRD; the original one is restored at the end."""

    def put(change=lambda definition: None):
        definition = copy.deepcopy(build())
        change(definition)
        cluster.admin.patch(f"{PATH}?fieldManager=control-plane&force=true", definition, "apply")

    yield put
    put()


@pytest.fixture
def operator(cluster, namespace, tmp_path):
    """Not started yet."""
    api = grant(cluster, namespace, [namespace])
    flags = ("--namespaces", namespace, "--own-namespace", namespace, "--lease-seconds", "4")
    running = Operator(cluster.write_kubeconfig(api), *flags, log=tmp_path / "log")
    yield running
    running.kill()


def refused(cluster, namespace):
    """How often the API server refused a status."""
    user = f"system:serviceaccount:{namespace}:{ACCOUNT}"
    return sum(
        event["verb"] == "patch" and event["responseStatus"]["code"] >= 400
        for event in cluster.audit(user)
    )


@pytest.fixture
def v2w(cluster, namespace, monkeypatch, capsys, tmp_path):
    """What a command of v2w printed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(MANIFEST)
    config = cluster.write_kubeconfig(cluster.admin, namespace)
    monkeypatch.setenv("KUBECONFIG", os.fspath(config))

    def call(*arguments):
        main(arguments)
        return capsys.readouterr().out

    return call


SAID = "The CRD in this cluster is older than the operator (status."
UNKNOWN = ("status.activeSince", "status.stages[].jobUID")


def test_an_older_crd_is_reported_everywhere(cluster, namespace, define, operator, v2w):
    define(older)
    run = Resource(cluster, namespace)
    # the documents of OpenAPI follow the definition
    eventually(lambda: SAID in v2w("preflight", "-f", "run.yaml", "--cluster"))
    run.create()
    operator.launch()
    eventually(lambda: operator.probe("readyz")[1].startswith("leading"), what=operator.tail)
    code, text = operator.probe("readyz")
    assert code == 503
    for field in UNKNOWN:
        assert field in text
    assert operator.probe("healthz")[0] == 200
    eventually(lambda: run.condition("DefinitionCurrent").get("status") == "False")
    assert run.condition("DefinitionCurrent")["reason"] == "Outdated"
    assert run.status["message"].startswith(SAID)
    reported = v2w("explain", "run")
    assert SAID in reported
    assert "No operator" not in reported
    assert run.children("jobs") == []
    time.sleep(3)
    assert refused(cluster, namespace) == 0
    log = operator.log.read_text()
    assert log.count(SAID) == 1
    assert "Traceback" not in log
    define()
    eventually(lambda: operator.probe("readyz") == (200, "leading"), what=operator.tail)
    eventually(lambda: run.children("jobs"), what=operator.tail)
    assert run.condition("DefinitionCurrent")["status"] == "True"


def test_a_crd_that_is_downgraded_under_a_running_operator(
    cluster, namespace, define, operator, v2w
):
    operator.start()
    define(older)
    run = Resource(cluster, namespace).create()
    eventually(
        lambda: run.condition("DefinitionCurrent").get("status") == "False", 90, operator.tail
    )
    time.sleep(3)
    assert refused(cluster, namespace) <= 4
    assert operator.log.read_text().count("the API server refuses the status") <= 1
    assert SAID in v2w("explain", "run")
    define()
    eventually(lambda: run.children("jobs"), what=operator.tail)


def test_a_crd_that_is_installed_after_the_operator(cluster, namespace, define, operator):
    cluster.admin.delete(PATH)
    try:
        eventually(lambda: "deletionTimestamp" not in _found(cluster))
        operator.launch()
        eventually(
            lambda: (
                operator.probe("readyz")[0] == 503
                and "is not in this cluster" in operator.probe("readyz")[1]
            ),
            what=operator.tail,
        )
    finally:
        define()
    eventually(lambda: operator.probe("readyz") == (200, "leading"), what=operator.tail)
    run = Resource(cluster, namespace)
    eventually(lambda: _made(run), what=operator.tail)
    eventually(lambda: run.children("jobs"), what=operator.tail)
    assert operator.log.read_text().count("is not in this cluster") == 1


def _found(cluster):
    listed = cluster.admin.get(PATH.rpartition("/")[0])["items"]
    return next((d["metadata"] for d in listed if d["metadata"]["name"] == NAME), {})


def _made(run):
    from control_plane import ApiError

    try:
        return run.create()
    except ApiError:  # not served yet
        return None


def test_a_newer_crd_is_served_as_well(cluster, namespace, define, operator, v2w):
    define(newer)
    run = Resource(cluster, namespace)
    eventually(lambda: _has_default(run))
    operator.start()
    run.create()
    eventually(lambda: run.children("jobs"), what=lambda: (run.status, operator.tail()))
    assert run.object["spec"]["quality"] == "Good"
    assert run.condition("Accepted")["status"] == "True"
    other = Resource(cluster, namespace, "other").create(quality="Best")
    eventually(lambda: other.condition("Accepted").get("status") == "False")
    assert "spec.quality: unknown field" in other.status["message"]


def _has_default(run):
    made = run.cluster.admin.post(f"{run.path}?dryRun=All", run.body("probe"))
    return made["spec"].get("quality") == "Good"
