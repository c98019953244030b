"""Define every condition type, reason and message of a resource, and derive the phase from them.

Conditions have the form of Kubernetes' ``metav1.Condition``: programs wait on ``type`` and
``reason``; people read ``message`` and the phase.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Literal

from video2world_operator.api.status import Condition, Phase, StageStatus, Status

__all__ = [
    "STATUS_REFUSED",
    "Reason",
    "Type",
    "find",
    "finished",
    "is_true",
    "phase_of",
    "set_condition",
]

STATUS_REFUSED = "StatusRefused"  # reason of the Event if the API server refuses a status


class Type(StrEnum):
    """Type of a condition; ``meaning`` tells people what it means if it is true."""

    meaning: str

    def __new__(cls, value: str, meaning: str) -> Type:
        """Create a member from its name in the API and its meaning."""
        made = str.__new__(cls, value)
        made._value_, made.meaning = value, meaning
        return made

    ACCEPTED = "Accepted", "the spec is valid and no other run on the volume uses its folder"
    AUTHORIZED = "OperatorAuthorized", "the operator has the permissions it needs"
    DEFINITION = "DefinitionCurrent", "the CRD in the cluster has every field the operator writes"
    VOLUME_READY = "VolumeReady", "the claim exists and all pods can mount it"
    CONTENT = "ContentKept", "the results of finished stages are still on the volume"
    PREFLIGHT = "PreflightPassed", "nodes and claim suffice for training, as far as visible"
    CHILDREN_APPLIED = "ChildrenApplied", "the API server accepted every object"
    PODS_STARTED = "PodsStarted", "the pods of the current stage are running"
    GANG = "GangScheduled", "the train group starts as a whole or not at all"
    FULL_SIZE = "FullSize", "the train group has all nodes that spec.training.nodes asks for"
    SAMPLES = (
        "SamplesMade",
        "the samples of the newest checkpoint sampled during training are complete",
    )
    ACTIONS = (
        "ActionsFollowed",
        "the evaluated model follows its actions: its loss with the true ones is lower than with "
        "shuffled ones",
    )
    PROGRESSING = "Progressing", "a stage is running, or will start without intervention"
    SUSPENDED = "Suspended", "stopped on request; nothing is lost"
    SUCCEEDED = "Succeeded", "every stage is done"
    FAILED = "Failed", "a stage failed and needs attention"


class Reason(StrEnum):
    """Reason of a condition's status; :meth:`text` is the message for people."""

    VALID = "Valid"
    INVALID = "Invalid"
    NAME_IN_USE = "NameInUse"
    ALLOWED = "Allowed"
    FORBIDDEN = "Forbidden"
    CURRENT = "Current"
    OUTDATED = "Outdated"
    CHECKS_PASSED = "ChecksPassed"
    CHECKS_FAILED = "ChecksFailed"
    CLAIM_FOUND = "ClaimFound"
    CLAIM_MISSING = "ClaimMissing"
    CLAIM_LOST = "ClaimLost"
    CLAIM_DELETED = "ClaimDeleted"
    CLAIM_NOT_SHARED = "ClaimNotShared"
    CONTENT_KEPT = "ContentKept"
    CONTENT_LOST = "ContentLost"
    CONTENT_LOST_AGAIN = "ContentLostAgain"
    APPLIED = "Applied"
    REFUSED = "Refused"
    PODS_RUNNING = "PodsRunning"
    PODS_STARTING = "PodsStarting"
    UNSCHEDULABLE = "Unschedulable"
    QUEUED = "Queued"
    CONTAINER_WAITS = "ContainerWaits"
    NO_PROGRESS = "NoProgress"
    JOB_SUSPENDED = "JobSuspended"
    EARLIER_PODS = "EarlierPods"
    PODS_ENDING = "PodsEnding"
    NO_PODS = "NoPods"
    GANG_NATIVE = "Native"
    GANG_VOLCANO = "Volcano"
    GANG_COSCHEDULING = "Coscheduling"
    GANG_KUEUE = "Kueue"
    GANG_OFF = "Off"
    GANG_NOT_NEEDED = "NotNeeded"
    GANG_UNAVAILABLE = "Unavailable"
    GANG_UNATTENDED = "SchedulerMissing"
    GROUP_COMPLETE = "GroupComplete"
    GROUP_SHRUNK = "GroupShrunk"
    GROUP_GROWN = "GroupGrown"
    GROUP_WAITING = "GroupWaiting"
    SAMPLING = "Sampling"
    SAMPLED = "Sampled"
    SAMPLES_FAILED = "SamplesFailed"
    ACTIONS_FOLLOWED = "ActionsFollowed"
    ACTIONS_IGNORED = "ActionsIgnored"
    STAGE_RUNNING = "StageRunning"
    RESTARTING = "Restarting"
    STOPPING = "Stopping"
    WAITING = "Waiting"
    WAITING_FOR_SAMPLES = "WaitingForSamples"
    INTERRUPTED = "Interrupted"
    SUSPENDING = "Suspending"
    SUSPENDED = "Suspended"
    RESUMED = "Resumed"
    FINISHED = "Finished"
    STOPPED_EARLY = "StoppedEarly"
    USER_ERROR = "UserError"
    STAGE_FAILED = "StageFailed"
    RESTARTS_EXHAUSTED = "RestartsExhausted"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    ENGINE_ERROR = "EngineError"

    @property
    def template(self) -> str:
        """The message, with placeholders."""
        return _MESSAGES[self]

    def text(self, **facts: Any) -> str:
        """Return the message with ``facts`` filled in, at most ``MAX_MESSAGE`` characters."""
        text = _MESSAGES[self].format(**facts)
        return text if len(text) <= MAX_MESSAGE else f"{text[: MAX_MESSAGE - 1]}…"


