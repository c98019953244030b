"""Plan a resource: its stages in order, and their Kubernetes manifests. Pure functions only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from video2world_operator.api.resource import Video2WorldPostTrain
from video2world_operator.plan.commands import CADENCE, SPEED, Command, commands, samples, sampling
from video2world_operator.plan.labels import STAGE_LABEL
from video2world_operator.plan.manifests import claim_manifests, group_manifests, stage_manifests
from video2world_operator.plan.merge_patch import merge, merge_named
from video2world_operator.plan.stage import (
    SAMPLING,
    Manifest,
    Stage,
    container_of,
    digest,
    run_hash,
)

__all__ = ["Plan", "make_plan", "to_yaml", "with_env"]

_NEEDS: Mapping[str, tuple[str, ...]] = {
    "download": (),
    "dataset": (),
    # Not download: their own command lines name what they use of it, so that another model size
    # alone does not encode everything again.
    "captions": ("dataset",),
    "embeddings": ("dataset", "captions"),
    "latents": ("dataset",),
    "train": ("embeddings", "latents"),
    "inference": ("train",),
    "evaluation": ("train",),
}


@dataclass(frozen=True)
class Plan:
    """Everything to create for a resource; ``shared`` (the PVC) is applied before any stage."""

    name: str
    namespace: str
    resource: Video2WorldPostTrain
    shared: tuple[Manifest, ...]
    stages: tuple[Stage, ...]

    def stage(self, name: str) -> Stage:
        """Return the stage of that name; raise KeyError if the plan has none."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise KeyError(name)

    def manifests(self, name: str, attempt: int, nodes: int | None = None) -> tuple[Manifest, ...]:
        """Build the manifests of an attempt (1, 2, ...): a Job, for training also a Service.

        ``nodes`` is the size of an elastic training group, by default that of the spec.
        """
        stage, asked = self.stage(name), self.resource.spec.nodes
        if name != "train" or nodes in (None, asked):
            return stage.make(attempt)
        later = list(self.stages[self.stages.index(stage) + 1 :])
        return group_manifests(self.resource, self.namespace, stage, later, attempt, nodes)

    def sampling(self, iteration: int) -> tuple[Manifest, ...]:
        """Build the Job that generates the samples of one checkpoint during training."""
        command = sampling(self.resource, iteration)
        argv = [a for a in command.argv if not a.startswith(SPEED)]
        run = run_hash(self.stage("train").argv, [self.resource.dataset_dir])
        inputs = {"argv": argv, "run": run, "samples": samples(self.resource)}
        stage = Stage(
            SAMPLING,
            digest(inputs),
            command.outputs,
            tuple(command.argv),
            lambda attempt: stage_manifests(self.resource, self.namespace, stage, [], attempt),
        )
        return stage.make(iteration)


def make_plan(resource: Video2WorldPostTrain, namespace: str = "default") -> Plan:
    """Plan a resource; its own ``metadata.namespace`` overrides ``namespace``.

    Raises:
        InvalidResource: a podTemplate cannot be merged into a pod.
    """
    namespace = resource.metadata.namespace or namespace
    hashes: dict[str, str] = {}
    stages: list[Stage] = []

    def manifests(number: int, attempt: int) -> tuple[Manifest, ...]:
        later = stages[number + 1 :]
        return stage_manifests(resource, namespace, stages[number], later, attempt)

    for number, (name, command) in enumerate(commands(resource).items()):
        hashes[name] = _inputs_hash(resource, name, command, hashes)
        argv, make = tuple(command.argv), partial(manifests, number)
        stages.append(Stage(name, hashes[name], command.outputs, argv, make))
    for stage in stages:
        if getattr(resource.spec.stages, stage.kind).pod_template:
            stage.make(1)  # refused now, not when the stage starts
    return Plan(
        resource.name, namespace, resource, claim_manifests(resource, namespace), tuple(stages)
    )


def to_yaml(plan: Plan) -> str:
    """Write all manifests as one multi-document YAML text, deterministically."""
    import yaml  # here, which keeps importing the plan fast

    class Dumper(yaml.SafeDumper):
        """Write a repeated list in full, not as an alias."""

        def ignore_aliases(self, data: Any) -> bool:
            return True

    def text(dumper: Dumper, value: str) -> yaml.ScalarNode:
        # Unicode line separators have to be escaped: they would be lost, or end the value.
        style = None if value.isprintable() else '"'
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Dumper.add_representer(str, text)
    documents = [*plan.shared, *(m for stage in plan.stages for m in stage.manifests)]
    return yaml.dump_all(
        documents,
        Dumper=Dumper,
        sort_keys=False,
        explicit_start=True,
        width=100,
        allow_unicode=True,
    )


def _inputs_hash(
    resource: Video2WorldPostTrain, stage: str, command: Command, hashes: Mapping[str, str]
) -> str:
    inputs: dict[str, Any] = {
        "argv": [a for a in command.argv if not a.startswith((*CADENCE, *SPEED))],
        "needs": [hashes[need] for need in _NEEDS[stage] if need in hashes],
    }
    if stage == "train":
        inputs["world"] = [resource.spec.nodes, resource.spec.processes_per_node]
    if stage == "inference":
        inputs["samples"] = samples(resource)
    return digest(inputs)


def with_env(manifests: Sequence[Manifest], **env: str) -> tuple[Manifest, ...]:
    """Return ``manifests`` with more environment variables for the worker of the Job."""
    more = [{"name": name, "value": value} for name, value in env.items()]

    def changed(manifest: Manifest) -> Manifest:
        if manifest["kind"] != "Job":
            return manifest
        worker = container_of(manifest["metadata"]["labels"][STAGE_LABEL])
        containers = [
            one | {"env": merge_named(one.get("env") or [], more, "name")}
            if one.get("name") == worker
            else one
            for one in manifest["spec"]["template"]["spec"].get("containers") or []
        ]
        made: Manifest = merge(
            manifest, {"spec": {"template": {"spec": {"containers": containers}}}}
        )
        return made

    return tuple(map(changed, manifests))
