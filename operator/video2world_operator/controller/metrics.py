"""The operator's figures for Prometheus.

What happens is counted where it is seen: resources and pods at every event of their watches, API
requests and reconciliations by their own hooks. What is, is read from the cache when Prometheus
asks. No label holds a name that users choose, so that the number of series has a bound.
"""

from __future__ import annotations

import time
from collections import Counter as Count
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from video2world_operator.api.constants import STAGES
from video2world_operator.api.status import Phase
from video2world_operator.api.timestamps import parse_time
from video2world_operator.controller.keys import Cache, Key
from video2world_operator.kube.client import KNOWN_RESOURCES
from video2world_operator.kube.workqueue import WorkQueue
from video2world_operator.reconcile.failures import REASONS
from video2world_operator.reconcile.observed_state import Pod

__all__ = ["Metrics", "Present", "resource_in"]

Object = Mapping[str, Any]
OVERDUE = 2.0  # a checkpoint is overdue when its age is so many times what it should be
HOURS = 3600.0
_LONG = (1, 5, 15, 30, 60, 180, 600, 1800, HOURS, 3 * HOURS, 12 * HOURS, 24 * HOURS, 168 * HOURS)
_SHORT = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


@dataclass
class _Seen:
    """What was known of a resource at its last event."""

    states: dict[str, str]
    restarts: int
    phase: str
    # of the attempt whose pods are not all there yet: stage, number, and since when
    starting: tuple[str, int, float] | None = field(default=None)


class Metrics:
    """All figures of one process. ``attach`` names what is asked when Prometheus asks."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._stages = Histogram(
            "video2world_stage_duration_seconds",
            "From the start of a stage to its end, restarts included.",
            ("stage", "outcome"),
            registry=registry,
            buckets=_LONG,
        )
        self._starts = Histogram(
            "video2world_time_to_running_seconds",
            "From the decision on an attempt until all its pods run.",
            ("stage",),
            registry=registry,
            buckets=_LONG,
        )
        self._restarts = Counter(
            "video2world_restarts",
            "Restarts of a stage, by what ended the attempt before.",
            ("reason",),
            registry=registry,
        )
        self._finished = Counter(
            "video2world_finished",
            "Resources that came to their end.",
            ("outcome",),
            registry=registry,
        )
        self._reconciled = Histogram(
            "video2world_reconcile_duration_seconds",
            "One reconciliation.",
            ("result",),
            registry=registry,
            buckets=_SHORT,
        )
        self._requests = Counter(
            "video2world_api_requests",
            "Requests to the API server; code 0: it did not answer.",
            ("method", "resource", "code"),
            registry=registry,
        )
        self._answers = Histogram(
            "video2world_api_request_duration_seconds",
            "From request to answer.",
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
        for reason in REASONS:  # so that a first restart is seen as an increase
            self._restarts.labels(reason)
        for outcome in (Phase.SUCCEEDED, Phase.FAILED):
            self._finished.labels(str(outcome))

    def attach(self, present: Present) -> None:
        """Let ``present`` tell what is, whenever Prometheus asks."""
        self.registry.register(present)

    def expose(self, accept: str) -> tuple[bytes, str]:
        """All figures and their content type, in the format that ``accept`` prefers."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type

    # ------------------------------------------------------------------ what happens

    def request(self, method: str, path: str, code: int, seconds: float) -> None:
        """A request to the API server was answered, or not (``code`` 0)."""
        self._requests.labels(method, resource_in(path), str(code)).inc()
        self._answers.labels(method).observe(seconds)

    def reconciled(self, seconds: float, ok: bool) -> None:
        """A resource was reconciled once."""
        self._reconciled.labels("ok" if ok else "error").observe(seconds)

    def look(self, key: Key, body: Object | None, pods: Iterable[Pod]) -> None:
        """The resource ``key``, or a pod of it, has changed; ``body`` None: it is gone.

        What a resource brings along when it is first seen with a status is not counted: it
        happened before this process.
        """
        if body is None:
            self._known.pop(key, None)
            return
        status = body.get("status") or {}
        stages = status.get("stages") or []
        now = _Seen(
            {e["name"]: e["state"] for e in stages},
            status.get("restarts", 0),
            status.get("phase", ""),
        )
        before = self._known.get(key) or (now if stages else _Seen({}, 0, ""))
        for entry in stages:
            if before.states.get(entry["name"]) != entry["state"]:
                self._ended(entry)
        if now.restarts > before.restarts:
            self._restarts.labels(_reason(stages)).inc(now.restarts - before.restarts)
        if now.phase != before.phase and now.phase in (Phase.SUCCEEDED, Phase.FAILED):
            self._finished.labels(now.phase).inc()
        now.starting = self._starting(status, before, pods)
        self._known[key] = now

    def _ended(self, entry: Object) -> None:
        began, ended = parse_time(entry.get("startTime")), parse_time(entry.get("completionTime"))
        if entry["state"] in ("Succeeded", "Skipped", "Failed") and began and ended:
            seconds = max(0.0, (ended - began).total_seconds())
            self._stages.labels(entry["name"], entry["state"]).observe(seconds)

    def _starting(
        self, status: Object, before: _Seen, pods: Iterable[Pod]
    ) -> tuple[str, int, float] | None:
        """The attempt whose pods are still awaited, after those that are there were counted."""
        name = status.get("stage", "")
        entry = next((e for e in status.get("stages") or [] if e["name"] == name), None)
        if entry is None or entry["state"] != "Running":
            return None
        attempt = entry.get("attempt", 0)
        awaited = before.starting
        if awaited is None or awaited[:2] != (name, attempt):
            if before.states.get(name) == "Running":
                return None  # counted, or begun before this process
            awaited = (name, attempt, time.monotonic())
        there = sum((p.stage, p.attempt) == (name, attempt) and (p.ready or p.over) for p in pods)
        if there < max(entry.get("desired", 1), 1):
            return awaited
        self._starts.labels(name).observe(time.monotonic() - awaited[2])
        return None


