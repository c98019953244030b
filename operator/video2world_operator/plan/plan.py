"""From the resource to its ordered stages and their Kubernetes manifests: a pure function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from video2world_operator.api.resource import Video2WorldPostTrain
from video2world_operator.plan.commands import CADENCE, SPEED, Command, commands, samples, sampling
from video2world_operator.plan.labels import STAGE_LABEL
from video2world_operator.plan.manifests import _claim, _manifests, _merge, _merge_named
from video2world_operator.plan.stage import (
    SAMPLING,
    Manifest,
    Stage,
    _digest,
    _run_hash,
    container_of,
)

__all__ = ["Plan", "make_plan", "to_yaml", "with_env"]

_NEEDS: Mapping[str, tuple[str, ...]] = {
    "download": (),
    "dataset": (),
    # Not download: what they take from it stands in their own command lines, so that another
    # model size alone does not encode everything again.
    "embeddings": ("dataset",),
    "latents": ("dataset",),
    "train": ("embeddings", "latents"),
    "inference": ("train",),
}


@dataclass(frozen=True)
class Plan:
    """All that a resource asks for. ``shared`` (the claim) is applied before any stage."""

    name: str
    namespace: str
    resource: Video2WorldPostTrain
    shared: tuple[Manifest, ...]
    stages: tuple[Stage, ...]

    def stage(self, name: str) -> Stage:
        """The stage of that name; KeyError if the plan has none."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise KeyError(name)

    def manifests(self, name: str, attempt: int) -> tuple[Manifest, ...]:
        """What one attempt (1, 2, ...) at a stage applies: its Job; at training its Service too."""
        return self.stage(name).make(attempt)

    def sampling(self, iteration: int) -> tuple[Manifest, ...]:
        """The Job that makes the samples of one checkpoint while training goes on."""
        command = sampling(self.resource, iteration)
        argv = [a for a in command.argv if not a.startswith(SPEED)]
        run = _run_hash(self.stage("train").argv, [self.resource.dataset_dir])
        inputs = {"argv": argv, "run": run, "samples": samples(self.resource)}
        stage = Stage(
            SAMPLING,
            _digest(inputs),
            command.outputs,
            tuple(command.argv),
            lambda attempt: _manifests(self.resource, self.namespace, stage, [], attempt),
        )
        return stage.make(iteration)


def make_plan(resource: Video2WorldPostTrain, namespace: str = "default") -> Plan:
    """Plan a resource; its own ``metadata.namespace`` overrides ``namespace``.

    Raises InvalidResource for a podTemplate that cannot be laid over a pod.
    """
    namespace = resource.metadata.namespace or namespace
    hashes: dict[str, str] = {}
    stages: list[Stage] = []

    def manifests(number: int, attempt: int) -> tuple[Manifest, ...]:
        later = stages[number + 1 :]
        return _manifests(resource, namespace, stages[number], later, attempt)

    for number, (name, command) in enumerate(commands(resource).items()):
        hashes[name] = _inputs_hash(resource, name, command, hashes)
        argv, make = tuple(command.argv), partial(manifests, number)
        stages.append(Stage(name, hashes[name], command.outputs, argv, make))
    for stage in stages:
        if getattr(resource.spec.stages, stage.kind).pod_template:
            stage.make(1)  # it is refused now, not when the stage's turn comes
    return Plan(resource.name, namespace, resource, _claim(resource, namespace), tuple(stages))


def to_yaml(plan: Plan) -> str:
    """All manifests as one multi-document YAML text, the same for the same plan."""
    import yaml  # here, so that importing the plan stays quick

    class Dumper(yaml.SafeDumper):
        """Writes a list that occurs twice twice, not as an alias."""

        def ignore_aliases(self, data: Any) -> bool:
            return True

    def text(dumper: Dumper, value: str) -> yaml.ScalarNode:
        # Unicode's own line ends are lost, or end the value, where they are not escaped.
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
        "needs": [hashes[need] for need in _NEEDS[stage]],
    }
    if stage == "train":
        inputs["world"] = [resource.spec.nodes, resource.spec.processes_per_node]
    if stage == "inference":
        inputs["samples"] = samples(resource)
    return _digest(inputs)


def with_env(manifests: Sequence[Manifest], **env: str) -> tuple[Manifest, ...]:
    """``manifests`` of an attempt, whose Job's worker has these variables besides its own."""
    more = [{"name": name, "value": value} for name, value in env.items()]

    def changed(manifest: Manifest) -> Manifest:
        if manifest["kind"] != "Job":
            return manifest
        worker = container_of(manifest["metadata"]["labels"][STAGE_LABEL])
        containers = [
            one | {"env": _merge_named(one.get("env") or [], more, "name")}
            if one.get("name") == worker
            else one
            for one in manifest["spec"]["template"]["spec"].get("containers") or []
        ]
        made: Manifest = _merge(
            manifest, {"spec": {"template": {"spec": {"containers": containers}}}}
        )
        return made

    return tuple(map(changed, manifests))
