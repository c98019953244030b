"""Count and expose the operator's metrics for Prometheus.

Events are counted where they are seen: changes of resources and pods at every event of their
watches, API requests and reconciliations by their own hooks. The current state is read from the
cache at every scrape. No label holds a name that users choose, which bounds the number of series.
"""

from __future__ import annotations

import time
from collections import Counter as Count
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from video2world_common.checkpoint_interval import FIRST_SAVE
from video2world_operator.api.constants import STAGES
from video2world_operator.api.status import Phase, StageStatus, Status
from video2world_operator.api.timestamps import parse_time
from video2world_operator.controller.resource import Key, Resource
from video2world_operator.kube.client import KNOWN_RESOURCES
from video2world_operator.kube.workqueue import WorkQueue
from video2world_operator.reconcile.eviction_cost import gpu_seconds_at
from video2world_operator.reconcile.failures import REASONS
from video2world_operator.reconcile.observed_state import Pod

__all__ = ["Metrics", "ResourceMetrics", "resource_in"]

OVERDUE = 2.0  # intervals: a checkpoint that is older is overdue
GRACE = 600.0  # seconds that saving a checkpoint may take
HOURS = 3600.0
_LONG = (1, 5, 15, 30, 60, 180, 600, 1800, HOURS, 3 * HOURS, 12 * HOURS, 24 * HOURS, 168 * HOURS)
_SHORT = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


@dataclass
class _Seen:
    """A resource as of its last event."""

    states: dict[str, str]
    restarts: int
    phase: str
    # stage, number and start of the attempt whose pods are not all running yet
    starting: tuple[str, int, float] | None = field(default=None)


class Metrics:
    """The metrics of one process; :meth:`attach` adds those of the current state."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._stages = Histogram(
            "video2world_stage_duration_seconds",
            "Duration of a stage in seconds, including its restarts.",
            ("stage", "outcome"),
            registry=registry,
            buckets=_LONG,
        )
        self._starts = Histogram(
            "video2world_time_to_running_seconds",
            "Seconds from the start of an attempt until all its pods run.",
            ("stage",),
            registry=registry,
            buckets=_LONG,
        )
        self._restarts = Counter(
            "video2world_restarts",
            "Restarts of a stage, by the cause that ended the previous attempt.",
            ("reason",),
            registry=registry,
        )
        self._finished = Counter(
            "video2world_finished",
            "Resources that have succeeded or failed.",
            ("outcome",),
            registry=registry,
        )
        self._reconciled = Histogram(
            "video2world_reconcile_duration_seconds",
            "Duration of a reconciliation in seconds.",
            ("result",),
            registry=registry,
            buckets=_SHORT,
        )
        self._requests = Counter(
            "video2world_api_requests",
            "Requests to the API server by HTTP status; code 0: no answer.",
            ("method", "resource", "code"),
            registry=registry,
        )
        self._answers = Histogram(
            "video2world_api_request_duration_seconds",
            "Duration of a request to the API server in seconds.",
            ("method",),
            registry=registry,
            buckets=_SHORT,
        )
        self.counted = (
            self._stages,
            self._starts,
            self._restarts,
            self._finished,
            self._reconciled,
            self._requests,
            self._answers,
        )
        self._known: dict[Key, _Seen] = {}
        for reason in REASONS:  # so that rate() sees the first restart
            self._restarts.labels(reason)
        for outcome in (Phase.SUCCEEDED, Phase.FAILED):
            self._finished.labels(str(outcome))

    def attach(self, resources: ResourceMetrics) -> None:
        """Expose the state of ``resources`` at every scrape."""
        self.registry.register(resources)

    def expose(self, accept: str) -> tuple[bytes, str]:
        """Return all metrics and their content type, in the format that ``accept`` prefers."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type

    def count_request(self, method: str, path: str, code: int, seconds: float) -> None:
        """Count a request to the API server; ``code`` is 0 if there was no answer."""
        self._requests.labels(method, resource_in(path), str(code)).inc()
        self._answers.labels(method).observe(seconds)

    def count_reconciliation(self, seconds: float, ok: bool) -> None:
        """Count a reconciliation."""
        self._reconciled.labels("ok" if ok else "error").observe(seconds)

    def observe_resource(self, key: Key, resource: Resource | None, pods: Iterable[Pod]) -> None:
        """Count what has changed about the resource ``key``, or its pods; None: it was deleted.

        The status that a resource has when it is first seen is not counted: it was written before
        this process started.
        """
        if resource is None:
            self._known.pop(key, None)
            return
        status = resource.status
        now = _Seen({e.name: e.state for e in status.stages}, status.restarts, status.phase)
        before = self._known.get(key) or (now if status.stages else _Seen({}, 0, ""))
        for entry in status.stages:
            if before.states.get(entry.name) != entry.state:
                self._count_end(entry)
        if now.restarts > before.restarts:
            cause = _cause_of_restart(status.stages)
            self._restarts.labels(cause).inc(now.restarts - before.restarts)
        if now.phase != before.phase and now.phase in (Phase.SUCCEEDED, Phase.FAILED):
            self._finished.labels(str(now.phase)).inc()
        now.starting = self._starting(status, before, pods)
        self._known[key] = now

    def _count_end(self, entry: StageStatus) -> None:
        started, ended = parse_time(entry.start_time), parse_time(entry.completion_time)
        if entry.state in ("Succeeded", "Skipped", "Failed") and started and ended:
            seconds = max(0.0, (ended - started).total_seconds())
            self._stages.labels(entry.name, entry.state).observe(seconds)

    def _starting(
        self, status: Status, before: _Seen, pods: Iterable[Pod]
    ) -> tuple[str, int, float] | None:
        """Return the attempt whose pods are still awaited; count it once all of them run."""
        entry = status.stage_status(status.stage)
        if entry is None or entry.state != "Running":
            return None
        name, attempt, awaited = entry.name, entry.attempt, before.starting
        if awaited is None or awaited[:2] != (name, attempt):
            if before.states.get(name) == "Running":
                return None  # counted, or started before this process
            awaited = (name, attempt, time.monotonic())
        there = sum((p.stage, p.attempt) == (name, attempt) and (p.ready or p.over) for p in pods)
        if there < max(entry.desired, 1):
            return awaited
        self._starts.labels(name).observe(time.monotonic() - awaited[2])
        return None


