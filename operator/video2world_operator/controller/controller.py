"""Carries reconciliations out: gathers what is seen, writes the status, performs the actions."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial

from video2world_common.progress_events import Event, Skipped, parse
from video2world_operator.api.conditions import STATUS_REFUSED, Reason, Type, find, is_true
from video2world_operator.api.constants import API_VERSION, KIND
from video2world_operator.api.errors import InvalidResource
from video2world_operator.api.status import Status, dump_status, parse_status
from video2world_operator.api.timestamps import parse_time
from video2world_operator.controller.applier import (
    _VERSIONS,
    UNSEEN,
    Outcome,
    _covers,
    _idle_first,
    _left_behind,
    _path,
    _what,
)
from video2world_operator.controller.event_reader import Evidence
from video2world_operator.controller.keys import Cache, Key, Object, volume_of
from video2world_operator.controller.worker_logs import MAX_TOLD, _Log, _tells
from video2world_operator.kube.client import ApiClient, path_of
from video2world_operator.kube.errors import ApiError
from video2world_operator.kube.resync import ResyncPacer
from video2world_operator.kube.workqueue import WorkQueue
from video2world_operator.plan import gang
from video2world_operator.plan.commands import run_folder
from video2world_operator.plan.gang import Capabilities
from video2world_operator.plan.labels import ATTEMPT_LABEL, RESOURCE_LABEL, STAGE_LABEL
from video2world_operator.plan.plan import Plan
from video2world_operator.plan.stage import SAMPLING
from video2world_operator.preflight.crd_version import Definition, without
from video2world_operator.preflight.operator_preflight import NodePreflight
from video2world_operator.reconcile.actions import Action, Apply, Decision, Delete, Policy
from video2world_operator.reconcile.observed_state import Claim, Job, Observed, Peer, Pod
from video2world_operator.reconcile.reconciler import outdated, plan_of, reconcile
from video2world_operator.reconcile.stuck_pods import outlived

__all__ = ["Controller", "counts_on_absence", "waits_for_us"]

log = logging.getLogger(__name__)
CLAIM_SECONDS = 60.0  # for which a claim that was seen is taken to be as it was
RESYNCS_PER_SECOND = 10  # with more resources, each is resynced less often
_ALWAYS = (
    Type.ACCEPTED,
    Type.AUTHORIZED,
    Type.DEFINITION,
    Type.CONTENT,
    Type.PROGRESSING,
    Type.SUSPENDED,
    Type.SUCCEEDED,
    Type.FAILED,
)
REFUSED_PAUSES = 2.0, 300.0  # seconds, the first and the longest, between refused status writes


@dataclass(frozen=True)
class _Refused:
    """A status that the API server refused and would refuse again."""

    why: str
    pause: float  # seconds
    until: float  # by the monotonic clock


class Controller:
    """Reconciles every resource that :attr:`queue` names."""

    def __init__(
        self,
        cluster: ApiClient,
        cache: Cache,
        policy: Policy | None = None,
        *,
        poll_seconds: float = 10.0,
        workers: int = 16,
    ) -> None:
        self.cluster, self.cache, self.policy = cluster, cache, policy or Policy()
        self.poll_seconds = poll_seconds
        self.preflight = NodePreflight(cluster)
        self.definition = Definition(cluster)
        self.doubt = asyncio.Event()  # whether the definition is to be checked now
        self.evidence = Evidence(cluster)
        self.capabilities = Capabilities()
        self.queue: WorkQueue[Key] = WorkQueue(
            self.work,
            workers=workers,
            expected=(ApiError, OSError),
            tenant=lambda key: key[0],
            per_tenant=max(1, workers // 4),
            urgent=self._urgent,
        )
        self._written: dict[Key, tuple[str, Object]] = {}  # version written over, and the outcome
        self._accepted: set[Key] = set()  # a moment ago, and nothing was made for them yet
        self._soft_written: dict[Key, float] = {}
        self._refused: dict[Key, _Refused] = {}
        self._pacer: ResyncPacer[Key] = ResyncPacer(RESYNCS_PER_SECOND)
        self._problems: dict[Key, tuple[str, ...]] = {}
        self._claims: dict[Key, tuple[float, Claim]] = {}  # when it was seen, and how
        self._logs: dict[Key, dict[str, _Log]] = {}  # by resource and UID of the pod
        self._made: dict[Key, dict[str, float]] = {}  # what was applied of late, by its path
        self._told: dict[Key, list[Event]] = {}  # by workers, and not in a written status yet
        self._shares: dict[Key, tuple[tuple[str, int], Peer | None]] = {}  # by UID and generation

    # ------------------------------------------------------------------ one resource

    async def work(self, key: Key) -> None:
        """Reconcile the resource ``key`` once.

        Raises:
            ApiError, OSError: the API server refused or cannot be reached; worth another try.
        """
        just_accepted = key in self._accepted
        self._accepted.discard(key)
        body = self._body(key)
        if body is None:
            self._forget(key)
            await self._clear_away(key)
            return
        before = _status(body)
        if self.definition.blocks:
            held = outdated(body, self.definition.problem, self.cluster.clock.now())
            await self._tell(key, body, before, Decision(held))
            return
        await self._end_earlier(key, body)
        plan = self._plan_of(body)
        observed = await self._observe(key, body, plan)
        if isinstance(plan, Plan) and not _ended(body):
            found = await self.preflight.failures(key, plan, body, observed.claim)
            observed = replace(observed, preflight=found)
        decision = reconcile(body, plan, observed, self.cluster.clock.now(), self.policy)
        if counts_on_absence(before, decision, partial(self._just_made, key)) and not just_accepted:
            observed = await self._look_again(key, observed)
            decision = reconcile(body, plan, observed, self.cluster.clock.now(), self.policy)
        if decision.stuck:
            decision = await self._with_events(key, body, plan, observed, decision)
        else:
            self.evidence.forget(key)
        # what is just accepted gets its objects in its turn: others wait to be accepted
        idle, others = (
            _idle_first(decision.actions) if body.get("status") else ([], decision.actions)
        )
        outcomes, goes_on = await asyncio.gather(
            self._together(key, body, idle),
            self._tell(key, body, before, decision),
            return_exceptions=True,
        )
        if isinstance(goes_on, BaseException):
            raise goes_on
        if isinstance(outcomes, BaseException):
            raise outcomes
        if not goes_on:
            return
        await self._perform(key, body, others, outcomes)
        self._plan_next(key, decision, observed)

    def _body(self, key: Key) -> Object | None:
        """The resource; what we wrote ourselves counts before the watch has brought it."""
        body = self.cache.resource(key)
        if body is None:
            return None
        over, outcome = self._written.get(key, ("", None))
        if outcome is not None and _before(body, over, outcome):
            return outcome
        self._written.pop(key, None)
        return body

    def _plan_of(self, body: Object) -> Plan | InvalidResource:
        return plan_of(without(body, self.definition.added))

    def definition_changed(self) -> None:
        """Look at everything again: what was refused may be taken now."""
        self._refused.clear()
        for key in self.cache.known():
            self.queue.add(key)

    def _urgent(self, key: Key) -> bool:
        body = self._body(key)
        if body is None or key in self._accepted:
            return True
        return waits_for_us(body, self.cache.jobs(key), self.cache.pods(key))

    def _forget(self, key: Key) -> None:
        for store in (
            self._written,
            self._soft_written,
            self._refused,
            self._problems,
            self._claims,
            self._told,
            self._made,
            self._logs,
            self._shares,
        ):
            store.pop(key, None)
        self._pacer.forget(key)
        self.queue.forget(key)
        self.preflight.forget(key)
        self.evidence.forget(key)

    async def _tell(self, key: Key, body: Object, before: Status, decision: Decision) -> bool:
        """Write the new status if it is time to; whether the actions are to be carried out now."""
        old = body.get("status") or {}
        if decision.status is None or (new := dump_status(decision.status)) == old:
            self._told.pop(key, None)
            return True
        if not self._due(key, before, decision.status):
            return True
        refused = self._refused.get(key)
        if refused is not None and (left := refused.until - time.monotonic()) > 0:
            self.queue.add(key, left)
            return False
        try:
            written = await self.cluster.apply_status(dict(body), new)
        except ApiError as error:
            if error.code == 404:
                return False  # it was deleted meanwhile
            if error.code == 409:  # somebody wrote first; the watch will tell what
                self.queue.add(key, 0.2)
                return False
            if error.lasting:
                await self._put_off(key, body, str(error))
                return False
            raise
        self._refused.pop(key, None)
        self._written[key] = (body["metadata"]["resourceVersion"], written)
        self._soft_written[key] = time.monotonic()
        self._told.pop(key, None)
        await self._announce(body, before, decision.status)
        if not old and decision.actions:
            self._accepted.add(key)
            self.queue.add(key)
            return False
        return True

    async def _put_off(self, key: Key, body: Object, why: str) -> None:
        """Write the status later and later; say why not, once."""
        last = self._refused.get(key)
        first, longest = REFUSED_PAUSES
        pause = min(last.pause * 2, longest) if last else first
        self._refused[key] = _Refused(why, pause, time.monotonic() + pause)
        self.queue.add(key, pause)
        self.doubt.set()
        if last is None or last.why != why:
            log.error("the API server refuses the status of %s/%s: %s", *key, why)
            told = f"The API server refuses the status that the operator writes: {why}"
            await self._event(body, "Warning", STATUS_REFUSED, told, why)

    def _due(self, key: Key, before: Status, after: Status) -> bool:
        """Whether the new status is written now: at once what matters, the rest now and then."""
        if urgent(before) != urgent(after):
            return True
        return time.monotonic() - self._soft_written.get(key, 0.0) >= self.pause

    def _plan_next(self, key: Key, decision: Decision, observed: Observed) -> None:
        if decision.wake is not None:
            self._wake_at(key, decision.wake)
        if any(not pod.over for pod in observed.pods):
            self.resync_later(key)

    def resync_later(self, key: Key) -> None:
        """Reconcile ``key`` in its turn, though nothing be told of it: thousands that began
        together would else be looked at together, and hold others up."""
        now = time.monotonic()
        self.queue.add(key, self._pacer.next(key, now, self.pause) - now)

    @property
    def pause(self) -> float:
        """Seconds between two looks at a worker's log, and two writes of mere progress."""
        return max(self.poll_seconds, len(self.cache.known()) / RESYNCS_PER_SECOND)

    # ------------------------------------------------------------------ looking

    async def _observe(self, key: Key, body: Object, plan: Plan | InvalidResource) -> Observed:
        pods = list(self.cache.pods(key))
        valid = None if isinstance(plan, InvalidResource) else plan
        return Observed(
            jobs=list(self.cache.jobs(key)),
            pods=pods,
            claim=await self._claim(key, valid, body) if valid else None,
            peers=self._peers(body, valid) if valid else (),
            capabilities=self.capabilities,
            events=await self._events(key, body, pods),
            problems=self._problems.get(key, ()),
            pod_group=await self._pod_group(body, valid) if valid else None,
        )

    async def _look_again(self, key: Key, observed: Observed) -> Observed:
        """``observed`` with the children as the API server has them: watches may lag behind."""
        label = {"labelSelector": f"{RESOURCE_LABEL}={key[1]}"}

        async def every(version: str, kind: str) -> list[Object]:
            path = path_of(version, kind, key[0])
            found: list[Object] = (await self.cluster.request("GET", path, params=label))["items"]
            return found

        jobs, pods = await every("batch/v1", "Job"), await every("v1", "Pod")
        return replace(observed, jobs=[Job.of(b) for b in jobs], pods=[Pod.of(b) for b in pods])

    async def _with_events(
        self,
        key: Key,
        body: Object,
        plan: Plan | InvalidResource,
        observed: Observed,
        decision: Decision,
    ) -> Decision:
        """Decide again with the events about what is stuck."""
        events, wait = await self.evidence.of(key, decision.stuck)
        if wait:
            self.queue.add(key, wait)
        if events is None:
            return decision
        observed = replace(observed, kube_events=events)
        return reconcile(body, plan, observed, self.cluster.clock.now(), self.policy)

    async def _claim(self, key: Key, plan: Plan, body: Object) -> Claim | None:
        """The claim as it is; while an attempt is under way, as it was a moment ago."""
        status = _status(body)
        if _ended(body) and status.observed_generation == body["metadata"]["generation"]:
            return None
        under_way = any(e.state == "Running" and e.job_uid for e in status.stages)
        seen, claim = self._claims.get(key, (0.0, None))
        bound = max(CLAIM_SECONDS, self.pause)
        if under_way and claim is not None and time.monotonic() - seen < bound:
            return claim
        job = plan.stages[0].job["spec"]["template"]["spec"]
        name = next(
            v["persistentVolumeClaim"]["claimName"]
            for v in job["volumes"]
            if "persistentVolumeClaim" in v
        )
        path = path_of("v1", "PersistentVolumeClaim", plan.namespace, name)
        claim = Claim.of(name, await self.cluster.get(path))
        if claim.found:
            self._claims[key] = time.monotonic(), claim
        else:
            self._claims.pop(key, None)
        return claim

    async def _pod_group(self, body: Object, plan: Plan) -> Object | None:
        """The PodGroup of the attempt at training, until a scheduler has acted on it."""
        status = _status(body)
        entry, condition = status.stage_status("train"), find(status.conditions, Type.GANG)
        if entry is None or condition is None or condition.status == "True":
            return None
        chosen = gang.choose(plan.resource, self.capabilities)
        waits = condition.reason in (chosen.reason, Reason.GANG_UNATTENDED)
        begun = entry.state == "Running" and entry.job_uid
        if not (chosen.version and waits and begun):
            return None
        name = f"{plan.name}-train-{entry.attempt}"
        return await self.cluster.get(path_of(chosen.version, "PodGroup", plan.namespace, name))

    def _peers(self, body: Object, plan: Plan) -> list[Peer]:
        """Older resources on the same volume that still work."""
        if not plan.resource.spec.storage.claim_name:
            return []  # a claim of its own
        mine = _age(body)
        peers = []
        for other in self.cache.sharing(volume_of(body)):
            if _age(other) >= mine or _ended(other):
                continue
            theirs = self._share(other)
            if theirs is None:
                continue
            done = {e.name for e in _status(other).stages if e.is_done}
            hashes = {name: h for name, h in theirs.hashes.items() if name not in done}
            peers.append(Peer(theirs.name, theirs.run_folder, hashes))
        return peers

    def _share(self, body: Object) -> Peer | None:
        """What a resource does to its volume, all stages of it; None while it does nothing."""
        metadata = body["metadata"]
        key, made_of = _key(body), (metadata["uid"], metadata["generation"])
        known = self._shares.get(key)
        if known is None or known[0] != made_of:
            known = self._shares[key] = (made_of, _peer(self._plan_of(body)))
        return known[1]

    async def _events(self, key: Key, body: Object, pods: list[Pod]) -> list[Event]:
        """What the workers under way have told since the status was last written."""
        status = _status(body)
        name = status.stage
        entry = status.stage_status(name)
        if entry is None:
            return []
        attempts = (entry.attempt, entry.attempt - 1)
        known = self._logs.get(key, {})
        self._logs[key] = {pod.uid: known[pod.uid] for pod in pods if pod.uid in known}
        events = self._told.setdefault(key, [])
        for pod in sorted(pods, key=lambda p: p.attempt):
            under_way = pod.stage == name and pod.attempt in attempts
            if (under_way or pod.stage == SAMPLING) and _tells(pod, pods):
                told = await self._read_log(key, pod)
                events += told if pod.attempt == attempts[0] else _without_skipped(told)
        del events[:-MAX_TOLD]
        return events

    async def _read_log(self, key: Key, pod: Pod) -> list[Event]:
        known = self._logs[key].setdefault(pod.uid, _Log())
        now = time.monotonic()
        if known.final or pod.phase not in ("Running", "Succeeded", "Failed"):
            return []
        if not pod.over and now - known.read_at < self.pause:
            return []
        known.read_at, known.final = now, pod.over
        since = {"sinceTime": known.since} if known.since else {"tailLines": "300"}
        text = await self.cluster.pod_log(
            key[0], pod.name, pod.container, timestamps="true", **since
        )
        events = []
        again = known.lines  # so many lines of the last time stamp have been read before
        for line in text.splitlines():
            stamp, _, rest = line.partition(" ")
            if parse_time(stamp[:19] + "Z") is None or stamp < known.since:
                continue
            if stamp == known.since and again:
                again -= 1
                continue
            known.lines = known.lines + 1 if stamp == known.since else 1
            known.since = stamp
            if (event := parse(rest)) is not None:
                events.append(event)
        return events

    # ------------------------------------------------------------------ doing

    async def _perform(
        self, key: Key, body: Object, actions: Sequence[Action], outcomes: list[Outcome]
    ) -> None:
        """Carry the actions out, after those of ``outcomes``; what the API server refuses becomes a
        condition, and nothing is made after an object that was refused, as it may need that."""
        for action in actions:
            refused = any(error and isinstance(one, Apply) for one, error in outcomes)
            if not (refused and isinstance(action, Apply)):
                outcomes.append(await self._carry_out(key, body, action))
        refusals = [(action, error) for action, error in outcomes if error is not None]
        problems = [f"{_what(action)}: {error}" for action, error in refusals]
        before = self._problems.get(key, ())
        if problems:
            self._problems[key] = tuple(problems)
            if before != tuple(problems):
                self.queue.add(key)  # once more at once, so that the condition shows it
                return
            raise refusals[-1][1]  # the queue's back-off decides when to try again
        if before:
            del self._problems[key]
            self.queue.add(key)

    async def _together(self, key: Key, body: Object, actions: Sequence[Action]) -> list[Outcome]:
        """Carry the actions out at the same time, all of them to their end."""
        outcomes: list[Outcome] = []
        for outcome in await asyncio.gather(
            *(self._carry_out(key, body, action) for action in actions), return_exceptions=True
        ):
            if isinstance(outcome, BaseException):
                raise outcome
            outcomes.append(outcome)
        return outcomes

    async def _carry_out(self, key: Key, body: Object, action: Action) -> Outcome:
        """Carry the action out, and say what the API server refused.

        Raises:
            OSError: the API server cannot be reached.
        """
        try:
            if isinstance(action, Apply):
                await self._apply(key, action.manifest, body)
            else:
                await self._delete(key, body, action)
        except ApiError as error:
            return action, error
        return action, None

    async def _apply(self, key: Key, manifest: Object, body: Object) -> None:
        """Make the object unless it is there; one of somebody else's is never touched."""
        metadata, kind, path = manifest["metadata"], manifest["kind"], _path(manifest)
        made, now = self._made.setdefault(key, {}), time.monotonic()
        # The watch has yet to deliver it. Not so a claim, which is read from the API server and may
        # have been deleted since, or a PodGroup, which may be of an earlier spec with another size.
        if kind not in ("PersistentVolumeClaim", "PodGroup") and self._just_made(key, manifest):
            self.queue.add(key, UNSEEN)
            return
        # the claim is asked for at every stage, and there from the first one on
        found = await self.cluster.get(path) if kind == "PersistentVolumeClaim" else None
        if found is None and await self.cluster.create(manifest):
            made[path] = now
            for old in [one for one, then in made.items() if now - then >= UNSEEN]:
                del made[old]
            return
        found = found or await self.cluster.get(path)
        if found is None:  # it has gone meanwhile
            self.queue.add(key)
            return
        owners = {o["uid"] for o in found["metadata"].get("ownerReferences", [])}
        label = "app.kubernetes.io/instance"
        ours = found["metadata"].get("labels", {}).get(label) == metadata["labels"][label]
        wanted = {o["uid"] for o in metadata.get("ownerReferences", [])}
        if wanted <= owners and ours:
            if "deletionTimestamp" in found["metadata"]:
                raise ApiError(409, "AlreadyExists", "the last one of this name is being deleted")
            if kind != "PodGroup" or _covers(found.get("spec"), manifest["spec"]):
                return
            # made for a spec that has changed since: its group would wait for pods that never come
            await self.cluster.delete(
                manifest["apiVersion"], kind, key[0], metadata["name"], found["metadata"]["uid"]
            )
            raise ApiError(409, "AlreadyExists", "the one of another size is being deleted")
        if await self._take_away([found], body):
            self._claims.pop(key, None)
            raise ApiError(
                409, "AlreadyExists", "the one of the last resource of this name is being deleted"
            )
        raise ApiError(
            409,
            "AlreadyExists",
            f"an object of this name is there that is not this resource's: delete it, or give the "
            f"resource {body['metadata']['name']} another name",
        )

    def _just_made(self, key: Key, manifest: Object) -> bool:
        """Whether the object was made so lately that it need not have been seen yet."""
        return time.monotonic() - self._made.get(key, {}).get(_path(manifest), 0.0) < UNSEEN

    async def _end_earlier(self, key: Key, body: Object) -> None:
        """End the Jobs of an earlier resource of this name: this one waits for their pods."""
        mine = body["metadata"]["uid"]
        paths = [
            path_of("batch/v1", "Job", key[0], job.name)
            for job in self.cache.jobs(key)
            if job.owner not in ("", mine) and not job.deleting
        ]
        found = [await self.cluster.get(path) for path in paths]
        await self._take_away([one for one in found if one is not None], body)

    async def _take_away(self, found: Sequence[Object], body: Object) -> bool:
        """Delete what of ``found`` was made for an earlier resource of the name of ``body``, if
        anything was; whether it was.

        Kubernetes' garbage collector would, but never does if its watch was cut while the resource
        was deleted and made again: it then knows nothing of the first one's end. In the foreground,
        so that the same does not happen to the objects and their pods. Whether ``body`` is still
        the resource of its name is asked after they were found: none can be of a later one.
        """
        left = [one for one in found if _left_behind(one, body)]
        if not left or not await self._is_there(body):
            return False
        for one in left:
            metadata = one["metadata"]
            await self.cluster.delete(
                one["apiVersion"],
                one["kind"],
                metadata["namespace"],
                metadata["name"],
                metadata["uid"],
                foreground=True,
            )
        return True

    async def _is_there(self, body: Object) -> bool:
        """Whether ``body`` is the resource of its name, by the API server's own word."""
        metadata = body["metadata"]
        path = path_of(API_VERSION, KIND, metadata["namespace"])
        named = self.cluster.list_objects(path, fieldSelector=f"metadata.name={metadata['name']}")
        return [one["metadata"]["uid"] async for one in named] == [metadata["uid"]]

    async def _clear_away(self, key: Key) -> None:
        """Take what is left of a resource that is gone off nodes that do not answer: Kubernetes
        itself waits for such a node for ever."""
        forced, again = outlived(self.cache.pods(key), self.cluster.clock.now(), self.policy)
        for action in forced:
            log.warning("%s/%s is gone; %s", *key, action.why)
            await self._delete(key, None, action)
        if again is not None:
            self._wake_at(key, again)

    def _wake_at(self, key: Key, moment: datetime) -> None:
        delay = (moment - self.cluster.clock.now()).total_seconds()
        self.queue.add(key, max(delay, 0.05))

    async def _delete(self, key: Key, body: Object | None, action: Delete) -> None:
        namespace = key[0]
        await self.cluster.delete(
            _VERSIONS[action.kind],
            action.kind,
            namespace,
            action.name,
            action.uid,
            force=action.force,
        )
        if action.why and body is not None:
            reason = "PodForceDeleted" if action.force else "SidecarEnded"
            await self._event(body, "Warning", reason, action.why, action.uid)

    # ------------------------------------------------------------------ telling

    async def _announce(self, body: Object, before: Status, after: Status) -> None:
        """Events for what people have to know: few, of fixed reasons, never twice."""
        old, new = before.conditions, after.conditions
        for kind, level in ((Type.FAILED, "Warning"), (Type.SUSPENDED, "Normal")):
            condition = find(new, kind)
            if condition is not None and is_true(new, kind) and not is_true(old, kind):
                await self._event(
                    body,
                    level,
                    condition.reason,
                    condition.message,
                    condition.last_transition_time,
                )
        if after.restarts > before.restarts:
            told, reason = find(new, Type.CONTENT), str(Reason.RESTARTING)
            if told is not None and told != find(old, Type.CONTENT):
                reason = told.reason
            else:
                told = find(new, Type.PROGRESSING)
            message = told.message if told else ""
            await self._event(body, "Warning", reason, message, str(after.restarts))

    async def _event(
        self, body: Object, level: str, reason: str, message: str, occasion: str
    ) -> None:
        """One core/v1 Event whose name follows from its occasion, so that it is made only once."""
        metadata = body["metadata"]
        digest = hashlib.sha256(f"{metadata['uid']} {reason} {occasion}".encode()).hexdigest()
        now = self.cluster.clock.now().isoformat(timespec="seconds").replace("+00:00", "Z")
        about = {"apiVersion": API_VERSION, "kind": KIND, "uid": metadata["uid"]}
        about |= {k: metadata[k] for k in ("name", "namespace", "resourceVersion")}
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {
                "name": f"{metadata['name']}.{digest[:16]}",
                "namespace": metadata["namespace"],
            },
            "involvedObject": about,
            "type": level,
            "reason": reason,
            "message": message[:1024],
            "source": {"component": "video2world-operator"},
            "reportingComponent": "video2world-operator",
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
        try:
            path = path_of("v1", "Event", metadata["namespace"])
            await self.cluster.request("POST", path, body=event)
        except (ApiError, OSError) as error:  # an event is worth no retry
            if not isinstance(error, ApiError) or error.code != 409:
                log.warning("no event %s for %s: %s", reason, metadata["name"], error)


