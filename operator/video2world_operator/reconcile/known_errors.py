"""What the usual texts of Kubernetes, Kueue, registries and our workers mean, and what to do."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from video2world_operator.api.conditions import Reason

__all__ = [
    "AGAIN_CLUSTER",
    "AGAIN_LOCAL",
    "BUSY_GPUS",
    "BY_REASON",
    "LOGS",
    "RULES",
    "Rule",
    "facts",
    "known",
    "matching",
]


@dataclass(frozen=True)
class Rule:
    """A text that matches ``pattern`` means ``what``; named groups and facts fill both in."""

    pattern: str
    what: str
    remedy: str


AGAIN = "{again}"
AGAIN_CLUSTER = "then `v2w suspend {name}` and `v2w resume {name}` (any change of the spec does)"
AGAIN_LOCAL = "then run the same `v2w run` again"
LOGS = "`v2w logs {name} --stage {stage}` shows the whole log"
BUSY_GPUS = Rule(
    "",
    "Not enough GPUs are free for stage {stage}.",
    "Wait until others end (it starts by itself), add nodes, or suspend another: "
    "kubectl get v2w -A",
)

# The first rule that matches counts: the particular stand before the general.
RULES: tuple[Rule, ...] = (
    # -------------------------------------------------- what a worker said at its end
    Rule(
        r"(?P<repo>[\w.-]+/[\w.-]+)[^\n]*?(?:is gated|access refused|Cannot access gated)",
        "The licence of {repo} is not accepted for the Hugging Face account whose token is used.",
        "Accept it at https://huggingface.co/{repo}, put a read token of that account into the "
        "Secret that spec.credentials.huggingFaceTokenSecret names (locally: HF_TOKEN), " + AGAIN,
    ),
    Rule(
        r"the data set is gated|is gated",
        "The licence of the data set is not accepted for the Hugging Face account in use.",
        "Accept it on the data set's page, give a token of that account, " + AGAIN,
    ),
    Rule(
        r"refused the request \(401\)",
        "The Hugging Face token is wrong or has expired.",
        "Make a read token at https://huggingface.co/settings/tokens, put it into the Secret that "
        "spec.credentials.huggingFaceTokenSecret names (locally: HF_TOKEN), " + AGAIN,
    ),
    Rule(
        r"CUDA out of memory|OutOfMemoryError",
        "The GPU's memory is too small for this training.",
        "Lower spec.training.batchSize, raise contextParallelSize or gpusPerNode, or use "
        "architecture: LoRA; " + AGAIN,
    ),
    Rule(
        r"pod (?P<pod>\S+) was killed for want of memory",
        "Pod {pod} used more memory than its limit allows (OOM).",
        "Raise spec.stages.{stage}.resources.limits.memory, or lower spec.training.batchSize",
    ),
    Rule(
        r"OOMKilled|OutOfMemory",
        "The container used more memory than its limit allows (OOM).",
        "Raise spec.stages.{stage}.resources.limits.memory, or lower spec.training.batchSize",
    ),
    Rule(
        r"No space left on device|[Dd]isk is full|volume is full",
        "The volume is full.",
        "Make the claim {claim} larger (spec.resources.requests.storage of the claim), or free "
        "space: older checkpoints, downloaded archives; " + AGAIN,
    ),
    Rule(
        r"NCCL|ProcessGroup|RendezvousTimeout|Connection (?:refused|reset)[^\n]*2950",
        "The training pods cannot reach each other.",
        "See whether a NetworkPolicy or firewall stands between them, and "
        "spec.training.interconnect; " + LOGS,
    ),
    # -------------------------------------------------- images
    Rule(
        r"(?:ErrImagePull|ImagePullBackOff)[^\n]*(?:unauthorized|authentication required|denied)",
        "The registry does not give the image of stage {stage} to this cluster.",
        "Make a pull Secret (kubectl create secret docker-registry) and name it in "
        "spec.images.pullSecrets; check the image's name in spec.images",
    ),
    Rule(
        r"(?:ErrImagePull|ImagePullBackOff|ErrImageNeverPull)[^\n]*"
        r"(?:not found|manifest unknown|not present)",
        "There is no such image for stage {stage}.",
        "Write an image that exists into spec.images (or spec.stages.{stage}.image)",
    ),
    Rule(
        r"ErrImagePull|ImagePullBackOff|ErrImageNeverPull",
        "The image of stage {stage} cannot be pulled.",
        "Check spec.images (or spec.stages.{stage}.image), spec.images.pullSecrets, and whether "
        "the node reaches the registry",
    ),
    Rule(
        r"InvalidImageName",
        "The image name of stage {stage} is no valid one.",
        "Mend spec.images or spec.stages.{stage}.image",
    ),
    Rule(
        r"^Pulling: Pulling image",
        "The node is still pulling the image of stage {stage}.",
        "Wait: a large image takes minutes the first time on a node; `kubectl describe pod {pod} "
        "-n {namespace}` shows when it is there",
    ),
    # -------------------------------------------------- Secrets
    Rule(
        r"""secret "(?P<secret>[^"]+)" not found""",
        "There is no Secret {secret} in namespace {namespace}.",
        "kubectl create secret generic {secret} -n {namespace} --from-literal=token=...; the pod "
        "then starts by itself",
    ),
    Rule(
        r"couldn't find key (?P<key>\S+) in Secret (?P<secret>\S+)",
        "The Secret {secret} has no key {key}.",
        "Put the token under that key, or name the right one in "
        "spec.credentials.huggingFaceTokenSecret.key",
    ),
    Rule(
        r"CreateContainerConfigError|CreateContainerError|RunContainerError|StartError",
        "The node cannot start the container of stage {stage}.",
        "`kubectl describe pod {pod} -n {namespace}` says more; mostly it is a Secret, a mount or "
        "an image without the stage's command",
    ),
    Rule(
        r"""configmap "(?P<configmap>[^"]+)" not found""",
        "There is no ConfigMap {configmap} in namespace {namespace}.",
        "Create it, or change what names it in spec.stages.{stage}.podTemplate",
    ),
    Rule(
        r"FailedCreatePodSandBox",
        "The node cannot set up the pod's sandbox: its network or its container runtime fails.",
        "See to the node's network plugin (CNI) and runtime: kubectl describe pod {pod} "
        "-n {namespace} names the node",
    ),
    # -------------------------------------------------- refused by the API server
    Rule(
        r"exceeded quota: (?P<quota>[^,]+), requested: (?P<asked>.+?), used: (?P<used>.+?), "
        r"limited: (?P<limit>\S+)",
        "The namespace's quota {quota} has no room: asked for {asked}, in use {used}, "
        "at most {limit}.",
        "Free some of it, ask for less (spec.training, spec.stages.{stage}.resources), or have "
        "the quota raised; it then starts by itself",
    ),
    Rule(
        r"failed quota: (?P<quota>[^:]+): must specify (?P<asked>[^\n]+)",
        "The namespace's quota {quota} only admits pods that specify {asked}.",
        "Set it in spec.stages.{stage}.resources (limits.cpu is resources.limits.cpu there)",
    ),
    Rule(
        r"(?P<bound>maximum|minimum) (?P<lacking>[\w./-]+) usage per (?P<per>Container|Pod) is "
        r"(?P<limit>[^\s,]+?)[.,]\s+(?P<said>but (?:limit|request) is [^\s\],]+"
        r"|No (?:limit|request) is specified)",
        "A LimitRange of the namespace sets the {bound} of {lacking} per {per} to {limit}, {said}.",
        "Set spec.stages.{stage}.resources.limits.{lacking} and requests.{lacking} to what it "
        "allows, or have it changed: kubectl describe limitrange -n {namespace}",
    ),
    Rule(
        r"(?P<lacking>[\w./-]+) max limit to request ratio per \w+ is (?P<limit>[^\s,]+)",
        "A LimitRange of the namespace bounds the ratio of limit to request of {lacking} to "
        "{limit}.",
        "Set spec.stages.{stage}.resources.limits.{lacking} and requests.{lacking} accordingly, or "
        "have it changed: kubectl describe limitrange -n {namespace}",
    ),
    Rule(
        r"""Invalid value: "?(?P<asked>[^\s":]+)"?: must be less than or equal to """
        r"(?P<lacking>\S+) limit of (?P<limit>[^\s,\]]+)",
        "Stage {stage} requests {asked} of {lacking}, above its limit of {limit}: a LimitRange of "
        "the namespace sets one where the spec sets none.",
        "Set spec.stages.{stage}.resources.limits.{lacking} to at least {asked}, or lower "
        "requests.{lacking}; kubectl describe limitrange -n {namespace} shows what is allowed",
    ),
    Rule(
        r"ValidatingAdmissionPolicy '(?P<policy>[^']+)' with binding '[^']+' denied request: "
        r"(?P<said>[^\n]+)",
        "The cluster's admission policy {policy} refuses it: {said}",
        "Satisfy it through spec.stages.{stage}.podTemplate or resources, or have it changed: "
        "kubectl describe validatingadmissionpolicy {policy}",
    ),
    Rule(
        r"policy '(?P<policy>[^']+)' with binding '[^']+' denied request: ",
        "The cluster's mutating admission policy {policy} fails on it.",
        "Satisfy it through spec.stages.{stage}.podTemplate, or have it changed: kubectl describe "
        "mutatingadmissionpolicy {policy}",
    ),
    Rule(
        r"violates PodSecurity",
        "The namespace's Pod Security level does not allow the pod.",
        "Take out what spec.stages.{stage}.podTemplate or a webhook adds (the plan's own pods pass "
        "the restricted level), or use another namespace",
    ),
    Rule(
        r"""admission webhook "(?P<webhook>[^"]+)" denied""",
        "The cluster's admission webhook {webhook} refuses the objects.",
        "Satisfy it through spec.stages.{stage}.podTemplate or resources, or ask the administrator "
        "of {webhook} for an exception",
    ),
    Rule(
        r"""failed calling webhook "(?P<webhook>[^"]+)\"""",
        "The cluster's admission webhook {webhook} does not answer.",
        "See to the Service behind it, or have its failurePolicy changed: kubectl get "
        "mutatingwebhookconfigurations,validatingwebhookconfigurations",
    ),
    Rule(
        r"error looking up service account (?P<account>[^\s:]+)",
        "There is no service account {account}.",
        "Create it, or change serviceAccountName in spec.stages.{stage}.podTemplate",
    ),
    Rule(
        r"""RuntimeClass\S* "(?P<runtime>[^"]+)" not found""",
        "There is no runtime class {runtime}.",
        "Change runtimeClassName in spec.stages.{stage}.podTemplate; kubectl get runtimeclasses "
        "lists them",
    ),
    Rule(
        r"no PriorityClass with name (?P<priority>\S+)",
        "There is no priority class {priority}.",
        "Mend spec.scheduling.priorityClassName; kubectl get priorityclasses lists them",
    ),
    Rule(
        r"not this resource's",
        "An object of the name that is needed belongs to somebody else.",
        "Delete it, or give this resource another name",
    ),
    # -------------------------------------------------- queues
    Rule(
        r"LocalQueue[^\n]*(?:doesn't exist|not found)",
        "There is no Kueue queue of the name in spec.scheduling.queueName in this namespace.",
        "kubectl get localqueues -n {namespace} lists them",
    ),
    Rule(
        r"(?:couldn't assign flavors|insufficient (?:unused )?quota)",
        "It waits in its queue: the queue's quota is in use.",
        "Wait, or ask for less; kubectl get workloads -n {namespace} shows who is before it",
    ),
    # -------------------------------------------------- no room on the nodes
    Rule(
        r"non-empty scheduling gates",
        "Pod {pod} has scheduling gates, which keep it from being scheduled.",
        "The controller that set them takes them off: `kubectl get pod {pod} -n {namespace} "
        "-o yaml` names them (spec.schedulingGates)",
    ),
    Rule(
        r"minCount \((?P<wanted>\d+)\) cannot be satisfied: (?P<room>\d+) scheduled",
        "The {wanted} training pods start together or not at all, and only {room} have room.",
        "{gpu_remedy}",
    ),
    Rule(
        r"[Ii]nsufficient nvidia\.com/gpu|Insufficient GPUs",
        "{gpu_trouble}",
        "{gpu_remedy}",
    ),
    Rule(
        r"[Ii]nsufficient (?P<lacking>[a-z][\w./-]*\w)",
        "No node has enough {lacking} free for stage {stage}.",
        "Lower spec.stages.{stage}.resources.requests, or wait for or add a node",
    ),
    Rule(
        r"untolerated taint\(?s?\)? ?\{(?P<taint>[^}]*)\}",
        "The nodes with room have a taint ({taint}) that the pod does not tolerate.",
        "Add it to spec.stages.{stage}.tolerations, if you may use those nodes",
    ),
    Rule(
        r"volume node affinity conflict",
        "The volume is tied to another node or zone than the ones with room.",
        "Use a claim that every node can mount (ReadWriteMany), or choose nodes of its zone by "
        "spec.stages.{stage}.nodeSelector",
    ),
    Rule(
        r"didn't match Pod's node affinity/selector",
        "No node has the labels that spec.stages.{stage} asks for.",
        "Mend its nodeSelector or affinity; kubectl get nodes --show-labels lists them",
    ),
    Rule(
        r"""storageclass[^"]* "(?P<storage>[^"]+)" not found""",
        "There is no storage class {storage}.",
        "Mend spec.storage.storageClassName (in a new resource: it cannot change later); "
        "kubectl get storageclasses lists them",
    ),
    Rule(
        r"no persistent volumes available for this claim and no storage class is set",
        "The claim {claim} has no volume: the cluster has no default storage class.",
        "Name one in spec.storage.storageClassName, or an existing claim in "
        "spec.storage.claimName, or have a PersistentVolume made",
    ),
    Rule(
        r"unbound immediate PersistentVolumeClaims|persistentvolumeclaim \"[^\"]+\" not found",
        "The claim {claim} has no volume yet.",
        "`kubectl describe pvc {claim} -n {namespace}` says why; check spec.storage "
        "(storageClassName, accessMode, size)",
    ),
    Rule(
        r"node\(s\) were unschedulable",
        "The nodes that would do are cordoned.",
        "kubectl uncordon them, or wait until their maintenance is over",
    ),
    Rule(
        r"FailedMount|FailedAttachVolume|Unable to attach or mount",
        "The node cannot mount a volume of stage {stage}, such as that of the claim {claim}.",
        "Free it where another node holds it (accessMode ReadWriteOnce: kubectl get "
        "volumeattachments), or see to its storage driver: kubectl describe pvc {claim} "
        "-n {namespace}",
    ),
)

