"""Claims for devices: what ResourceSlices publish, and what is wrong with a claim."""

import asyncio
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from video2world_operator.api.validation import parse
from video2world_operator.kube.errors import ApiError
from video2world_operator.plan.optional_apis import Capabilities, OptionalApi
from video2world_operator.plan.plan import make_plan
from video2world_operator.preflight.cluster_checks import check_cluster
from video2world_operator.preflight.device_selectors import parse_selector
from video2world_operator.preflight.facts import ClusterFacts, DeviceFacts
from video2world_operator.preflight.node_fit import training_gpus
from video2world_operator.preflight.operator_preflight import NodePreflight
from video2world_operator.preflight.requirements import estimate

IS_GPU = "device.driver == 'gpu.nvidia.com' && device.attributes['gpu.nvidia.com'].type == 'gpu'"
LARGE = "device.capacity['gpu.nvidia.com'].memory.compareTo(quantity('40Gi')) >= 0"
ATTRIBUTES = {
    "type": {"string": "gpu"},
    "productName": {"string": "NVIDIA H100 80GB HBM3"},
    "cudaComputeCapability": {"version": "9.0.0"},
    "other.example/shared": {"bool": True},
    "index": {"int": 3},
}


@pytest.mark.parametrize(
    ("expression", "matches", "rest"),
    [
        (IS_GPU, True, ()),
        (IS_GPU.replace("'", '"'), True, ()),
        ("(device.driver == 'gpu.nvidia.com')", True, ()),
        ("device.driver == 'other'", False, ()),
        ("device.attributes['gpu.nvidia.com'].type == 'mig'", False, ()),
        ("device.attributes['gpu.nvidia.com'].index == 3", True, ()),
        ("device.attributes['gpu.nvidia.com'].index == 4", False, ()),
        ("device.attributes['gpu.nvidia.com'].index == true", False, ()),
        ("device.attributes['other.example'].shared == true", True, ()),
        ("device.attributes['other.example'].shared == 1", False, ()),
        ("device.attributes['gpu.nvidia.com'].unknown == 'x'", False, ()),
        (f"device.driver == 'gpu.nvidia.com' && {LARGE}", True, (LARGE,)),
        (f"device.driver == 'other' && {LARGE}", False, (LARGE,)),
        # nothing of these is a conjunction of equalities
        ("device.driver == 'x' || true", True, ("device.driver == 'x' || true",)),
        ("!(device.driver == 'x')", True, ("!(device.driver == 'x')",)),
        ("true ? device.driver == 'x' : false", True, ("true ? device.driver == 'x' : false",)),
        (
            "a == 'b && device.driver == \"x\" && c'",
            True,
            ("a == 'b && device.driver == \"x\" && c'",),
        ),
        ("", True, ("",)),
    ],
)
def test_selectors_are_evaluated_as_far_as_they_are_equalities(expression, matches, rest):
    selector = parse_selector(expression)
    assert selector.matches("gpu.nvidia.com", ATTRIBUTES) is matches
    assert selector.rest == rest


@given(st.text(alphabet="device.rv=&|?!()[]'\"\\ x1", max_size=60))
def test_any_text_is_a_selector(text):
    parse_selector(text).matches("x", {})


# ---------------------------------------------------------------------- a cluster with devices


def slice_of(node, count=8, *, generation=1, driver="gpu.nvidia.com", pool="", **changes):
    named = {"attributes": ATTRIBUTES, "capacity": {"memory": {"value": "81559Mi"}}}
    devices = [{"name": f"gpu-{n}", **named, **changes} for n in range(count)]
    spec = {"driver": driver, "pool": {"name": pool or node, "generation": generation}}
    spec |= {"nodeName": node} if node else {"allNodes": True}
    return {"metadata": {"name": f"{node}-{generation}"}, "spec": {**spec, "devices": devices}}


def template(*requests):
    return {"spec": {"spec": {"devices": {"requests": list(requests)}}}}


def request(count=8, name="gpus", device_class="gpu.nvidia.com", **more):
    exactly = {"deviceClassName": device_class, "allocationMode": "ExactCount", "count": count}
    return {"name": name, "exactly": exactly | more}


