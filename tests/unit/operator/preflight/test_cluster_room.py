"""Count the nodes that a training group could have: free nodes, and quota of Kueue."""

import pytest

from video2world_operator.api.validation import parse
from video2world_operator.plan.plan import make_plan
from video2world_operator.preflight.cluster_room import pod_requests
from video2world_operator.preflight.node_fit import free_room, quota_room


def train_stage():
    training = {"iterations": 9, "nodes": 4, "minNodes": 1, "gpusPerNode": 8, "device": "GPU"}
    body = {
        "apiVersion": "video2world.dev/v1alpha1",
        "kind": "Video2WorldPostTrain",
        "metadata": {"name": "run"},
        "spec": {
            "model": {"size": "Tiny"},
            "dataset": {"prepared": {"path": "datasets/d"}},
            "training": training,
        },
    }
    return make_plan(parse(body)).stage("train")


def node(name, gpus=8, **spec):
    room = {"cpu": "64", "memory": "1Ti", "nvidia.com/gpu": str(gpus), "pods": "110"}
    return {"metadata": {"name": name}, "spec": spec, "status": {"allocatable": room}}


TAINT = [{"key": "node.kubernetes.io/unreachable", "effect": "NoSchedule"}]


@pytest.mark.parametrize(
    ("nodes", "taken", "room"),
    [
        ([node("a"), node("b")], {}, 2),
        ([node("a", 16), node("b", 7)], {}, 2),
        ([node("a"), node("b")], {"a": {"nvidia.com/gpu": 1}}, 1),
        ([node("a"), node("b")], {"a": {"pods": 110}, "b": {"cpu": 63.9}}, 0),
        ([node("a"), node("b", unschedulable=True), node("c", taints=TAINT)], {}, 1),
        ([node("a")], {"a": {"nvidia.com/gpu": 99}}, 0),
        ([], {}, 0),
    ],
)
def test_room_is_what_other_pods_leave_on_usable_nodes(nodes, taken, room):
    assert free_room(train_stage(), nodes, taken) == room


def queue(nominal, used=(), **spec):
    """A ClusterQueue with a flavor for each GPU quota; ``used`` of it is reserved."""
    flavors = [
        {"name": f"f{n}", "resources": [{"name": "nvidia.com/gpu", "nominalQuota": quota}]}
        for n, quota in enumerate(nominal)
    ]
    reserved = [
        {"name": f"f{n}", "resources": [{"name": "nvidia.com/gpu", "total": total}]}
        for n, total in enumerate(used)
    ]
    group = {"coveredResources": ["nvidia.com/gpu"], "flavors": flavors}
    return {"spec": {"resourceGroups": [group]} | spec, "status": {"flavorsReservation": reserved}}


@pytest.mark.parametrize(
    ("found", "admitted", "room"),
    [
        (queue(["17"]), 0, 2),
        (queue(["32"], ["16"]), 2, 4),
        (queue(["32"], ["40"]), 1, 1),  # it borrows
        (queue(["8", "24"], ["0", "4"]), 0, 2),  # a group gets one flavor
        (queue(["99"], stopPolicy="Hold"), 2, 2),
        (queue(["99"], stopPolicy="None"), 0, 12),
        ({"spec": {}}, 0, None),
        ({}, 0, None),
    ],
)
def test_quota_is_the_nominal_one_that_is_not_reserved(found, admitted, room):
    assert quota_room(train_stage(), found, admitted) == room


def test_a_pod_requests_the_most_that_its_containers_need_at_once():
    def container(cpu, gpus=0, **more):
        return {"resources": {"requests": {"cpu": cpu, "nvidia.com/gpu": gpus}}} | more

    spec = {
        "overhead": {"cpu": "100m"},
        "containers": [container("1", 8), container("500m")],
        "initContainers": [container("250m", restartPolicy="Always"), container("4", 1)],
    }
    found = pod_requests(spec)
    assert found["cpu"] == pytest.approx(4.25)
    assert (found["nvidia.com/gpu"], found["pods"]) == (8, 1)
    assert dict(pod_requests({})) == {"pods": 1}