# What to do about a condition whose message no rule knows.
BY_REASON: Mapping[str, str] = {
    Reason.SUSPENDED: "`v2w resume {name}` lets it go on from its last checkpoint",
    Reason.INTERRUPTED: "Run the same `v2w run` command again; it goes on from there",
    Reason.USER_ERROR: "Mend what it names, " + AGAIN + "; " + LOGS,
    Reason.STAGE_FAILED: LOGS + "; mend the cause, " + AGAIN,
    Reason.RESTARTS_EXHAUSTED: LOGS + "; mend the cause, " + AGAIN,
    Reason.DEADLINE_EXCEEDED: "Raise spec.activeDeadlineSeconds",
    Reason.ENGINE_ERROR: "Mend what it names and run the same command again",
    Reason.FORBIDDEN: "An administrator applies manifests/rbac.yaml, or upgrades the chart",
    Reason.OUTDATED: "An administrator does that; work then resumes by itself",
    Reason.CLAIM_DELETED: "kubectl delete jobs -n {namespace} -l video2world.dev/resource={name}",
    Reason.CONTENT_LOST: "Put what was on it by your own hand (dataset.prepared, model.weights) "
    "there again; the stages make the rest",
    Reason.CONTENT_LOST_AGAIN: "See why the storage loses data, or name another claim in a new "
    "resource; " + AGAIN,
    Reason.CHECKS_FAILED: "Do it before training begins; until then all goes on. `v2w preflight -f "
    "FILE --cluster` asks again",
    Reason.NAME_IN_USE: "Set another spec.training.jobName, or wait",
    Reason.CLAIM_MISSING: "`kubectl get pvc -n {namespace}` lists the claims that are there",
    Reason.CLAIM_LOST: "`kubectl describe pvc {claim} -n {namespace}` names the volume",
    Reason.CLAIM_NOT_SHARED: "`kubectl describe pvc {claim} -n {namespace}` shows its access modes",
    Reason.NAME_TAKEN: "Delete that object, or give this resource another name",
    Reason.JOB_SUSPENDED: "Set its spec.suspend to false: kubectl patch job {job} -n {namespace} "
    '--type merge -p \'{{"spec":{{"suspend":false}}}}\'. Where a queue admits every Job, name '
    "one in spec.scheduling.queueName",
    Reason.EARLIER_PODS: "Delete it, or wait until it ends",
    Reason.PODS_ENDING: "Nothing to do: it saves its work first. One that outlives its grace "
    "period by a minute is deleted by force",
    Reason.NO_PROGRESS: "`kubectl describe jobs,pods -n {namespace} -l "
    "video2world.dev/resource={name}` shows more",
    Reason.UNSCHEDULABLE: "`kubectl describe pods -n {namespace} -l "
    "video2world.dev/resource={name}` shows more",
    Reason.CONTAINER_WAITS: "`kubectl describe pods -n {namespace} -l "
    "video2world.dev/resource={name}` shows more",
    Reason.INVALID: "Mend the spec: kubectl edit v2w {name} -n {namespace}",
    Reason.REFUSED: "Mend what the API server names; the operator tries again by itself",
    Reason.WAITING: "Wait, or give this resource a volume of its own (spec.storage)",
    Reason.GANG_UNATTENDED: "Start or install it; or `v2w suspend {name}`, choose another way by "
    "spec.scheduling (gang, queueName), and `v2w resume {name}`",
    Reason.QUEUED: "Wait; kubectl get workloads -n {namespace} shows who is before it. An empty "
    "list means that Kueue is not installed: take spec.scheduling.queueName out",
}