def node(number):
    room = {"cpu": "192", "memory": "2Ti"}
    return {"metadata": {"name": f"n{number}"}, "spec": {}, "status": {"allocatable": room}}


def device_class(*expressions):
    return {"spec": {"selectors": [{"cel": {"expression": e}} for e in expressions]}}


CLASSES = {
    "gpu.nvidia.com": device_class(IS_GPU),
    "compute-domain.nvidia.com": device_class("device.driver == 'compute-domain.nvidia.com'"),
}
DEVICES = DeviceFacts(
    slices=[slice_of(f"n{number}") for number in range(4)],
    classes=CLASSES,
    templates={"eight": template(request())},
)
FACTS = ClusterFacts(
    "ns",
    nodes=[*map(node, range(5))],  # the last one has no GPU
    quotas=[],
    leader="one",
    devices=DEVICES,
)
CLAIM = [{"name": "gpus", "resourceClaimTemplateName": "eight"}]


def planned(claims=CLAIM, **spec):
    training = {"iterations": 5, "nodes": 4, "resourceClaims": claims} | spec.pop("training", {})
    document = {
        "apiVersion": "video2world.dev/v1alpha1",
        "kind": "Video2WorldPostTrain",
        "metadata": {"name": "run"},
        "spec": {
            "model": {"size": "2B"},
            "dataset": {"agibot": {}},
            "storage": {"size": "1Ti"},
            "training": training,
            **spec,
        },
    }
    return make_plan(parse(document))


def found(plan, facts=FACTS, **devices):
    seen = replace(facts, devices=replace(facts.devices, **devices))
    checks = check_cluster(plan, estimate(plan.resource), seen)
    return [(str(c.verdict), c.text, c.remedy) for c in checks if c.name.endswith(" train")]


def test_devices_are_counted_like_any_resource_of_a_node():
    claims, nodes = found(planned())
    assert claims == ("ok", "a pod claims 8 gpu.nvidia.com devices, 32 are published", "")
    assert nodes == ("ok", "there is room for just 4 pods", "")
    _, nodes = found(planned(training={"nodes": 5}))
    assert nodes[:2] == (
        "fail",
        "there is room for 4 of 5 pods on 5 nodes (1 with too few gpu.nvidia.com devices (0))",
    )
    (gpu,) = set(training_gpus(planned(), FACTS))  # without GPU feature discovery's labels
    assert (gpu.name, gpu.memory, gpu.major) == ("NVIDIA H100 80GB HBM3", 81559 * 2**20, 9)


COUNTS = {
    "an older generation of a pool": ([slice_of("n0"), slice_of("n0", 4, generation=2)], 4, 0),
    "a pool of two slices": ([slice_of("n0", 5), slice_of("n0", 3)], 8, 1),
    "another driver": ([slice_of("n0", driver="mig.example")], 0, 0),
    "tainted devices": ([slice_of("n0", taints=[{"key": "sick", "effect": "NoExecute"}])], 0, 0),
    "a hint": ([slice_of("n0", taints=[{"key": "sick", "effect": "None"}])], 8, 1),
    "devices with their own node": ([slice_of("", nodeName="n0")], 8, 1),
    "v1beta1": ([slice_of("n0", basic={"attributes": ATTRIBUTES}, attributes={})], 8, 1),
    "a full node and half of one": ([slice_of("n0"), slice_of("n1", 4)], 12, 1),
}


@pytest.mark.parametrize(("slices", "total", "pods"), COUNTS.values(), ids=COUNTS)
def test_what_counts_as_a_device(slices, total, pods):
    claims, nodes = found(planned(), slices=slices)
    assert f"{total} are published" in claims[1]
    assert f"there is room for {pods} of 4 pods" in nodes[1]


def test_devices_of_no_single_node_may_be_reachable_from_each():
    claims, unbound, nodes = found(planned(), slices=[slice_of("", 40)])
    assert "40 are published" in claims[1]
    assert unbound[0] == "?"
    assert "40 of them are in pools of no single node" in unbound[1]
    assert nodes[0] == "ok"


