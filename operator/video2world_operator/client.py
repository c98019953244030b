"""Apply and watch resources from scripts and notebooks: ``Video2World(...).apply().watch()``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from video2world_operator.api.constants import API_VERSION, KIND
from video2world_operator.api.dataset_spec import DatasetSpec
from video2world_operator.api.inference_spec import InferenceSpec
from video2world_operator.api.model_spec import ModelSpec
from video2world_operator.api.pods import StorageSpec
from video2world_operator.api.resource import Video2WorldPostTrain
from video2world_operator.api.status import Status
from video2world_operator.api.training_spec import TrainingSpec
from video2world_operator.api.validation import load_manifest, load_resource, parse
from video2world_operator.cli import cluster_run
from video2world_operator.cli.explain import Cause, explain
from video2world_operator.cli.snapshot import Snapshot
from video2world_operator.cli.status_tree import tree
from video2world_operator.plan.plan import make_plan
from video2world_operator.preflight.check import Check
from video2world_operator.preflight.cluster_checks import check_cluster
from video2world_operator.preflight.node_fit import training_gpus
from video2world_operator.preflight.requirements import estimate
from video2world_operator.preflight.time_estimate import TimeEstimate, estimate_time
from video2world_operator.terminal import Screen

__all__ = ["Video2World"]

POLL_SECONDS = 2.0
Part = Mapping[str, Any]


class Video2World:
    """A Video2WorldPostTrain in the cluster of the kubeconfig (or of the pod this runs in).

    Parts of the spec are models (``ModelSpec(size="2B")``) or mappings with the names of the YAML
    (``{"size": "2B"}``); ``more`` are the other parts (``stages``, ``credentials``, ...).

    Its methods raise :class:`.cli.cluster_run.RequestFailed`, whose message names the remedy, if
    the cluster cannot be reached or refuses.

    Raises:
        InvalidResource: the spec is not valid; its lines name field and remedy.
    """

    def __init__(
        self,
        name: str,
        *,
        model: ModelSpec | Part,
        dataset: DatasetSpec | Part,
        training: TrainingSpec | Part,
        inference: InferenceSpec | Part | None = None,
        storage: StorageSpec | Part | None = None,
        namespace: str | None = None,
        **more: Any,
    ) -> None:
        parts = {"model": model, "dataset": dataset, "training": training}
        parts |= {"inference": inference, "storage": storage} | more
        spec = {key: _plain(part) for key, part in parts.items() if part is not None}
        manifest = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": name}}
        self._set(manifest | {"spec": spec}, namespace)

    def _set(self, manifest: Mapping[str, Any], namespace: str | None) -> None:
        self.manifest = dict(manifest)
        self.resource: Video2WorldPostTrain = parse(manifest)
        self.name = self.resource.name
        self.namespace = namespace or self.resource.metadata.namespace

    @classmethod
    def from_file(cls, path: str | Path, *, namespace: str | None = None) -> Self:
        """Load the resource of a YAML file.

        Raises:
            InvalidResource: the file is not valid; its lines name field and remedy.
        """
        run = cls.__new__(cls)
        load_resource(Path(path))  # its errors name the lines of the file
        run._set(load_manifest(Path(path)), namespace)
        return run

    def __repr__(self) -> str:
        return f"Video2World({self.name!r}, size={self.resource.spec.model.size!r})"

    def preflight(self) -> list[Check]:
        """Check that the cluster has what the resource needs, before any GPU is allocated."""
        plan = make_plan(self.resource)
        facts = cluster_run.preflight(plan, self.manifest, self.namespace)
        return list(check_cluster(plan, estimate(self.resource), facts))

    def estimate_time(self) -> TimeEstimate | None:
        """Estimate how long it trains and generates samples, on the GPUs of the cluster's nodes.

        Returns None if nothing similar was measured.
        """
        plan = make_plan(self.resource)
        facts = cluster_run.preflight(plan, self.manifest, self.namespace)
        return estimate_time(self.resource, training_gpus(plan, facts))

    def apply(self) -> Self:
        """Create the resource, or change it to this spec."""
        cluster_run.apply(self.manifest, self.namespace)
        return self

    @property
    def status(self) -> Status:
        """The current status; its phase is Pending until an operator has accepted the resource."""
        return cluster_run.status(self.name, self.namespace)

    def watch(self, show: Callable[[list[str]], None] | None = None) -> Status:
        """Show the tree of ``v2w status`` until the resource has ended; return its last status.

        ``show`` is called with the tree's lines; by default they are printed, in place on a
        terminal and in a notebook.
        """
        seen: list[Snapshot] = []
        draw = show or _printer()

        def show_if_changed(now: Snapshot) -> None:
            changed = not seen or (seen[0].status, seen[0].note) != (now.status, now.note)
            seen[:] = [now]
            if changed:
                draw(tree(now, datetime.now(UTC)))

        cluster_run.watch(self.name, self.namespace, show_if_changed, POLL_SECONDS)
        return seen[0].status

    def explain(self) -> list[Cause]:
        """Return why it is stuck and how to fix it; empty if there are no problems."""
        return explain(*cluster_run.observe(self.name, self.namespace), datetime.now(UTC))

    def logs(self, stage: str | None = None, *, rank: int = 0, follow: bool = False) -> None:
        """Print the log of a worker, by default of the running stage."""
        cluster_run.logs(
            self.name,
            self.namespace,
            stage=stage,
            rank=rank,
            attempt=None,
            follow=follow,
            out=sys.stdout,
        )

    def suspend(self) -> Self:
        """Save a checkpoint, then release the GPUs."""
        cluster_run.suspend(self.name, self.namespace, True)
        return self

    def resume(self) -> Self:
        """Resume a suspended resource."""
        cluster_run.suspend(self.name, self.namespace, False)
        return self

    def delete(self) -> bool:
        """Delete the resource but not its volume; return whether it existed."""
        return cluster_run.delete(self.name, self.namespace)


def _plain(part: Any) -> Any:
    if hasattr(part, "model_dump"):
        return part.model_dump(mode="json", by_alias=True, exclude_unset=True)
    return part


def _printer() -> Callable[[list[str]], None]:
    if "ipykernel" not in sys.modules:
        return Screen(sys.stdout).show
    display = importlib.import_module("IPython.display")

    def draw(lines: list[str]) -> None:
        display.clear_output(wait=True)
        print("\n".join(lines))

    return draw