class Present(Collector):
    """What is: read from cache, queue and health when Prometheus asks."""

    def __init__(
        self,
        cache: Cache,
        queue: WorkQueue[Key],
        keys: Callable[[], Iterable[Key]],
        cache_age: Callable[[], float],
    ) -> None:
        self._cache, self._queue, self._keys, self._age = cache, queue, keys, cache_age

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """See prometheus_client."""
        now = datetime.now(UTC)
        bodies = [b for key in self._keys() if (b := self._cache.resource(key)) is not None]
        statuses = [body.get("status") or {} for body in bodies]
        phases = Count(status.get("phase") or str(Phase.PENDING) for status in statuses)
        yield _family("resources", "Resources by phase.", "phase", {p: phases[p] for p in Phase})
        stages = Count(s.get("stage") for s in statuses if s.get("phase") == Phase.RUNNING)
        at_work = {name: stages[name] for name in STAGES}
        yield _family("stages_at_work", "Running resources by stage.", "stage", at_work)
        uses = ("useful", "lost", "idle")
        spent = {u: sum((s.get("gpuSeconds") or {}).get(u, 0) for s in statuses) for u in uses}
        text = "GPU seconds of training, by use, over all resources that are there."
        yield _family("gpu_seconds", text, "use", spent)
        ages = [pair for body in bodies if (pair := _checkpoint_age(body, now)) is not None]
        text = "Age of the oldest newest checkpoint of all trainings at work."
        yield _one("checkpoint_age_seconds_max", text, max([0.0, *(age for age, _ in ages)]))
        text = "Trainings at work whose newest checkpoint is older than two intervals."
        yield _one("checkpoints_overdue", text, sum(late for _, late in ages))
        yield _one("queue_depth", "Resources that wait to be reconciled.", self._queue.depth)
        text = "For how long the most overdue resource has waited to be reconciled."
        yield _one("queue_lag_seconds", text, self._queue.lag)
        text = "For how long the cache has been behind the API server."
        yield _one("cache_age_seconds", text, self._age())


def _one(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"video2world_{name}", text, value=value)


def _family(name: str, text: str, label: str, values: Mapping[Any, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"video2world_{name}", text, labels=[label])
    for value, number in values.items():
        family.add_metric([str(value)], number)
    return family


def _reason(stages: Iterable[Object]) -> str:
    """What ended the attempt before: the word that the stage's message begins with."""
    said = next((e.get("message", "") for e in stages if e["state"] == "Restarting"), "")
    word = str(said).partition(":")[0]
    return word if word in REASONS else "Other"


def _checkpoint_age(body: Object, now: datetime) -> tuple[float, bool] | None:
    """Seconds since the newest checkpoint (or the start) of a training at work; if overdue."""
    status = body.get("status") or {}
    if (status.get("phase"), status.get("stage")) != (Phase.RUNNING, "train"):
        return None
    attempts = status.get("attempts") or [{}]
    times = (
        parse_time((status.get("checkpoint") or {}).get("time")),
        parse_time(attempts[-1].get("startTime")),
    )
    known = [moment for moment in times if moment]
    if not known:
        return None
    age = max(0.0, (now - max(known)).total_seconds())
    training = (body.get("spec") or {}).get("training") or {}
    every = (training.get("checkpoint") or {}).get("everyIterations", 500)
    pace = (status.get("progress") or {}).get("secondsPerIteration")
    return age, bool(pace) and age > OVERDUE * every * pace + 600


def resource_in(path: str) -> str:
    """The kind of object that a URL path is about, of a fixed set."""
    parts = path.strip("/").split("/")
    if "namespaces" in parts[:5]:
        parts = parts[parts.index("namespaces") + 2 :]
    found = [part for part in parts if part in KNOWN_RESOURCES]
    sub = [part for part in parts[-1:] if part in ("status", "log")]
    return "/".join([*found[:1], *(sub if found else [])]) or "other"
