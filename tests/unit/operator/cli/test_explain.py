"""The causes and remedies that v2w explain finds in observed states."""

import re
from dataclasses import replace
from datetime import timedelta
from string import Formatter

import pytest

from reconcile_world import NOW, World, causes
from video2world_operator.api.status import parse_status
from video2world_operator.cli.explain import explain
from video2world_operator.cli.snapshot import ClusterObjects, Snapshot
from video2world_operator.reconcile.known_errors import KNOWN_ERRORS
from video2world_operator.reconcile.observed_state import Claim, VolumePeer

FEW = "0/4 nodes are available: 4 Insufficient nvidia.com/gpu. preemption: 0/4 nodes are available."


def node(gpus):
    return {"status": {"allocatable": {"nvidia.com/gpu": str(gpus)} if gpus else {}}}


def event(name, reason, message, kind="Job", at="2026-11-24T12:00:00Z"):
    about = {"kind": kind, "name": name}
    level = "Warning" if "Fail" in reason else "Normal"
    return {
        "involvedObject": about,
        "reason": reason,
        "message": message,
        "lastTimestamp": at,
        "type": level,
    }


@pytest.fixture
def world():
    """A resource whose training pods have been created."""
    made = World()
    made.to_training()
    made.round()
    return made


def blocked(world, **fields):
    """Leave the first training pod Pending, and let the operator see why."""
    world.pod("run-train-1-0", phase="Pending", ready=False, started=None, **fields)
    world.round()
    return world


# Messages of Kubernetes 1.37 and its nodes, and what cause and remedy must contain.
PODS = {
    "busy GPUs": ({"unschedulable": FEW}, "Not enough GPUs are free for stage train", "Wait"),
    "no image": (
        {
            "waits": "ErrImagePull: rpc error: code = NotFound desc = failed to pull and unpack "
            'image "x.example/a:1": x.example/a:1: not found'
        },
        "does not exist",
        "spec.images",
    ),
    "no access to the image": (
        {"waits": "ImagePullBackOff: failed to authorize: failed to fetch oauth token: denied"},
        "registry refuses the image",
        "pullSecrets",
    ),
    "registry away": (
        {"waits": "ErrImagePull: dial tcp: lookup x.example: no such host"},
        "cannot be pulled",
        "can reach the registry",
    ),
    "bad image name": ({"waits": "InvalidImageName: couldn't"}, "is not valid", "spec.images"),
    "no Secret": (
        {"waits": 'CreateContainerConfigError: secret "hf" not found'},
        "no Secret hf in namespace ns",
        "kubectl create secret generic hf -n ns",
    ),
    "wrong key": (
        {"waits": "CreateContainerConfigError: couldn't find key token in Secret ns/hf"},
        "Secret ns/hf has no key token",
        "huggingFaceTokenSecret.key",
    ),
    "other config": (
        {"waits": "CreateContainerConfigError: container has runAsNonRoot and image will run"},
        "cannot start the container",
        "kubectl describe pod run-train-1-0 -n ns",
    ),
    "cpu": (
        {"unschedulable": "0/4 nodes are available: 4 Insufficient cpu."},
        "No node has enough free cpu for stage train",
        "spec.stages.train.resources.requests",
    ),
    "network cards": (
        {"unschedulable": "0/1 nodes are available: 1 Insufficient rdma/hca_shared."},
        "enough free rdma/hca_shared",
        "resources.requests",
    ),
    "taint": (
        {
            "unschedulable": "0/4 nodes are available: 4 node(s) had untolerated taint "
            "{nvidia.com/gpu: present}."
        },
        "taint (nvidia.com/gpu: present)",
        "spec.stages.train.tolerations",
    ),
    "selector": (
        {
            "unschedulable": "0/4 nodes are available: 4 node(s) didn't match Pod's node "
            "affinity/selector."
        },
        "No node has the labels",
        "nodeSelector",
    ),
    "zone": (
        {"unschedulable": "0/4 nodes are available: 4 node(s) had volume node affinity conflict."},
        "bound to another node or zone",
        "ReadWriteMany",
    ),
    "unbound": (
        {
            "unschedulable": "0/4 nodes are available: pod has unbound immediate "
            "PersistentVolumeClaims."
        },
        "Claim run-data has no volume yet",
        "kubectl describe pvc",
    ),
    "cordoned": (
        {"unschedulable": "0/1 nodes are available: 1 node(s) were unschedulable."},
        "cordoned",
        "uncordon",
    ),
    "unheard of": (
        {"unschedulable": "0/4 nodes are available: something new."},
        "Pod run-train-1-0 is waiting for a node",
        "kubectl describe pod run-train-1-0 -n ns",
    ),
}