def waits_for_us(body: Object, jobs: Iterable[Job], pods: Iterable[Pod]) -> bool:
    """Whether a user, or a group of GPUs, waits for nothing but the operator: the resource is new,
    its stage has ended, or a pod of it has failed."""
    status = body.get("status") or {}
    if "observedGeneration" not in status:
        return True
    if _ended(body):
        return False
    at_work = {(e.name, e.attempt) for e in _status(body).stages if e.state == "Running"}
    stage_ended = any(job.finished and (job.stage, job.attempt) in at_work for job in jobs)
    return stage_ended or any(pod.phase == "Failed" for pod in pods)


def urgent(status: Status) -> tuple[object, ...]:
    """The part of a status whose change is written at once."""
    return (
        status.phase,
        status.stage,
        status.observed_generation,
        status.restarts,
        status.attempt,
        status.checkpoint,
        [(row.checkpoint, row.state) for row in status.samples],
        [(e.name, e.state, e.attempt, e.inputs_hash) for e in status.stages],
        [
            (c.type, c.status, c.reason, c.message)
            for c in status.conditions
            if c.type in _ALWAYS
            or (c.status == "False" and c.type in (Type.CHILDREN_APPLIED, Type.VOLUME_READY))
        ],
    )


def _before(body: Object, over: str, outcome: Object) -> bool:
    """Whether ``body`` is from before ``outcome``, which was written over the version ``over``: it
    may be older than that, too, where several writes were quicker than the watch. Versions of one
    kind compare as numbers (KEP-5504)."""
    version, written = body["metadata"]["resourceVersion"], outcome["metadata"]["resourceVersion"]
    if body["metadata"]["uid"] != outcome["metadata"]["uid"]:
        return False
    if version.isdecimal() and written.isdecimal():
        return int(version) < int(written)
    return bool(version == over)