def matching(text: str) -> tuple[Rule, dict[str, str]] | None:
    """The first rule that matches ``text``, and what its named groups found."""
    for rule in RULES if text else ():
        if match := re.search(rule.pattern, text):
            return rule, {k: v for k, v in match.groupdict().items() if v}
    return None


def facts(
    *, name: str, namespace: str, stage: str, claim: str, job: str, local: bool = False
) -> dict[str, str]:
    """The facts that every rule may name; a caller that knows more adds to them.

    ``job`` stands for its pods where the one that is meant is not known.
    """
    gpus = {"stage": stage}
    return {
        "again": (AGAIN_LOCAL if local else AGAIN_CLUSTER).format(name=name),
        "name": name,
        "namespace": namespace,
        "stage": stage,
        "pod": f"-l batch.kubernetes.io/job-name={job}",
        "job": job,
        "claim": claim,
        "gpu_trouble": BUSY_GPUS.what.format_map(gpus),
        "gpu_remedy": BUSY_GPUS.remedy,
    }


def known(texts: Sequence[str], facts: Mapping[str, str]) -> Rule | None:
    """The first of ``texts`` that a rule matches, and its words, filled in."""
    for text in texts:
        if (found := matching(text)) is not None:
            rule, words = found
            filled = {**facts, **words}
            return Rule(text, rule.what.format_map(filled), rule.remedy.format_map(filled))
    return None