_MESSAGES: dict[Reason, str] = {
    Reason.VALID: "The resource is valid.",
    Reason.INVALID: "{problem}",
    Reason.NAME_IN_USE: "{problem}",
    Reason.ALLOWED: "The operator has the permissions it needs.",
    Reason.FORBIDDEN: "The operator may not {missing}: apply manifests/rbac.yaml, or install the "
    "chart with rbac.create=true.",
    Reason.CURRENT: "The CRD has every field that the operator writes.",
    Reason.OUTDATED: "{problem}",
    Reason.CHECKS_PASSED: "Nodes and claim suffice, as far as visible.",
    Reason.CHECKS_FAILED: "{problem}",
    Reason.CLAIM_FOUND: "Claim {claim} exists.",
    Reason.CLAIM_MISSING: "There is no claim {claim} in this namespace: create it, or omit "
    "spec.storage.claimName to have one created.",
    Reason.CLAIM_LOST: "Claim {claim} has lost its volume: restore it from a backup.",
    Reason.CLAIM_DELETED: "Claim {claim} is being deleted, and its data too once no pod uses "
    "it. Copy what you need, then delete the finished Jobs; all stages will run again.",
    Reason.CONTENT_KEPT: "Every stage has found what it needs on the volume.",
    Reason.CONTENT_LOST: "The volume has lost the results of earlier stages ({why}): all stages "
    "run again.",
    Reason.CONTENT_LOST_AGAIN: "The volume has lost the results of earlier stages again ({why}), "
    "and spec.training.maxRestarts ({limit}) is reached: use a claim with persistent storage.",
    Reason.CLAIM_NOT_SHARED: "Claim {claim} is {modes}, but {nodes} nodes share it: use a claim "
    "with ReadWriteMany, or set spec.storage.accessMode: ReadWriteOnce if all pods run on one "
    "machine.",
    Reason.APPLIED: "All objects were applied.",
    Reason.REFUSED: "{problem}",
    Reason.PODS_RUNNING: "{ready} of {desired} pods of stage {stage} are running.",
    Reason.PODS_STARTING: "{ready} of {desired} pods of stage {stage} are running, the rest are "
    "starting.",
    Reason.UNSCHEDULABLE: "Pod {pod} waits for a node: {problem}",
    Reason.QUEUED: "Stage {stage} waits in queue {queue}{why}",
    Reason.CONTAINER_WAITS: "Pod {pod} cannot start: {problem}. {todo}",
    Reason.NO_PROGRESS: "{problem}",
    Reason.JOB_SUSPENDED: "Stage {stage} is not running. Its Job was suspended by someone else: "
    "kubectl describe job {job} -n {namespace}",
    Reason.EARLIER_PODS: "Waiting for pod {pod} of an earlier resource of this name: kubectl "
    "delete {object} -n {namespace}",
    Reason.PODS_ENDING: "Waiting for pod {pod} to end.",
    Reason.NO_PODS: "No stage is running.",
    Reason.GANG_NATIVE: "Kubernetes' own PodGroup ({version}) starts the {nodes} nodes "
    "together. {evidence}",
    Reason.GANG_VOLCANO: "Volcano's PodGroup starts the {nodes} nodes together. {evidence}",
    Reason.GANG_COSCHEDULING: "The coscheduling PodGroup starts the {nodes} nodes together. "
    "{evidence}",
    Reason.GANG_KUEUE: "Kueue admits the {nodes} nodes together (queue {queue}). {evidence}",
    Reason.GANG_OFF: "spec.scheduling.gang is None: nodes start one by one.",
    Reason.GANG_NOT_NEEDED: "A single node needs no gang scheduling.",
    Reason.GANG_UNAVAILABLE: "{problem}",
    Reason.GANG_UNATTENDED: "No scheduler has acted on {what} within {seconds} s: is "
    "{scheduler} running? Its API is served, but that alone schedules nothing.",
    Reason.GROUP_COMPLETE: "The train group has all {asked} nodes.",
    Reason.GROUP_SHRUNK: "The train group has {nodes} of {asked} nodes: {why}.",
    Reason.GROUP_GROWN: "The train group grows to {nodes} of {asked} nodes: {why}.",
    Reason.GROUP_WAITING: "The train group waits for nodes ({nodes} asked for now): {why}.",
    Reason.SAMPLING: "Samples of iteration {iteration} are being made.",
    Reason.SAMPLED: "No samples are being made; those of the checkpoints sampled so far are "
    "complete.",
    Reason.SAMPLES_FAILED: "Samples of iteration {iteration} could not be made; training "
    "continues, and the next checkpoint is tried: {message}",
    Reason.ACTIONS_FOLLOWED: "{message}",
    Reason.ACTIONS_IGNORED: "{message}",
    Reason.STAGE_RUNNING: "Stage {stage} is running (attempt {attempt}).",
    Reason.RESTARTING: "Stage {stage} failed (exit code {code}); attempt {attempt} follows "
    "(restart {restart} of {limit}).",
    Reason.STOPPING: "Stage {stage}: attempt {attempt} starts once the pods of the previous one "
    "are gone. That one ended: {message}",
    Reason.WAITING: "Stage {stage} waits for {peer}, which does the same work on this volume.",
    Reason.WAITING_FOR_SAMPLES: "Stage {stage} waits for the samples of iteration {iteration}, "
    "which were started during training.",
    Reason.INTERRUPTED: "Stopped in stage {stage}; run the same command to resume.",
    Reason.SUSPENDING: "Stage {stage} is saving its work and stopping its pods.",
    Reason.SUSPENDED: "Suspended in stage {stage}.",
    Reason.RESUMED: "Resumed.",
    Reason.FINISHED: "All stages are finished.",
    Reason.STOPPED_EARLY: "All stages are finished. Training ended early, at iteration "
    "{iteration}, as spec.training.stopWhen requests: {why}.",
    Reason.USER_ERROR: "Stage {stage}: {message}",
    Reason.STAGE_FAILED: "Stage {stage} failed: {message}",
    Reason.RESTARTS_EXHAUSTED: "Stage {stage} failed (exit code {code}) after {restarts} restarts: "
    "{message}",
    Reason.DEADLINE_EXCEEDED: "Not finished within {seconds} seconds "
    "(spec.activeDeadlineSeconds): raise it to resume.",
    Reason.ENGINE_ERROR: "Stage {stage} could not be run: {message}",
}
MAX_MESSAGE = 1024  # characters of a message; errors of API server and workers can be long


