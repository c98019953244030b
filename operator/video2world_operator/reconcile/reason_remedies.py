"""Say what to do about each reason of a condition that reports a problem."""

from __future__ import annotations

from collections.abc import Mapping

from video2world_operator.api.conditions import Reason
from video2world_operator.reconcile.known_errors import AGAIN, LOGS

__all__ = ["BY_REASON"]

BY_REASON: Mapping[str, str] = {
    Reason.SUSPENDED: "`v2w resume {name}` resumes it from its last checkpoint",
    Reason.INTERRUPTED: "Run the same `v2w run` command again to resume",
    Reason.USER_ERROR: "Correct what it names, " + AGAIN + "; " + LOGS,
    Reason.ACTIONS_IGNORED: "Check that rows of actions and frames belong together (columns, names "
    "and rate in spec.dataset.actions), then train longer in another resource; results/ shows the "
    "losses with true, shuffled, zeroed and shifted actions",
    Reason.STAGE_FAILED: LOGS + "; fix the cause, " + AGAIN,
    Reason.RESTARTS_EXHAUSTED: LOGS + "; fix the cause, " + AGAIN,
    Reason.DEADLINE_EXCEEDED: "Raise spec.activeDeadlineSeconds",
    Reason.ENGINE_ERROR: "Correct what it names and run the same command again",
    Reason.FORBIDDEN: "Ask an administrator to apply manifests/rbac.yaml or upgrade the chart",
    Reason.OUTDATED: "Ask an administrator to do that; work then resumes by itself",
    Reason.CLAIM_DELETED: "kubectl delete jobs -n {namespace} -l video2world.dev/resource={name}",
    Reason.CONTENT_LOST: "Restore the files you put on it yourself (dataset.prepared, "
    "model.weights); the stages create the rest",
    Reason.CONTENT_LOST_AGAIN: "Find out why the storage loses data, or name another claim in a "
    "new resource; " + AGAIN,
    Reason.CHECKS_FAILED: "Fix this before training starts; the stages before it still run. `v2w "
    "preflight -f FILE --cluster` checks again",
    Reason.NAME_IN_USE: "Set another spec.training.jobName, or wait",
    Reason.CLAIM_MISSING: "`kubectl get pvc -n {namespace}` lists the existing claims",
    Reason.CLAIM_LOST: "`kubectl describe pvc {claim} -n {namespace}` names the volume",
    Reason.CLAIM_NOT_SHARED: "`kubectl describe pvc {claim} -n {namespace}` shows its access modes",
    Reason.JOB_SUSPENDED: "Set its spec.suspend to false: kubectl patch job {job} -n {namespace} "
    '--type merge -p \'{{"spec":{{"suspend":false}}}}\'. Where a queue admits every Job, name '
    "one in spec.scheduling.queueName",
    Reason.EARLIER_PODS: "Delete it, or wait until it ends",
    Reason.PODS_ENDING: "Nothing to do: the pod saves its work first. A pod that outlives its "
    "grace period by a minute is force-deleted",
    Reason.NO_PROGRESS: "`kubectl describe jobs,pods -n {namespace} -l "
    "video2world.dev/resource={name}` shows more",
    Reason.UNSCHEDULABLE: "`kubectl describe pods -n {namespace} -l "
    "video2world.dev/resource={name}` shows more",
    Reason.CONTAINER_WAITS: "`kubectl describe pods -n {namespace} -l "
    "video2world.dev/resource={name}` shows more",
    Reason.INVALID: "Correct the spec: kubectl edit v2w {name} -n {namespace}",
    Reason.REFUSED: "Correct what the API server names; the operator retries by itself",
    Reason.WAITING: "Wait, or give this resource a volume of its own (spec.storage)",
    Reason.GANG_UNATTENDED: "Start or install it; or `v2w suspend {name}`, change spec.scheduling "
    "(gang, queueName), and `v2w resume {name}`. A Volcano queue named in the podTemplate must "
    "exist: kubectl get queues.scheduling.volcano.sh",
    Reason.GROUP_SHRUNK: "Nothing to do: training continues with the same global batch, and grows "
    "back at a checkpoint once more nodes can be had. `kubectl get nodes` shows what is missing",
    Reason.GROUP_GROWN: "Nothing to do: the attempt resumes from the checkpoint",
    Reason.GROUP_WAITING: "Add nodes or quota, or lower spec.training.minNodes",
    Reason.QUEUED: "Wait; kubectl get workloads -n {namespace} shows what is ahead of it. An empty "
    "list means that Kueue is not installed: remove spec.scheduling.queueName",
}
