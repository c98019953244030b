"""Explain known errors of Kubernetes, Kueue, registries and the workers, with remedies."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = [
    "AGAIN_CLUSTER",
    "AGAIN_LOCAL",
    "BUSY_DEVICES",
    "BUSY_GPUS",
    "KNOWN_ERRORS",
    "LOGS",
    "Explanation",
    "KnownError",
    "explain_error",
    "remedy_facts",
]


@dataclass(frozen=True)
class KnownError:
    """A known error: a text that matches ``pattern`` means ``what``.

    ``what`` and ``remedy`` are templates for the facts and the named groups of the pattern.
    """

    pattern: str
    what: str
    remedy: str


@dataclass(frozen=True)
class Explanation:
    """What ``text`` means, and what to do."""

    text: str
    what: str
    remedy: str


AGAIN = "{again}"
AGAIN_CLUSTER = "then `v2w suspend {name}` and `v2w resume {name}` (or any change of the spec)"
AGAIN_LOCAL = "then run the same `v2w run` command again"
LOGS = "`v2w logs {name} --stage {stage}` shows the whole log"
BUSY_GPUS = KnownError(
    "",
    "Not enough GPUs are free for stage {stage}.",
    "Wait until other runs end (this one then starts by itself), add nodes, or suspend another "
    "run: kubectl get v2w -A",
)
BUSY_DEVICES = KnownError(
    "",
    "Not enough devices are free for the claims of stage {stage}.",
    "Wait until other runs end (this one then starts by itself), add nodes, or claim fewer; `v2w "
    "preflight -f FILE --cluster` counts the devices",
)

# The first match counts: specific patterns come before general ones.
KNOWN_ERRORS: tuple[KnownError, ...] = (
    # -------------------------------------------------- errors of the workers
    KnownError(
        r"(?P<repo>[\w.-]+/[\w.-]+)[^\n]*?(?:is gated|access refused|Cannot access gated)",
        "The licence of {repo} is not accepted for the Hugging Face account whose token is used.",
        "Accept it at https://huggingface.co/{repo}, put a read token of that account into the "
        "Secret that spec.credentials.huggingFaceTokenSecret names (locally: HF_TOKEN), " + AGAIN,
    ),
    KnownError(
        r"the data set is gated|is gated",
        "The licence of the data set is not accepted for the Hugging Face account in use.",
        "Accept it on the data set's page, and use a token of that account, " + AGAIN,
    ),
    KnownError(
        r"refused the request \(401\)",
        "The Hugging Face token is wrong or has expired.",
        "Create a read token at https://huggingface.co/settings/tokens, put it into the Secret "
        "that spec.credentials.huggingFaceTokenSecret names (locally: HF_TOKEN), " + AGAIN,
    ),
    KnownError(
        r"(?P<endpoint>https?://\S+) does not accept (?:the token|a request without token)",
        "The endpoint of the captions refuses the token.",
        "Put a valid one into the Secret that spec.dataset.captions.tokenSecret names (locally: "
        "CAPTIONS_TOKEN), " + AGAIN,
    ),
    KnownError(
        r"(?P<endpoint>https?://\S+) has no chat completions for model (?P<model>\S+)",
        "The endpoint of the captions does not serve model {model}.",
        "Correct spec.dataset.captions.endpoint or model; since spec.dataset cannot be changed, "
        "create another resource, which reuses what is complete on the volume",
    ),
    KnownError(
        r"(?P<endpoint>https?://\S+) does not answer \(",
        "The endpoint of the captions does not answer, or cannot be reached from the pod.",
        "Check that it is running and that NetworkPolicies allow pods of stage captions to reach "
        "it, " + AGAIN,
    ),
    KnownError(
        r"--camera [^\n]*?dataset's (?:color )?cameras are (?P<cameras>[^\n(]+?) *(?:[(\n]|$)",
        "The LeRobotDataset has no such camera, or several; its cameras are {cameras}.",
        "Set spec.dataset.lerobot.camera to one of them (on a cluster in another resource, as "
        "spec.dataset cannot be changed); `v2w preflight -f FILE` checks it beforehand",
    ),
    KnownError(
        r"the dataset lists no episodes: neither meta/episodes\.jsonl",
        "There is no LeRobotDataset at this place.",
        "Name the folder above meta/ in spec.dataset.lerobot.path, or in subfolder if the "
        "repository has several (on a cluster in another resource); `v2w preflight -f FILE` checks "
        "it beforehand",
    ),
    KnownError(
        r"CUDA out of memory|OutOfMemoryError",
        "The GPU has too little memory for this training.",
        "Lower spec.training.batchSize, raise contextParallelSize or gpusPerNode, or use "
        "architecture: LoRA; " + AGAIN,
    ),
    KnownError(
        r"pod (?P<pod>\S+) ran out of memory",
        "Pod {pod} used more memory than its limit allows (OOM).",
        "Raise spec.stages.{stage}.resources.limits.memory, or lower spec.training.batchSize",
    ),
    KnownError(
        r"OOMKilled|OutOfMemory",
        "The container used more memory than its limit allows (OOM).",
        "Raise spec.stages.{stage}.resources.limits.memory, or lower spec.training.batchSize",
    ),
    KnownError(
        r"No space left on device|[Dd]isk is full|volume is full",
        "The volume is full.",
        "Increase the size of claim {claim} (its spec.resources.requests.storage), or free space: "
        "delete older checkpoints or downloaded archives; " + AGAIN,
    ),
    KnownError(
        r"NCCL|ProcessGroup|RendezvousTimeout|Connection (?:refused|reset)[^\n]*2950",
        "The training pods cannot reach each other.",
        "Check for a NetworkPolicy or firewall between them, and check spec.training.interconnect; "
        + LOGS,
    ),
    # -------------------------------------------------- images
    KnownError(
        r"(?:ErrImagePull|ImagePullBackOff)[^\n]*(?:unauthorized|authentication required|denied)",
        "The registry refuses the image of stage {stage} to this cluster.",
        "Create a pull Secret (kubectl create secret docker-registry) and name it in "
        "spec.images.pullSecrets; check the image's name in spec.images",
    ),
    KnownError(
        r"(?:ErrImagePull|ImagePullBackOff|ErrImageNeverPull)[^\n]*"
        r"(?:not found|manifest unknown|not present)",
        "The image of stage {stage} does not exist.",
        "Set spec.images (or spec.stages.{stage}.image) to an image that exists",
    ),
    KnownError(
        r"ErrImagePull|ImagePullBackOff|ErrImageNeverPull",
        "The image of stage {stage} cannot be pulled.",
        "Check spec.images (or spec.stages.{stage}.image), spec.images.pullSecrets, and whether "
        "the node can reach the registry",
    ),
    KnownError(
        r"InvalidImageName",
        "The image name of stage {stage} is not valid.",
        "Correct spec.images or spec.stages.{stage}.image",
    ),
    KnownError(
        r"^Pulling: Pulling image",
        "The node is still pulling the image of stage {stage}.",
        "Wait: pulling a large image to a node for the first time takes minutes; `kubectl describe "
        "pod {pod} -n {namespace}` shows when it is done",
    ),
    # -------------------------------------------------- Secrets
    KnownError(
        r"""secret "(?P<secret>[^"]+)" not found""",
        "There is no Secret {secret} in namespace {namespace}.",
        "kubectl create secret generic {secret} -n {namespace} --from-literal=token=...; the pod "
        "then starts by itself",
    ),
    KnownError(
        r"couldn't find key (?P<key>\S+) in Secret (?P<secret>\S+)",
        "The Secret {secret} has no key {key}.",
        "Put the token under that key, or name the right one in "
        "spec.credentials.huggingFaceTokenSecret.key (stage captions: "
        "spec.dataset.captions.tokenSecret.key)",
    ),
    KnownError(
        r"CreateContainerConfigError|CreateContainerError|RunContainerError|StartError",
        "The node cannot start the container of stage {stage}.",
        "`kubectl describe pod {pod} -n {namespace}` shows more; usually a Secret or a mount is "
        "missing, or the image lacks the stage's command",
    ),
    KnownError(
        r"""configmap "(?P<configmap>[^"]+)" not found""",
        "There is no ConfigMap {configmap} in namespace {namespace}.",
        "Create it, or change the reference to it in spec.stages.{stage}.podTemplate",
    ),
    KnownError(
        r"FailedCreatePodSandBox",
        "The node cannot set up the pod's sandbox: its network or its container runtime fails.",
        "Check the node's network plugin (CNI) and runtime: kubectl describe pod {pod} "
        "-n {namespace} names the node",
    ),
    # -------------------------------------------------- refused by the API server
    KnownError(
        r"exceeded quota: (?P<quota>[^,]+), requested: (?P<asked>.+?), used: (?P<used>.+?), "
        r"limited: (?P<limit>\S+)",
        "The namespace's quota {quota} is exceeded: requested {asked}, used {used}, "
        "limited to {limit}.",
        "Free some of it, request less (spec.training, spec.stages.{stage}.resources), or ask for "
        "a higher quota; the stage then starts by itself",
    ),
    KnownError(
        r"failed quota: (?P<quota>[^:]+): must specify (?P<asked>[^\n]+)",
        "The namespace's quota {quota} only admits pods that specify {asked}.",
        "Set it in spec.stages.{stage}.resources (limits.cpu as resources.limits.cpu)",
    ),
    KnownError(
        r"(?P<bound>maximum|minimum) (?P<lacking>[\w./-]+) usage per (?P<per>Container|Pod) is "
        r"(?P<limit>[^\s,]+?)[.,]\s+(?P<said>but (?:limit|request) is [^\s\],]+"
        r"|No (?:limit|request) is specified)",
        "A LimitRange of the namespace sets the {bound} of {lacking} per {per} to {limit}, {said}.",
        "Set spec.stages.{stage}.resources.limits.{lacking} and requests.{lacking} to what it "
        "allows, or ask for it to be changed: kubectl describe limitrange -n {namespace}",
    ),
    KnownError(
        r"(?P<lacking>[\w./-]+) max limit to request ratio per \w+ is (?P<limit>[^\s,]+)",
        "A LimitRange of the namespace allows a ratio of limit to request of {lacking} of at most "
        "{limit}.",
        "Set spec.stages.{stage}.resources.limits.{lacking} and requests.{lacking} accordingly, or "
        "ask for it to be changed: kubectl describe limitrange -n {namespace}",
    ),
    KnownError(
        r"""Invalid value: "?(?P<asked>[^\s":]+)"?: must be less than or equal to """
        r"(?P<lacking>\S+) limit of (?P<limit>[^\s,\]]+)",
        "Stage {stage} requests {asked} of {lacking}, above its limit of {limit}: a LimitRange of "
        "the namespace sets a default where the spec sets none.",
        "Set spec.stages.{stage}.resources.limits.{lacking} to at least {asked}, or lower "
        "requests.{lacking}; kubectl describe limitrange -n {namespace} shows what is allowed",
    ),
    KnownError(
        r"ValidatingAdmissionPolicy '(?P<policy>[^']+)' with binding '[^']+' denied request: "
        r"(?P<said>[^\n]+)",
        "The cluster's admission policy {policy} refuses it: {said}",
        "Satisfy it with spec.stages.{stage}.podTemplate or resources, or ask for it to be "
        "changed: kubectl describe validatingadmissionpolicy {policy}",
    ),
    KnownError(
        r"policy '(?P<policy>[^']+)' with binding '[^']+' denied request: ",
        "The cluster's mutating admission policy {policy} fails for it.",
        "Satisfy it with spec.stages.{stage}.podTemplate, or ask for it to be changed: kubectl "
        "describe mutatingadmissionpolicy {policy}",
    ),
    KnownError(
        r"violates PodSecurity",
        "The namespace's Pod Security level does not allow the pod.",
        "Remove what spec.stages.{stage}.podTemplate or a webhook adds (the pods themselves meet "
        "the restricted level), or use another namespace",
    ),
    KnownError(
        r"""admission webhook "(?P<webhook>[^"]+)" denied""",
        "The cluster's admission webhook {webhook} refuses the objects.",
        "Satisfy it with spec.stages.{stage}.podTemplate or resources, or ask the administrator "
        "of {webhook} for an exception",
    ),
    KnownError(
        r"""failed calling webhook "(?P<webhook>[^"]+)\"""",
        "The cluster's admission webhook {webhook} does not answer.",
        "Check the Service behind it, or ask for its failurePolicy to be changed: kubectl get "
        "mutatingwebhookconfigurations,validatingwebhookconfigurations",
    ),
    KnownError(
        r"error looking up service account (?P<account>[^\s:]+)",
        "There is no service account {account}.",
        "Create it, or change serviceAccountName in spec.stages.{stage}.podTemplate",
    ),
    KnownError(
        r"""RuntimeClass\S* "(?P<runtime>[^"]+)" not found""",
        "There is no runtime class {runtime}.",
        "Change runtimeClassName in spec.stages.{stage}.podTemplate; kubectl get runtimeclasses "
        "lists them",
    ),
    KnownError(
        r"no PriorityClass with name (?P<priority>\S+)",
        "There is no priority class {priority}.",
        "Correct spec.scheduling.priorityClassName; kubectl get priorityclasses lists them",
    ),
    KnownError(
        r"not this resource's",
        "An object of the required name belongs to someone else.",
        "Delete it, or give this resource another name",
    ),
    # -------------------------------------------------- queues
    KnownError(
        r"LocalQueue[^\n]*(?:doesn't exist|not found|missing)",
        "The Kueue queue in spec.scheduling.queueName does not exist in this namespace.",
        "kubectl get localqueues -n {namespace} lists them; `v2w suspend {name}`, correct "
        "spec.scheduling.queueName, and `v2w resume {name}`",
    ),
    KnownError(
        r"Queue (?:\S+ )?is (?:inactive|stopped)|"
        r"ClusterQueue \S+ (?:doesn't exist|not found|is terminating or missing)",
        "The Kueue queue is stopped or incomplete, and admits nothing.",
        "Ask an administrator to resume or create it (`kubectl describe clusterqueue` shows "
        "spec.stopPolicy and what is missing), or name another queue in spec.scheduling.queueName",
    ),
    KnownError(
        r"for (?P<lacking>\S+) in flavor [^,\s]+, request > maximum capacity "
        r"\((?P<asked>\S+) > (?P<room>[^)\s]+)\)",
        "Stage {stage} requests {asked} of {lacking}, but its queue can never give more than "
        "{room}.",
        "Ask for more quota or name another queue in spec.scheduling.queueName; or use fewer nodes "
        "or GPUs, in another resource",
    ),
    KnownError(
        r"resource (?P<lacking>\S+) unavailable in ClusterQueue",
        "The Kueue queue has no quota for {lacking}, which stage {stage} requests.",
        "Ask an administrator to add {lacking} to its ClusterQueue, or name another queue in "
        "spec.scheduling.queueName",
    ),
    KnownError(
        r"Workload is deactivated",
        "Kueue does not consider stage {stage} any more: its Workload was deactivated.",
        "Find out why (kubectl describe workloads -n {namespace}), then set the Workload's "
        "spec.active to true, or `v2w suspend {name}` and `v2w resume {name}`",
    ),
    KnownError(
        r"(?:couldn't assign flavors|insufficient (?:unused )?quota)",
        "The stage waits in its queue: the queue's quota is in use.",
        "Wait, or request less; kubectl get workloads -n {namespace} shows what is ahead of it",
    ),
    KnownError(
        r"queue resource quota insufficient",
        "The training pods wait in their Volcano queue: too little of its capability is free.",
        "Wait, or raise it; kubectl get podgroups.scheduling.volcano.sh -A -o wide shows the queue "
        "and what runs in it",
    ),
    KnownError(
        r"resource in cluster is overused",
        "The training pods start together or not at all, and Volcano finds no room for all.",
        "{gpu_remedy}",
    ),
    # -------------------------------------------------- the nodes are full or do not fit
    KnownError(
        r"non-empty scheduling gates",
        "Pod {pod} has scheduling gates, which prevent it from being scheduled.",
        "The controller that set them has to remove them: `kubectl get pod {pod} -n {namespace} "
        "-o yaml` names them (spec.schedulingGates)",
    ),
    KnownError(
        r"minCount \((?P<wanted>\d+)\) cannot be satisfied: (?P<room>\d+) scheduled",
        "The {wanted} training pods start together or not at all, and only {room} of them fit.",
        "{gpu_remedy}",
    ),
    KnownError(
        r"""resource claim template "(?P<template>[^"]+)": [^\n]*not found""",
        "There is no ResourceClaimTemplate {template} in namespace {namespace}.",
        "Create it, and the pod starts by itself; or correct resourceClaims in spec.training or "
        "spec.stages.{stage}",
    ),
    KnownError(
        r"device class (?P<device>\S+) does not exist",
        "There is no DeviceClass {device}, which the claims of stage {stage} ask for.",
        "Install the DRA driver that provides it, and the pod starts by itself; or correct the "
        "ResourceClaimTemplate (kubectl get deviceclasses lists them), " + AGAIN,
    ),
    KnownError(
        r"cannot allocate all claims",
        BUSY_DEVICES.what,
        BUSY_DEVICES.remedy,
    ),
    KnownError(
        r"[Ii]nsufficient nvidia\.com/gpu|Insufficient GPUs",
        "{gpu_trouble}",
        "{gpu_remedy}",
    ),
    KnownError(
        r"[Ii]nsufficient (?P<lacking>[a-z][\w./-]*\w)",
        "No node has enough free {lacking} for stage {stage}.",
        "Lower spec.stages.{stage}.resources.requests, or wait for a node or add one",
    ),
    KnownError(
        r"untolerated taint\(?s?\)? ?\{(?P<taint>[^}]*)\}",
        "The nodes with enough room have a taint ({taint}) that the pod does not tolerate.",
        "Add a toleration to spec.stages.{stage}.tolerations, if you may use those nodes",
    ),
    KnownError(
        r"volume node affinity conflict",
        "The volume is bound to another node or zone than the nodes with enough room.",
        "Use a claim that every node can mount (ReadWriteMany), or select nodes of its zone with "
        "spec.stages.{stage}.nodeSelector",
    ),
    KnownError(
        r"didn't match Pod's node affinity[^\n]*\(Kueue assigned flavor (?P<flavor>[^)]+)\)",
        "No node has the labels of flavor {flavor}, which Kueue assigned to stage {stage}, and "
        "those that spec.stages.{stage} requires.",
        "kubectl describe resourceflavor {flavor} lists its nodeLabels: label nodes, or ask an "
        "administrator to correct the flavor",
    ),
    KnownError(
        r"didn't match Pod's node affinity/selector",
        "No node has the labels that spec.stages.{stage} requires.",
        "Correct its nodeSelector or affinity; kubectl get nodes --show-labels lists the labels",
    ),
    KnownError(
        r"""storageclass[^"]* "(?P<storage>[^"]+)" not found""",
        "There is no storage class {storage}.",
        "Correct spec.storage.storageClassName (in a new resource: it cannot be changed later); "
        "kubectl get storageclasses lists them",
    ),
    KnownError(
        r"no persistent volumes available for this claim and no storage class is set",
        "Claim {claim} has no volume: the cluster has no default storage class.",
        "Name one in spec.storage.storageClassName, or an existing claim in "
        "spec.storage.claimName, or ask for a PersistentVolume",
    ),
    KnownError(
        r"unbound immediate PersistentVolumeClaims|persistentvolumeclaim \"[^\"]+\" not found",
        "Claim {claim} has no volume yet.",
        "`kubectl describe pvc {claim} -n {namespace}` shows why; check spec.storage "
        "(storageClassName, accessMode, size)",
    ),
    KnownError(
        r"node\(s\) were unschedulable",
        "The nodes that would fit are cordoned.",
        "Uncordon them (kubectl uncordon), or wait until their maintenance is over",
    ),
    KnownError(
        r"FailedMount|FailedAttachVolume|Unable to attach or mount",
        "The node cannot mount a volume of stage {stage}, such as that of claim {claim}.",
        "Release it if another node holds it (accessMode ReadWriteOnce: kubectl get "
        "volumeattachments), or check its storage driver: kubectl describe pvc {claim} "
        "-n {namespace}",
    ),
)

# Remedies for conditions whose message matches no known error.


def _match(text: str) -> tuple[KnownError, dict[str, str]] | None:
    """Return the first known error that matches ``text``, with the matches of its named groups."""
    for error in KNOWN_ERRORS if text else ():
        if match := re.search(error.pattern, text):
            return error, {k: v for k, v in match.groupdict().items() if v}
    return None


def remedy_facts(
    *, name: str, namespace: str, stage: str, claim: str, job: str, local: bool = False
) -> dict[str, str]:
    """Return the facts that every template may use; callers add what else they know.

    Without a pod, ``pod`` selects all pods of ``job``.
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


def explain_error(texts: Sequence[str], facts: Mapping[str, str]) -> Explanation | None:
    """Return the explanation of the first of ``texts`` that matches a known error."""
    for text in texts:
        if (found := _match(text)) is not None:
            error, words = found
            filled = {**facts, **words}
            return Explanation(text, error.what.format_map(filled), error.remedy.format_map(filled))
    return None