@pytest.mark.parametrize(("fields", "what", "remedy"), PODS.values(), ids=PODS)
def test_a_pod_that_does_not_start(world, fields, what, remedy):
    (first, *_) = causes(blocked(world, **fields))
    assert what in first.what
    assert remedy in first.remedy
    assert first.evidence == next(iter(fields.values()))


def test_missing_gpus_are_distinguished_from_busy_ones(world):
    blocked(world, unschedulable=FEW)
    (busy,) = causes(world, nodes=[node(8), node(8)])
    assert "Not enough GPUs are free" in busy.what
    (small,) = causes(world, nodes=[node(4), node(2)])
    assert small.what == "Each training pod requests 8 GPUs, but the largest node has 4."
    (none,) = causes(world, nodes=[node(0)])
    assert "No node in the cluster has GPUs" in none.what


def test_the_same_problem_of_two_pods_is_reported_once(world):
    for text in (FEW, "something new"):
        blocked(world, unschedulable=text)
        world.pod("run-train-1-1", phase="Pending", ready=False, started=None, unschedulable=text)
        assert len(causes(world)) == 1


def test_the_unschedulable_pod_of_a_gang_is_the_cause(world):
    # as Kubernetes 1.37 writes it, seen on the test cluster
    gang = (
        "pod group is unschedulable, minCount (4) cannot be satisfied: 3 scheduled, "
        "0 remaining, pod group preemption: No preemption victims found"
    )
    blocked(world, unschedulable=gang)
    (cause,) = causes(world)
    assert cause.what.startswith("The 4 training pods start together or not at all, and only 3")
    assert "add nodes" in cause.remedy
    world.pod("run-train-1-1", phase="Pending", ready=False, started=None, unschedulable=FEW)
    (cause,) = causes(world)
    assert "Not enough GPUs are free" in cause.what


@pytest.mark.parametrize("where", [("training",), ("stages", "train")])
def test_a_gang_that_claims_devices_is_not_told_to_add_a_device_plugin(world, where):
    blocked(world, unschedulable="minCount (4) cannot be satisfied: 3 scheduled, 0 remaining")
    (cause,) = causes(world, nodes=[node(0)])
    assert "device plugin" in cause.remedy
    spec = {"resourceClaims": [{"name": "gpus", "resourceClaimTemplateName": "eight"}]}
    for part in reversed(where):
        spec = {part: spec}
    (cause,) = causes(world, nodes=[node(0)], spec=spec)
    assert "only 3 of them fit" in cause.what
    assert "claim fewer" in cause.remedy
    assert "device plugin" not in cause.remedy


# A stage that fails: what its worker printed last.
ENDS = {
    "licence": (
        2,
        "error: nvidia/Cosmos-Predict2-2B-Video2World is gated and the token in use has no "
        "access to it: accept the licence on https://huggingface.co/x with your account",
        "licence of nvidia/Cosmos-Predict2-2B-Video2World is not accepted",
        "Accept it at https://huggingface.co/nvidia/Cosmos-Predict2-2B-Video2World",
    ),
    "data set's licence": (
        2,
        "error: --repo_id agibot-world/AgiBotWorld-Alpha: the data set is gated. Accept its",
        "licence of agibot-world/AgiBotWorld-Alpha",
        "v2w resume run",
    ),
    "wrong token": (
        2,
        "error: a/b: the Hub refused the request (401), the token in use is not valid for it",
        "token is wrong or has expired",
        "settings/tokens",
    ),
    "the user's other errors": (
        2,
        "error: --dataset_dir x: there are no videos",
        "there are no videos",
        "v2w logs run",
    ),
    "camera of a LeRobotDataset": (
        2,
        "error: --camera tip: the dataset's cameras are top, wrist (and depth, which cannot",
        "its cameras are top, wrist.",
        "Set spec.dataset.lerobot.camera to one of them",
    ),
    "place of a LeRobotDataset": (
        2,
        "error: the dataset lists no episodes: neither meta/episodes.jsonl (v2.0, v2.1) nor",
        "no LeRobotDataset at this place",
        "spec.dataset.lerobot.path",
    ),
    "GPU memory": (
        2,
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate",
        "GPU has too little memory",
        "batchSize",
    ),
    "disk": (2, "OSError: [Errno 28] No space left on device", "volume is full", "run-data"),
}