def find(conditions: Sequence[Condition], kind: Type) -> Condition | None:
    """Return the condition of type ``kind``, if there is one."""
    return next((c for c in conditions if c.type == kind), None)


def finished(status: Status) -> tuple[Reason, dict[str, Any]]:
    """Return the reason of a run's success, with the facts of its message."""
    validation = status.validation
    if validation is None or not validation.stopped:
        return Reason.FINISHED, {}
    return Reason.STOPPED_EARLY, {"iteration": validation.iteration, "why": validation.stopped}


def is_true(conditions: Sequence[Condition], kind: Type) -> bool:
    """Return whether there is a condition ``kind`` and it is True."""
    condition = find(conditions, kind)
    return condition is not None and condition.status == "True"


def set_condition(
    conditions: Sequence[Condition],
    kind: Type,
    status: bool | None,
    reason: Reason,
    now: str,
    *,
    generation: int | None = None,
    **facts: Any,
) -> list[Condition]:
    """Return ``conditions`` with ``kind`` set.

    ``lastTransitionTime`` changes only with the status. A ``status`` of None is Unknown. ``now`` is
    RFC 3339; ``facts`` fill in the reason's message. Conditions of unknown types are dropped:
    other controllers own them.
    """
    old = find(conditions, kind)
    value: Literal["True", "False", "Unknown"] = "Unknown"
    if status is not None:
        value = "True" if status else "False"
    new = Condition(
        type=str(kind),
        status=value,
        reason=str(reason),
        message=reason.text(**facts),
        last_transition_time=old.last_transition_time if old and old.status == value else now,
        observed_generation=generation,
    )
    kept = [c for c in conditions if c.type in _ORDER and c.type != kind]
    return sorted([*kept, new], key=lambda c: _ORDER[c.type])


def phase_of(conditions: Sequence[Condition], stages: Sequence[StageStatus]) -> Phase:
    """Derive the phase; nothing else does.

    Failed, Succeeded and Suspended take precedence over the stages.
    """
    for kind, phase in (
        (Type.FAILED, Phase.FAILED),
        (Type.SUCCEEDED, Phase.SUCCEEDED),
        (Type.SUSPENDED, Phase.SUSPENDED),
    ):
        if is_true(conditions, kind):
            return phase
    progressing = find(conditions, Type.PROGRESSING)
    if progressing is not None and progressing.reason in (Reason.RESTARTING, Reason.STOPPING):
        return Phase.RESTARTING
    begun = any(stage.state != "Pending" for stage in stages)
    return Phase.RUNNING if begun else Phase.PENDING


_ORDER = {str(kind): number for number, kind in enumerate(Type)}  # as the status lists them
