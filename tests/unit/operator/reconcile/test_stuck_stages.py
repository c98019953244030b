"""Jobs and pods that make no progress: how they are found, reported and explained."""

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconcile_world import NOW, World, causes, resource
from video2world_operator.reconcile.actions import Apply, Delete
from video2world_operator.reconcile.known_errors import explain_error, remedy_facts
from video2world_operator.reconcile.observed_state import Job, KubeEvent, Pod
from video2world_operator.reconcile.reason_remedies import BY_REASON
from video2world_operator.reconcile.stuck_stages import BOUND, find_orphan, judge, message, reports

AGO = NOW - timedelta(seconds=BOUND + 1)
FACTS = remedy_facts(name="r", namespace="ns", stage="train", claim="r-data", job="r-train-1")
JOB = Job("r-train-1", "j1", "train", 1, "h", "u1", created=AGO, completions=2)
PENDING = Pod("r-train-1-0-x", "p0", "train", 1, 0, "Pending", created=AGO)
OTHER = Pod("r-train-1-1-y", "p1", "train", 1, 1, "Running", "n2", ready=True, created=AGO)


def event(uid, text, seconds=0, warning=True):
    """An Event that occurred so many seconds before now."""
    return KubeEvent(uid, "Pod", "x", text, warning, NOW - timedelta(seconds=seconds))