@pytest.mark.parametrize(("code", "tail", "what", "remedy"), ENDS.values(), ids=ENDS)
def test_a_stage_that_failed(code, tail, what, remedy):
    world = World()
    world.settle()
    (name,) = world.start_pods(phase="Failed", exit_code=code, tail=tail, ended=world.now)
    world.jobs["run-download-1"] = replace(world.jobs["run-download-1"], failed="PodFailurePolicy")
    world.settle()
    assert world.status["phase"] == "Failed", name
    (cause,) = causes(world)
    assert what in cause.what
    assert remedy in cause.remedy


def test_out_of_memory_restarts_and_says_which_limit(world):
    world.pod("run-train-1-0", phase="Failed", exit_code=137, reason="OOMKilled", ended=world.now)
    world.round()
    (first, *_) = causes(world)
    assert "failed and restarts" in first.what
    assert "spec.stages.train.resources.limits.memory" in first.remedy
    assert "OutOfMemory: pod run-train-1-0 ran out of memory" in first.evidence
    assert "train-2" not in str(first)  # the next attempt has no pod yet


def test_restarts_that_ran_out(world):
    for attempt in range(1, 7):
        world.pod(
            f"run-train-{attempt}-0",
            phase="Failed",
            exit_code=1,
            ended=world.now,
            tail="RuntimeError: no luck",
        )
        world.settle()
        world.pods.clear()
        world.tick(700)
        world.settle()
        if world.status["phase"] != "Failed":
            world.start_pods()
            world.round()
    (cause,) = causes(world)
    assert "no luck" in cause.what
    assert "v2w logs run --stage train" in cause.remedy
    assert "v2w resume run" in cause.remedy


def test_a_quota_lets_a_job_make_no_pods():
    world = World()
    world.settle()
    world.round()
    said = (
        'Error creating: pods "run-download-1-x" is forbidden: exceeded quota: gpus, '
        "requested: pods=1, used: pods=3, limited: pods=3"
    )
    old = event("run-download-1", "SuccessfulCreate", "Created pod", at="2026-11-24T11:00:00Z")
    (cause,) = causes(world, [old, event("run-download-1", "FailedCreate", said)])
    assert "quota gpus is exceeded: requested pods=1, used pods=3, limited to pods=3" in cause.what
    world.start_pods()
    assert causes(world, [event("run-download-1", "FailedCreate", said)]) == []


def test_what_the_api_server_refuses():
    world = World()
    world.settle()
    refused = 'Job run-download-1: admission webhook "policy.example" denied the request: no'
    world.round(problems=[refused])
    (cause,) = causes(world)
    assert "webhook policy.example refuses" in cause.what
    assert cause.evidence == refused


def test_a_claim_that_is_not_bound():
    world = World()
    world.settle()
    claim = {
        "metadata": {"name": "run-data", "uid": "uid-of-run-data"},
        "status": {"phase": "Pending"},
    }
    reported = event(
        "run-data",
        "FailedBinding",
        "no persistent volumes available for this claim and no storage class is set",
    )
    (cause,) = causes(world, [reported], claim)
    assert "no default storage class" in cause.what
    later = event(
        "run-data",
        "ProvisioningFailed",
        'storageclass.storage.k8s.io "fast" not found',
        at="2026-11-24T12:01:00Z",
    )
    (cause,) = causes(world, [reported, later], claim)
    assert "no storage class fast" in cause.what
    waits = event("run-data", "WaitForFirstConsumer", "waiting for first consumer to be created")
    assert causes(world, [waits], claim) == []
    bound = claim | {"status": {"phase": "Bound"}}
    assert causes(world, [reported], bound) == []


@pytest.mark.parametrize(
    ("claim", "what"),
    [
        (Claim("mine", found=False), "There is no claim mine"),
        (Claim("mine", lost=True), "lost its volume"),
        (Claim("mine", modes=("ReadWriteOnce",)), "ReadWriteMany"),
    ],
)
def test_an_unusable_existing_claim(claim, what):
    world = World()
    world.body["spec"]["storage"] = {"claimName": "mine"}
    world.round(claim=claim)
    (cause,) = causes(world)
    assert what in cause.what