class ResourceMetrics(Collector):
    """The state of all resources, of the queue and of the cache, read at every scrape."""

    def __init__(
        self,
        resources: Callable[[], Sequence[Resource]],
        queue: WorkQueue[Key],
        cache_age: Callable[[], float],
    ) -> None:
        self._resources, self._queue, self._age = resources, queue, cache_age

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the metrics; see prometheus_client."""
        now = datetime.now(UTC)
        resources = [one for one in self._resources() if not one.dispatched]
        statuses = [resource.status for resource in resources]
        phases = Count(str(status.phase) for status in statuses)
        yield _family("resources", "Resources by phase.", "phase", {p: phases[p] for p in Phase})
        stages = Count(s.stage for s in statuses if s.phase == Phase.RUNNING)
        running = {name: stages[name] for name in STAGES}
        yield _family("stages_at_work", "Running resources by stage.", "stage", running)
        spent = [s.gpu_seconds for s in statuses if s.gpu_seconds is not None]
        uses = {
            "useful": sum(s.useful for s in spent),
            "lost": sum(s.lost for s in spent),
            "idle": sum(s.idle for s in spent),
        }
        text = "GPU seconds of training, by use, summed over the existing resources."
        yield _family("gpu_seconds", text, "use", uses)
        text = "GPU seconds since the latest checkpoints of running trainings, summed over them."
        at_risk = sum(gpu_seconds_at(s.eviction_cost, now) for s in statuses if s.eviction_cost)
        yield _one("gpu_seconds_at_risk", text, at_risk)
        verdicts = Count(s.evaluation.verdict for s in statuses if s.evaluation is not None)
        text = "Resources by the verdict of their evaluation."
        shown = {verdict: verdicts[verdict] for verdict in ("Better", "Worse", "Unclear")}
        yield _family("evaluations", text, "verdict", shown)
        measured = [s.evaluation.actions for s in statuses if s.evaluation is not None]
        answers = Count(str(one.followed).lower() for one in measured if one is not None)
        text = "Evaluated resources by whether their model follows its actions."
        shown = {answer: answers[answer] for answer in ("true", "false")}
        yield _family("actions_followed", text, "followed", shown)
        ages = [pair for r in resources if (pair := _checkpoint_age(r, now)) is not None]
        text = "Age of the oldest of the latest checkpoints of running trainings, in seconds."
        yield _one("checkpoint_age_seconds_max", text, max([0.0, *(age for age, _ in ages)]))
        text = "Running trainings whose latest checkpoint is older than two intervals."
        yield _one("checkpoints_overdue", text, sum(late for _, late in ages))
        yield _one("queue_depth", "Resources waiting to be reconciled.", self._queue.depth)
        text = "How long the most overdue resource has waited to be reconciled, in seconds."
        yield _one("queue_lag_seconds", text, self._queue.lag)
        text = "How long the cache has been behind the API server, in seconds."
        yield _one("cache_age_seconds", text, self._age())


def _one(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"video2world_{name}", text, value=value)


def _family(name: str, text: str, label: str, values: Mapping[Any, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"video2world_{name}", text, labels=[label])
    for value, number in values.items():
        family.add_metric([str(value)], number)
    return family


def _cause_of_restart(stages: Iterable[StageStatus]) -> str:
    """Return what ended the previous attempt: the first word of the stage's message."""
    message = next((e.message for e in stages if e.state == "Restarting"), "")
    word = message.partition(":")[0]
    return word if word in REASONS else "Other"


def _checkpoint_age(resource: Resource, now: datetime) -> tuple[float, bool] | None:
    """Return the age of a running training's latest checkpoint in seconds, and if it is overdue.

    Without a checkpoint the age is that of the attempt.
    """
    status = resource.status
    if (status.phase, status.stage) != (Phase.RUNNING, "train"):
        return None
    saved = status.checkpoint.time if status.checkpoint else None
    started = status.attempts[-1].start_time if status.attempts else None
    known = [moment for text in (saved, started) if (moment := parse_time(text))]
    if not known:
        return None
    age = max(0.0, (now - max(known)).total_seconds())
    training = (resource.body.get("spec") or {}).get("training") or {}
    every = (training.get("checkpoint") or {}).get("everyIterations", 500)
    pace = (status.progress.seconds_per_iteration if status.progress else None) or 0.0
    if every == "Auto":
        every = (status.progress.checkpoint_interval if status.progress else None) or FIRST_SAVE
    return age, bool(pace) and age > OVERDUE * every * pace + GRACE


def resource_in(path: str) -> str:
    """Return the kind of object that a URL path is about, out of a fixed set."""
    parts = path.strip("/").split("/")
    if "namespaces" in parts[:5]:
        parts = parts[parts.index("namespaces") + 2 :]
    found = [part for part in parts if part in KNOWN_RESOURCES]
    sub = [part for part in parts[-1:] if part in ("status", "log")]
    return "/".join([*found[:1], *(sub if found else [])]) or "other"