QUOTA = event(
    "j1",
    'FailedCreate: Error creating: pods "r-train-1-0-z" is forbidden: exceeded '
    "quota: few, requested: pods=1, used: pods=3, limited: pods=3",
)
NEVER_HEARD = event("j1", "FailedCreate: Error creating: something new")
# Changes of the Job, pods and Events, and what the message must contain.
CASES = {
    "known refusal": (
        {},
        [],
        [QUOTA],
        "Job r-train-1 cannot create 2 of its 2 pods: FailedCreate",
        "exceeded quota: few",
        "ask for a higher quota",
        "No progress since 2026-11-24T11:59:29Z.",
    ),
    "unknown refusal": (
        {},
        [OTHER],
        [NEVER_HEARD],
        "cannot create 1 of its 2 pods: FailedCreate: Error creating: something new.",
        "kubectl describe job r-train-1 -n ns",
    ),
    "stale and strange events": (
        {},
        [OTHER],
        [event("j1", "FailedCreate: of old", 900), event("j9", "FailedCreate: no")],
        "Job r-train-1 has created 1 of 2 pods, and no Event tells why",
        "kube-controller-manager",
    ),
    "nothing read yet": ({}, [OTHER], None, "Job r-train-1 has created 1 of 2 pods."),
    "idle by its spec": (
        {"notes": ("spec.parallelism is 0",)},
        [],
        [],
        "Job r-train-1 has created 0 of 2 pods: spec.parallelism is 0. kubectl describe job",
    ),
    "left to another controller": (
        {"managed_by": "example.com/else"},
        [],
        [],
        "it is managed by the controller example.com/else (spec.managedBy)",
    ),
    "pod that failed": (
        {},
        [OTHER, replace(PENDING, phase="Failed", exit_code=1, ended=AGO, tail="boom")],
        [],
        "Pod r-train-1-0-x ended with exit code 1; Job r-train-1 starts another after a pause: "
        "boom",
        "`v2w logs r --stage train`",
    ),
    "no scheduler": (
        {},
        [replace(PENDING, scheduled=False, scheduler="mine"), OTHER],
        [],
        "No scheduler has considered pod r-train-1-0-x: its schedulerName is mine. Install mine",
    ),
    "scheduler of the cluster": (
        {},
        [replace(PENDING, scheduled=False, scheduler="default-scheduler"), OTHER],
        [],
        "schedulerName is default-scheduler. Check that kube-scheduler is running.",
    ),
    "unknown trouble of a pod": (
        {},
        [replace(PENDING, node="n1", states=("container train waits: ContainerCreating",)), OTHER],
        [
            event("p0", "FailedAttach: strange words"),
            event("p0", "FailedScheduling: before it had a node"),
        ],
        "Pod r-train-1-0-x on node n1 has not started: FailedAttach: strange words.",
        "kubectl describe pod r-train-1-0-x -n ns",
    ),
    "image on its way": (
        {},
        [replace(PENDING, node="n1"), OTHER],
        [event("p0", 'Pulling: Pulling image "a"', 5, False), event("p0", "Odd: past", 200)],
        "Pulling: Pulling image",
        "still pulling the image",
    ),
    "init container": (
        {},
        [replace(PENDING, node="n1", states=("init container wait is still running",)), OTHER],
        [],
        "has not started: init container wait is still running",
    ),
    "not ready": (
        {},
        [
            replace(
                OTHER,
                ready=False,
                not_ready=AGO,
                states=("container proxy waits: CrashLoopBackOff",),
            ),
            replace(OTHER, index=0, name="a"),
        ],
        [],
        "Pod r-train-1-1-y on node n2 is running, but not ready: container proxy waits: Crash",
    ),
    "sidecar": (
        {},
        [
            replace(OTHER, ready=False, exit_code=0, ended=AGO, still_running=("istio-proxy",)),
            replace(OTHER, index=0, name="a"),
        ],
        [],
        "The worker of pod r-train-1-1-y has ended (exit code 0), but container istio-proxy is "
        "still running. Disable its injection with spec.stages.train.podTemplate, or use a native "
        "sidecar",
    ),
    "two alike": (
        {},
        [replace(p, phase="Pending", node="n", ready=False) for p in (PENDING, OTHER)],
        [event(uid, "FailedMount: MountVolume failed") for uid in ("p0", "p1")],
        "Pod r-train-1-0-x on node n has not started (and 1 more pod): FailedMount",
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_evidence_is_in_the_message(case):
    changes, pods, events, *words = case
    judged = judge(replace(JOB, **changes), pods, 2, events, NOW)
    (first, *_) = judged.findings
    text = message(first, FACTS)
    for expected in words:
        assert expected in text
    assert judged.uids
    # a moment earlier: not yet, but the time is known
    early = judge(replace(JOB, **changes), pods, 2, events, NOW - timedelta(seconds=2))
    assert first.what not in [one.what for one in early.findings]
    assert early.check_at == first.since + timedelta(seconds=BOUND)


# Messages of Kubernetes 1.37 if a Job's pods are refused, and parts of what and remedy.
REFUSALS = {
    'pods "a" is forbidden: [maximum cpu usage per Container is 1, but limit is 4, '
    "maximum memory usage per Container is 1Gi, but limit is 8Gi]": (
        "sets the maximum of cpu per Container to 1, but limit is 4",
        "resources.limits.cpu",
    ),
    'pods "a" is forbidden: maximum memory usage per Pod is 1Gi.  No limit is specified': (
        "maximum of memory per Pod to 1Gi, No limit",
        "limits.memory",
    ),
    'pods "a" is forbidden: memory max limit to request ratio per Container is 2, '
    "but provided ratio is 4.000000": (
        "limit to request of memory of at most 2",
        "requests.memory",
    ),
    'Error creating: Pod "a" is invalid: spec.containers[0].resources.requests: Invalid value: '
    '"2Gi": must be less than or equal to memory limit of 512Mi': (
        "requests 2Gi of memory, above its limit of 512Mi",
        "limits.memory to at least 2Gi",
    ),
    'pods "a" is forbidden: failed quota: few: must specify limits.cpu for: a': (
        "quota few only admits pods that specify limits.cpu",
        "spec.stages.train.resources",
    ),
    "pods \"a\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied "
    "request: say who": ("policy p refuses it: say who", "podTemplate"),
    "Error creating: policy 'm' with binding 'b' denied request: expression 'x' resulted in error: "
    "no such key: annotations": ("policy m fails", "kubectl describe mutatingadmissionpolicy m"),
    'Error creating: admission webhook "w.example" denied the request: no': (
        "webhook w.example refuses",
        "podTemplate",
    ),
    'Error creating: Internal error occurred: failed calling webhook "w.example": failed to call '
    "webhook: Post: connection refused": ("w.example does not answer", "failurePolicy"),
    'pods "a" is forbidden: error looking up service account ns/x: serviceaccount "x" not found': (
        "no service account ns/x",
        "serviceAccountName",
    ),
    'FailedResourceClaimCreation: PodResourceClaim gpus: resource claim template "eight": '
    'resourceclaimtemplate.resource.k8s.io "eight" not found': (
        "no ResourceClaimTemplate eight in namespace",
        "or correct resourceClaims",
    ),
    "request gpus: device class gpu.nvidia.com does not exist": (
        "no DeviceClass gpu.nvidia.com",
        "Install the DRA driver",
    ),
    "0/4 nodes are available: 4 cannot allocate all claims. still not schedulable": (
        "Not enough devices are free for the claims of stage train",
        "counts the devices",
    ),
    'pods "a" is forbidden: pod rejected: RuntimeClass "kata" not found': (
        "no runtime class kata",
        "runtimeClassName",
    ),
}


@pytest.mark.parametrize(("text", "words"), REFUSALS.items())
def test_known_rejections_of_pods_are_explained(text, words):
    rule = explain_error([text], FACTS)
    assert words[0] in rule.what
    assert words[1] in rule.remedy


@pytest.mark.parametrize(
    "changes", [{"complete": True}, {"failed": "x"}, {"suspended": True}, {"deleting": True}]
)
def test_an_idle_job_is_not_stuck(changes):
    assert judge(replace(JOB, **changes), [], 2, [], NOW).findings == []


PODS = st.builds(
    Pod,
    name=st.just("p"),
    uid=st.uuids().map(str),
    stage=st.just("train"),
    attempt=st.just(1),
    index=st.just(0),
    phase=st.sampled_from(["Pending", "Running", "Unknown", "Failed"]),
    node=st.sampled_from(["", "n"]),
    ready=st.booleans(),
    created=st.just(AGO),
    ended=st.sampled_from([None, AGO]),
    exit_code=st.sampled_from([None, 0, 1, 2]),
    scheduled=st.booleans(),
    not_ready=st.sampled_from([None, AGO]),
    states=st.sampled_from([(), ("container train waits: x",)]),
    still_running=st.sampled_from([(), ("istio-proxy",)]),
)


@given(pods=st.lists(PODS, max_size=2), events=st.sampled_from([None, [], [QUOTA]]))
def test_pods_that_do_not_run_are_always_found(pods, events):
    pods = [replace(pod, index=n, name=f"p{n}") for n, pod in enumerate(pods)]
    running = [p for p in pods if p.ready and p.exit_code is None and not p.over]
    judged = judge(JOB, pods, 2, events, NOW)
    assert bool(judged.findings) == (len(running) < 2)
    for finding in judged.findings:
        assert message(finding, FACTS)


def test_reports_are_the_newest_of_each_reason_of_the_same_object():
    told = [event("a", "X: 1", 9), event("a", "X: 2", 5), event("a", "Y: 3", 7), event("b", "Z: 4")]
    assert [e.text for e in reports(told, "a")] == ["X: 2", "Y: 3"]
    assert [e.text for e in reports(told, "a", NOW - timedelta(seconds=6))] == ["X: 2"]
    got_past = [event("a", "X: 1", 90), event("a", "Started: 5", 5, False)]
    assert [e.text for e in reports(got_past, "a")] == ["Started: 5"]
    assert reports(None, "a") == []


def test_orphans():
    mine, theirs = JOB, replace(JOB, name="r-train-2", attempt=2, owner="", uid="j2")
    late = replace(OTHER, attempt=2)
    assert find_orphan([mine], [OTHER], "u1") is None
    assert find_orphan([mine, theirs], [OTHER, late], "u1").object == "job r-train-2"
    assert find_orphan([mine], [late], "u1").object == "pod r-train-1-1-y"
    for gone in (replace(late, phase="Failed"), replace(late, deleted=NOW)):
        assert find_orphan([mine, theirs], [gone], "u1") is None
    assert find_orphan([mine, replace(theirs, deleting=True)], [late], "u1") is None


# ---------------------------------------------------------------- the status and explain


@pytest.fixture
def world():
    """A resource whose download Job exists, without pods."""
    made = World()
    made.settle()
    return made


def stuck(world, events=None):
    """Reconcile again after the bound; returns the decision."""
    world.tick(BOUND + 1)
    return world.round(kube_events=events)


def test_the_status_reports_it_after_the_bound_and_asks_for_events(world):
    decision = world.round()
    assert world.status["message"] == "Stage download is running (attempt 1)."
    assert decision.wake == world.now + timedelta(seconds=BOUND)
    decision = stuck(world)
    job = world.jobs["run-download-1"]
    assert decision.stuck == (job.uid,)
    assert decision.wake is not None
    assert world.condition("PodsStarted")["reason"] == "NoProgress"
    told = [replace(NEVER_HEARD, uid=job.uid, time=world.now)]
    world.round(kube_events=told)
    said = world.status["message"]
    assert (
        "Job run-download-1 cannot create its pod: FailedCreate: Error creating: something" in said
    )
    world.tick(300)
    world.round(kube_events=told)
    assert world.status["message"] == said  # no write only because time passes
    world.start_pods()
    world.round()
    assert world.status["message"] == "Stage download is running (attempt 1)."


def test_explain_agrees_and_shows_the_age(world):
    assert causes(world) == []
    world.tick(BOUND + 60)
    (cause,) = causes(world)
    assert cause.what == (
        "Job run-download-1 has created 0 of 1 pods, and no Event tells why; no progress for 1m30s."
    )
    world.start_pods()
    assert causes(world) == []


def test_an_operator_that_stops_acting_is_noticed(world):
    world.start_pods()
    world.round()
    job = world.jobs["run-download-1"]
    world.jobs[job.name] = replace(job, complete=True, ended=world.now)
    assert causes(world) == []
    world.tick(BOUND + 1)
    (cause,) = causes(world)
    assert cause.what == "No operator is managing this resource."


def test_a_manually_suspended_job_is_not_queued(world):
    world.jobs["run-download-1"] = replace(world.jobs["run-download-1"], suspended=True)
    world.round()
    expected = "Its Job was suspended by someone else: kubectl describe job run-download-1"
    assert expected in world.status["message"]
    (cause,) = causes(world)
    assert expected in cause.what
    assert "queue ?" not in str(cause)
    assert '{"spec":{"suspend":false}}' in cause.remedy


def test_an_orphan_is_named_until_it_is_gone():
    world = World()
    left = Job("run-train-2", "old", "train", 2, "h", "", created=NOW)
    pod = Pod("run-train-2-0-a", "p", "train", 2, 0, "Running", "n", ready=True, created=NOW)
    world.jobs[left.name], world.pods[pod.name] = left, pod
    world.round()
    expected = (
        "Waiting for pod run-train-2-0-a of an earlier resource of this name: kubectl "
        "delete job run-train-2 -n ns"
    )
    assert world.status["message"] == expected
    assert world.condition("PodsStarted")["reason"] == "EarlierPods"
    (cause,) = causes(world)
    assert cause.what == expected
    world.body["spec"]["suspend"] = True  # and it does not end
    world.round()
    assert expected in world.condition("PodsStarted")["message"]
    world.body["spec"]["suspend"] = False
    del world.jobs[left.name], world.pods[pod.name]
    world.settle()
    assert "run-download-2" in world.jobs
    assert "EarlierPods" not in str(world.status)


def test_an_ended_orphan_with_the_attempts_name_is_reported():
    world = World()
    world.pods["run-download-1-a"] = Pod("run-download-1-a", "p", "download", 1, 0, "Succeeded")
    world.round()
    expected = (
        "Waiting for pod run-download-1-a of an earlier resource of this name: kubectl delete "
    )
    assert world.status["message"] == f"{expected}pod run-download-1-a -n ns"
    assert world.jobs == {}


def test_pods_of_the_previous_attempt_are_awaited_by_name():
    world = World()
    first, _ = world.to_training()
    for value in (True, False):  # suspended and resumed while the pods save their work
        world.body["spec"]["suspend"] = value
        world.body["metadata"]["generation"] += 1
        world.round()
    assert world.condition("PodsStarted")["reason"] == "PodsEnding"
    assert world.status["message"] == f"Waiting for pod {first} to end."
    world.tick(BOUND + 1)
    (cause,) = causes(world)
    assert cause.what == f"Waiting for pod {first} to end."
    world.pods.clear()
    world.settle()
    assert world.status["message"] == "Stage train is running (attempt 2)."


def test_a_restart_reports_the_orphan_it_waits_for():
    world = World()
    first, second = world.to_training()
    orphaned = replace(world.pods[second], name="x", uid="x", attempt=9)
    world.pods["x"] = orphaned
    world.pod(first, phase="Failed", exit_code=1)
    world.round()
    world.pods = {"x": orphaned}
    world.round()
    assert world.status["message"].startswith("Waiting for pod x of an earlier resource")
    assert any("Waiting for pod x of an earlier" in cause.what for cause in causes(world))


def test_stuck_samples_are_shown_during_training():
    spec = {"samples": [{"input": "a.mp4"}], "everyCheckpoint": True}
    world = World(resource(inference=spec))
    world.to_training()
    world.round()
    world.status["checkpoint"] = {"iteration": 500}
    world.settle()
    stuck(world)
    assert world.condition("SamplesMade")["reason"] == "NoProgress"
    assert "run-samples-500" in world.condition("SamplesMade")["message"]
    assert "run-samples-500" in causes(world)[0].what


# ---------------------------------------------------------------- sidecars


def beside(world, stage="download", code=0, **fields):
    """The worker of every pod has ended, and a proxy still runs."""
    for name, pod in world.pods.items():
        if pod.stage == stage:
            world.pod(
                name,
                exit_code=code,
                ended=world.now,
                ready=False,
                still_running=("istio-proxy",),
                **fields,
            )


def test_a_sidecar_that_outlives_a_successful_worker(world):
    world.start_pods()
    beside(world)
    decision = world.round()
    assert world.stage("download")["state"] == "Running"  # it may still have something to send
    assert decision.wake == world.now + timedelta(seconds=BOUND)
    decision = stuck(world)
    assert world.stage("download")["state"] == "Succeeded"
    (gone,) = [a for a in decision.actions if isinstance(a, Delete)]
    assert (gone.kind, gone.name) == ("Job", "run-download-1")
    assert "container istio-proxy is still running: the worker's exit code counts" in gone.why
    assert [a.manifest["metadata"]["name"] for a in decision.actions if isinstance(a, Apply)][
        -1
    ] == "run-dataset-1"


def test_a_worker_without_an_end_time_has_ended_long_ago(world):
    world.start_pods()
    beside(world)
    for name in world.pods:
        world.pod(name, ended=None)
    stuck(world)
    assert world.stage("download")["state"] == "Succeeded"


def test_a_lost_deletion_is_repeated(world):
    world.start_pods()
    beside(world)
    world.tick(BOUND + 1)
    jobs = dict(world.jobs)
    world.round()
    world.jobs |= jobs  # the operator stopped between the write and the deletion
    assert "run-download-1" in [a.name for a in world.round().actions if isinstance(a, Delete)]


def test_a_user_error_next_to_a_sidecar_is_acted_on_at_once(world):
    (name,) = world.start_pods()
    beside(world, code=2, tail="error: no videos")
    decision = world.round()
    assert world.condition("Failed")["reason"] == "UserError"
    assert "no videos" in world.status["message"]
    assert ("Pod", name) in [(a.kind, a.name) for a in decision.actions]


def test_a_crash_next_to_a_sidecar_is_retried_by_the_job(world):
    (name,) = world.start_pods()
    beside(world, code=1)
    decision = stuck(world)
    assert [(a.kind, a.name) for a in decision.actions] == [("Pod", name)]
    assert world.stage("download")["state"] == "Running"


@pytest.mark.parametrize("code", [0, 1, 2])
def test_training_next_to_sidecars(code):
    world = World()
    world.to_training()
    beside(world, "train", code)
    stuck(world)
    state = {0: "Succeeded", 1: "Restarting", 2: "Failed"}[code]
    assert world.stage("train")["state"] == state


def test_a_job_that_failed_only_by_its_sidecars_is_complete(world):
    job = world.jobs["run-download-1"]
    world.jobs[job.name] = replace(job, failed="BackoffLimitExceeded")
    world.pods["p"] = Pod("p", "p", "download", 1, 0, "Failed", exit_code=0)
    world.round()
    assert world.stage("download")["state"] == "Succeeded"


def test_a_sidecar_that_fails_next_to_a_successful_worker(world):
    (name,) = world.start_pods()
    states = ("container istio-proxy ended with exit code 1",)
    world.pod(name, phase="Failed", exit_code=0, ended=world.now, ready=False, states=states)
    decision = world.round()
    assert world.stage("download")["state"] == "Succeeded"
    (gone,) = [a for a in decision.actions if isinstance(a, Delete)]
    assert (
        f"worker of pod {name} has ended (exit code 0), but container istio-proxy ended" in gone.why
    )


def test_one_of_two_workers_does_not_end_the_job():
    world = World()
    first, _ = world.to_training()
    world.pod(first, exit_code=0, ended=world.now, ready=False, still_running=("istio-proxy",))
    assert not [a for a in stuck(world).actions if isinstance(a, Delete)]
    assert world.stage("train")["state"] == "Running"


# ---------------------------------------------------------------- objects of the API


def pod_body(**status):
    labels = {"video2world.dev/stage": "train", "video2world.dev/attempt": "1"}
    spec = {"schedulerName": "s", "initContainers": [{"name": "mesh", "restartPolicy": "Always"}]}
    return {"metadata": {"name": "p", "uid": "u", "labels": labels}, "spec": spec, "status": status}


def container(name, ready=True, **state):
    return {"name": name, "ready": ready, "state": state}


ENDED = {"exitCode": 0, "finishedAt": "2026-11-24T12:00:00Z"}


@pytest.mark.parametrize(
    ("status", "fields"),
    [
        ({}, {"scheduled": False, "scheduler": "s", "waits": ""}),
        (
            {
                "conditions": [
                    {"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}
                ]
            },
            {"scheduled": True, "unschedulable": "SchedulingGated"},
        ),
        (
            {"containerStatuses": [container("train", waiting={"reason": "PodInitializing"})]},
            {"waits": "", "states": ("container train waits: PodInitializing",)},
        ),
        (
            {
                "containerStatuses": [
                    container("train", terminated=ENDED),
                    container("istio-proxy", running={}),
                ]
            },
            {"still_running": ("istio-proxy",), "exit_code": 0},
        ),
        (
            {
                "containerStatuses": [container("train", terminated=ENDED)],
                "initContainerStatuses": [container("mesh", running={})],
            },
            {"still_running": (), "states": ()},
        ),  # a native sidecar, which the kubelet ends
        (
            {
                "initContainerStatuses": [
                    container("mesh", False, running={}),
                    container("setup", running={}),
                ]
            },
            {
                "states": (
                    "container mesh is running, but not ready",
                    "init container setup is still running",
                )
            },
        ),
    ],
)
def test_reading_a_pod(status, fields):
    pod = Pod.of(pod_body(**status))
    assert {name: getattr(pod, name) for name in fields} == fields


def test_reading_an_event():
    about = {"kind": "Job", "name": "j", "uid": "u"}
    body = {
        "involvedObject": about,
        "type": "Warning",
        "reason": "R",
        "message": "m",
        "lastTimestamp": None,
        "series": {"lastObservedTime": "2026-11-24T12:00:00.000000Z"},
        "metadata": {"creationTimestamp": "2026-11-24T11:00:00Z"},
    }
    assert KubeEvent.of(body) == KubeEvent("u", "Job", "j", "R: m", True, NOW)


def test_remedies_do_more_than_point_elsewhere():
    for remedy in BY_REASON.values():
        assert "own words" not in remedy