def test_what_is_not_evaluated_is_named_and_taken_to_be_true():
    asked = request(selectors=[{"cel": {"expression": LARGE}}])
    claims, unknown, nodes = found(planned(), templates={"eight": template(asked)})
    assert claims[1].startswith("a pod claims 8 gpu.nvidia.com (eight/gpus) devices, 32")
    assert unknown[:2] == (
        "?",
        f"counted as if true, since only the scheduler evaluates it: {LARGE}",
    )
    assert nodes[0] == "ok"


CHANNEL = request(1, "channel", "compute-domain.nvidia.com")
FIRST = {
    "name": "gpus",
    "firstAvailable": [
        {"name": "new", "deviceClassName": "gpu.nvidia.com", "count": 8},
        {"name": "old", "deviceClassName": "compute-domain.nvidia.com", "count": 4},
    ],
}
OLD_FORM = {"name": "gpus", "deviceClassName": "gpu.nvidia.com", "count": 8}  # v1beta1
PROBLEMS = {
    "no such API": (
        {"served": False},
        "this cluster does not serve resource.k8s.io",
        "use Kubernetes 1.34 or newer, or remove resourceClaims",
    ),
    "no template": (
        {"templates": {"eight": None}},
        "there is no ResourceClaimTemplate eight in namespace ns",
        "create it, or correct spec.training.resourceClaims",
    ),
    "no class": (
        {"templates": {"eight": template(request(device_class="gpu.amd.com"))}},
        "there is no DeviceClass gpu.amd.com, which ResourceClaimTemplate eight names",
        "install the DRA driver that provides it, or name one of: compute-domain.nvidia.com, gpu",
    ),
    "too few": (
        {"templates": {"eight": template(request(4))}},
        "a pod claims 4 GPUs by eight, but spec.training.gpusPerNode is 8",
        "make them equal: change the count in eight, or the spec",
    ),
    "other devices are not GPUs": (
        {"templates": {"eight": template(CHANNEL, request(7))}},
        "a pod claims 7 GPUs by eight",
        "make them equal",
    ),
    "either number": (
        {"templates": {"eight": template(FIRST)}},
        "a pod claims 4 to 8 GPUs by eight, but spec.training.gpusPerNode is 8",
        "make them equal",
    ),
    "no request": (
        {"templates": {"eight": template()}},
        "a pod claims 0 GPUs by no request",
        "make them equal",
    ),
}


@pytest.mark.parametrize(("devices", "text", "remedy"), PROBLEMS.values(), ids=PROBLEMS)
def test_a_problem_is_named_with_its_remedy(devices, text, remedy):
    seen = replace(FACTS, devices=replace(DEVICES, **devices))
    plan = planned()
    checks = check_cluster(plan, estimate(plan.resource), seen)
    failed = [c for c in checks if c.name.startswith("claims") and c.verdict == "fail"]
    assert text in failed[0].text
    assert remedy in failed[0].remedy


FINE = {
    "all of a node": template(request(0, allocationMode="All")),
    "two requests": template(request(4, "a"), request(4, "b")),
    "a channel too": template(request(), CHANNEL),
    "the form of v1beta1": template(OLD_FORM),
    "access for an administrator": template(request(), request(1, "all", adminAccess=True)),
}


@pytest.mark.parametrize("asked", FINE.values(), ids=FINE)
def test_templates_that_ask_for_the_gpus_of_a_node(asked):
    slices = [*DEVICES.slices, *(_channel(n) for n in range(4))]
    checks = found(planned(), templates={"eight": asked}, slices=slices)
    assert [verdict for verdict, *_ in checks] == ["ok", "ok"]


def _channel(number):
    return slice_of(f"n{number}", 1, driver="compute-domain.nvidia.com")