def counts_on_absence(
    before: Status, decision: Decision, just_made: Callable[[Object], bool] = lambda manifest: False
) -> bool:
    """Whether ``decision`` would be wrong if there were a Job or pod that was not seen, or not as
    it is: an attempt is given up, another one is started or one anew, or it is said that nothing
    runs. A Job that was ``just_made`` is not made again."""
    if (after := decision.status) is not None:
        ends = after.phase in ("Failed", "Succeeded", "Suspended")
        if (ends and after.phase != before.phase) or after.restarts > before.restarts:
            return True
    at_work = {(e.name, str(e.attempt)) for e in before.stages if e.state == "Running"}
    labels = [
        a.manifest["metadata"]["labels"]
        for a in decision.actions
        if isinstance(a, Apply) and a.manifest["kind"] == "Job" and not just_made(a.manifest)
    ]
    made = {(its[STAGE_LABEL], its[ATTEMPT_LABEL]) for its in labels}
    return bool(made & at_work) or any(attempt != "1" for _, attempt in made)


def _without_skipped(events: Iterable[Event]) -> list[Event]:
    """``events`` of an earlier attempt, without stages it found done: the volume changed since."""
    return [event for event in events if not isinstance(event, Skipped)]


def _ended(body: Object) -> bool:
    conditions = _status(body).conditions
    return is_true(conditions, Type.FAILED) or is_true(conditions, Type.SUCCEEDED)


def _status(body: Object) -> Status:
    return parse_status(body.get("status"))


def _key(body: Object) -> Key:
    return (body["metadata"]["namespace"], body["metadata"]["name"])


def _peer(plan: Plan | InvalidResource) -> Peer | None:
    if isinstance(plan, InvalidResource) or plan.resource.spec.suspend:
        return None
    hashes = {stage.name: stage.inputs_hash for stage in plan.stages}
    return Peer(plan.name, run_folder(plan.resource), hashes)


def _age(body: Object) -> tuple[str, str]:
    return (body["metadata"]["creationTimestamp"], body["metadata"]["uid"])