def test_waiting_in_a_queue():
    world = World()
    world.body["spec"]["scheduling"] = {"queueName": "team"}
    world.to_training()
    world.pods.clear()
    world.jobs["run-train-1"] = replace(world.jobs["run-train-1"], suspended=True)
    world.round()
    (cause,) = causes(world)
    assert cause.what == "Stage train waits in queue team."
    said = "couldn't assign flavors to pod set main: insufficient unused quota for nvidia.com/gpu"
    reported = event("job-run-train-1-2f1a0", "Pending", said, "Workload")
    (cause,) = causes(world, [reported])
    assert "queue's quota is in use" in cause.what
    assert "kubectl get workloads -n ns" in cause.remedy


def test_waiting_for_a_peer():
    world = World()
    world.round()
    hashes = {e["name"]: e["inputsHash"] for e in world.status["stages"]}
    world = World()
    world.round(peers=[VolumePeer("older", "x", hashes)])
    (cause,) = causes(world)
    assert "waits for older" in cause.what


def test_suspended_says_how_to_resume(world):
    world.body["spec"]["suspend"] = True
    world.round()
    world.pods.clear()
    world.jobs.clear()
    world.round()
    assert world.status["phase"] == "Suspended"
    (cause,) = causes(world)
    assert "v2w resume run" in cause.remedy


def test_no_operator():
    world = World()
    assert causes(world) == []  # it has just been made
    world.tick(60)
    (cause,) = causes(world)
    assert cause.what == "No operator is managing this resource."
    world.settle()
    assert causes(world) == []
    world.body["metadata"] |= {"generation": 2}  # the spec was changed, and nobody has acted
    (cause,) = causes(world)
    assert "No operator" in cause.what


def test_a_pod_on_a_dead_node(world):
    world.pod("run-train-1-1", deleted=world.now - timedelta(seconds=5))
    found = [c.what for c in causes(world)]
    assert found == ["Pod run-train-1-1 does not terminate: its node node-1 is not responding."]


def test_an_invalid_spec_and_missing_rights():
    world = World()
    world.body["spec"]["training"] = {"iterations": 5, "contextParallelSize": 3}
    world.round()
    (cause,) = causes(world)
    assert "spec.training.contextParallelSize" in cause.what
    assert "kubectl edit v2w run -n ns" in cause.remedy


def test_what_runs_or_is_done_has_no_cause(world):
    assert causes(world) == []
    for stage in ("train", "inference"):
        world.finish(stage)
        world.pods.clear()
        world.settle()
    assert world.status["phase"] == "Succeeded"
    assert causes(world) == []


def test_a_local_run_that_failed_is_run_again():
    stages = [{"name": "dataset", "state": "Failed"}]
    failed = {"type": "Failed", "status": "True", "reason": "UserError", "message": "no videos"}
    failed["lastTransitionTime"] = "2026-11-24T12:00:00Z"
    status = parse_status({"phase": "Failed", "stages": stages, "conditions": [failed]})
    seen = Snapshot("run", status)
    (cause,) = explain(seen, ClusterObjects(), NOW)
    assert cause.what == "no videos"
    assert (
        "then run the same `v2w run` command again; `v2w logs run --stage dataset`" in cause.remedy
    )
    assert "resume" not in cause.remedy


def test_a_local_run_whose_process_is_gone(world):
    assert causes(world, note="something else to know") == []
    (cause,) = causes(world, note="its process is gone", gone=True)
    assert "same `v2w run` command" in cause.remedy


@pytest.mark.parametrize("rule", KNOWN_ERRORS, ids=lambda rule: rule.pattern[:30])
def test_every_placeholder_of_the_rules_is_filled_in(rule):
    known = {"again", "name", "namespace", "stage", "pod", "claim", "gpu_trouble", "gpu_remedy"}
    known |= set(re.compile(rule.pattern).groupindex)
    for text in (rule.what, rule.remedy):
        assert {field for _, field, _, _ in Formatter().parse(text) if field} <= known


def test_failed_preflight_checks_are_reported_until_training_begins():
    world = World()
    world.settle()
    reported = "nodes for train: there is room for 0 of 2 pods; add nodes"
    world.round(preflight=[reported])
    world.start_pods()
    world.round()
    (cause,) = causes(world)
    assert cause.what == reported
    assert "before training starts" in cause.remedy
    later = World()
    later.to_training()
    later.round(preflight=[reported])
    later.start_pods()
    later.round()
    assert causes(later) == []