def test_a_request_of_the_template_is_named():
    claims = [CLAIM[0] | {"request": "half"}]
    templates = {"eight": template(request(4, "half"), request(4, "other"))}
    failed = found(planned(claims), templates=templates)[0]
    assert failed[1] == "a pod claims 4 GPUs by eight, but spec.training.gpusPerNode is 8"
    (unknown, *_) = found(planned([CLAIM[0] | {"request": "third"}]), templates=templates)
    assert unknown[1:] == (
        "ResourceClaimTemplate eight has no request third",
        "correct spec.training.resourceClaims; it has half, other",
    )


def test_each_stage_has_its_own_number_of_gpus():
    stages = {"latents": {"resourceClaims": CLAIM}}
    plan = planned(stages=stages)
    checks = check_cluster(plan, estimate(plan.resource), FACTS)
    (failed,) = [c for c in checks if c.name == "claims for latents"]
    assert failed.text == "a pod claims 8 GPUs by eight, but stage latents uses 1"


def test_without_permission_it_is_unknown():
    assert found(planned(), slices=None)[0][:2] == ("?", "no permission to list ResourceSlices")
    assert found(planned(), classes=None)[0][:2] == ("?", "no permission to list DeviceClasses")
    hidden = found(planned(), templates={}, unreadable=frozenset({"eight"}))
    assert hidden[0][:2] == ("?", "no permission to read ResourceClaimTemplate eight")
    assert "fail" not in [verdict for verdict, *_ in hidden]
    assert hidden[-1][1].endswith("pods and more, apart from the devices that they claim")


def test_quotas_of_devices():
    hard = {"gpu.nvidia.com.deviceclass.resource.k8s.io/devices": "16"}
    quota = {"metadata": {"name": "few"}, "spec": {"hard": hard}}
    plan = planned()
    checks = check_cluster(plan, estimate(plan.resource), replace(FACTS, quotas=[quota]))
    (failed,) = [c for c in checks if c.name == "quota"]
    assert failed.text.startswith("few leaves 16 of 16 gpu.nvidia.com.deviceclass")
    assert failed.text.endswith("32 are needed")


SERVED = Capabilities({api: "v1" for api in OptionalApi if api.group == "resource.k8s.io"})


class Server:
    """An API server with these devices, some of whose paths are ``forbidden``."""

    def __init__(self, forbidden=()):
        self.forbidden, self.asked, self.template = forbidden, [], template(request())

    def _read(self, path):
        self.asked.append(path.rpartition("/")[2])
        if self.asked[-1] in self.forbidden:
            raise ApiError(403, "Forbidden", path)

    async def list_objects(self, path, page):
        self._read(path)
        classes = [{"metadata": {"name": n}, **body} for n, body in CLASSES.items()]
        listed = {"deviceclasses": classes, "resourceslices": DEVICES.slices}
        for one in [*map(node, range(4))] if path == "/api/v1/nodes" else listed[self.asked[-1]]:
            yield one

    async def get(self, path):
        assert path.startswith("/apis/resource.k8s.io/v1/namespaces/default/")
        self._read(path)
        return self.template


def test_the_operator_lists_devices_now_and_then(monkeypatch):
    clock, server = [1000.0], Server()
    place = "video2world_operator.preflight.operator_preflight.time.monotonic"
    monkeypatch.setattr(place, lambda: clock[0])
    preflight = NodePreflight(server)
    preflight.may_list_nodes = True

    def check(**training):
        return asyncio.run(preflight.check(planned(training=training), "1Ti", SERVED))

    assert check() == []
    assert server.asked == ["nodes", "resourceslices", "eight", "deviceclasses"]
    assert "there is room for 4 of 5 pods" in check(nodes=5)[0]
    assert server.asked[4:] == ["eight", "deviceclasses"]  # each time, the rest once a minute
    server.template, clock[0] = None, 1061.0
    assert check()[0].startswith("claims for train: there is no ResourceClaimTemplate eight")
    assert server.asked[6:] == ["nodes", "resourceslices", "eight", "deviceclasses"]


def test_the_operator_does_without_the_rights():
    for forbidden in (["eight"], ["deviceclasses"], ["resourceslices"]):
        preflight = NodePreflight(Server(forbidden))
        assert asyncio.run(preflight.check(planned(), "1Ti", SERVED)) == []
