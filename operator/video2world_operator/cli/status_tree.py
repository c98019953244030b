"""Show the status of a resource as a tree of lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from video2world_common.checkpoint_interval import every
from video2world_common.progress_events import duration
from video2world_operator.api.status import (
    AttemptStatus,
    GPUSeconds,
    ProgressStatus,
    StageStatus,
    State,
    Status,
    ValidationStatus,
)
from video2world_operator.api.timestamps import parse_time
from video2world_operator.cli.snapshot import Snapshot
from video2world_operator.plan.stage import SAMPLING
from video2world_operator.reconcile.eviction_cost import describe
from video2world_operator.reconcile.observed_state import Pod
from video2world_operator.terminal import ASCII_MARKS, BAR_WIDTH, MARKS, sparkline

__all__ = ["tree"]

MAX_PODS = 8  # of a stage, listed one by one
MAX_SAMPLES = 8  # checkpoints whose samples are listed one by one
NO_OPERATOR = "no operator has handled it yet; is one running?"
ENDED: tuple[State, ...] = ("Succeeded", "Failed", "Skipped")


@dataclass(frozen=True)
class _Node:
    text: str
    children: list[_Node] = field(default_factory=list)


def tree(seen: Snapshot, now: datetime, *, plain: bool = False) -> list[str]:
    """Return the lines of the tree, in ASCII if ``plain``."""
    status = seen.status
    if status.is_empty:
        return [f"{seen.name}: Pending  {seen.note or NO_OPERATOR}"]
    head = f"{seen.name}: {status.phase}  {status.message}".rstrip()
    children = [_stage(seen, entry, now, plain) for entry in status.stages]
    children.append(_Node(f"{'restarts':<11} {_restarts(status)}"))
    gpu = status.gpu_seconds
    if gpu is not None and (gpu.useful or gpu.lost or gpu.idle):
        children.append(_Node(f"{'GPU time':<11} {_gpu_time(gpu)}"))
    lines = [head] + ([f"  {seen.note}"] if seen.note else [])
    _draw(lines, children, "", plain)
    return lines


def _draw(lines: list[str], nodes: Sequence[_Node], indent: str, plain: bool) -> None:
    fork, last, bar = ("|-- ", "`-- ", "|   ") if plain else ("├─ ", "└─ ", "│  ")
    for number, node in enumerate(nodes, start=1):
        end = number == len(nodes)
        lines.append(f"{indent}{last if end else fork}{node.text}".rstrip())
        _draw(lines, node.children, indent + (" " * len(bar) if end else bar), plain)


def _stage(seen: Snapshot, entry: StageStatus, now: datetime, plain: bool) -> _Node:
    name, state = entry.name, entry.state
    parts = [f"{name:<11} {state:<10}"]
    if entry.total:
        parts.append(f"{entry.done}/{entry.total} {entry.unit}".rstrip())
    if span := _span(entry.start_time, entry.completion_time, now, state):
        parts.append(span)
    if state == "Running" and entry.desired > 1:
        parts.append(f"{entry.ready}/{entry.desired} pods ready")
    if entry.message and state not in ("Running", "Succeeded"):
        parts.append(entry.message)
    children = _training(seen, now, plain) if name == "train" else []
    if name == "inference":
        children = _samples(status=seen.status, pods=seen.pods)
    if name == "evaluation" and seen.status.evaluation is not None:
        children = [_Node(seen.status.evaluation.text)]
        if (actions := seen.status.evaluation.actions) is not None:
            children.append(_Node(actions.text))
    if state in ("Running", "Restarting", "Failed", "Suspended"):
        children += _pods([p for p in seen.pods if p.stage == name])
    return _Node("  ".join(parts), children)


def _span(start: str | None, end: str | None, now: datetime, state: str) -> str:
    began, ended = parse_time(start), parse_time(end) if state in ENDED else now
    return duration((ended - began).total_seconds()) if began and ended else ""


def _training(seen: Snapshot, now: datetime, plain: bool) -> list[_Node]:
    status, children = seen.status, []
    if (progress := status.progress) is not None:
        children.append(_Node(f"{'progress':<11} {_progress(progress, plain)}"))
        if progress.warning:
            children.append(_Node(f"{'warning':<11} {progress.warning}"))
    if len(seen.losses) > 1:
        marks = ASCII_MARKS if plain else MARKS
        first, newest = seen.losses[0], seen.losses[-1]
        line = f"{sparkline(seen.losses, marks)}  {first:.4f} to {newest:.4f}"
        children.append(_Node(f"{'loss':<11} {line}"))
    if (validation := status.validation) is not None:
        children += _validation(validation)
    if (size := status.group_size) is not None:
        why = f"  {size.message}" if size.message else ""
        children.append(_Node(f"{'nodes':<11} {size.running} of {size.asked}{why}"))
    if (checkpoint := status.checkpoint) is not None:
        saved = parse_time(checkpoint.time)
        age = f"{duration((now - saved).total_seconds())} ago" if saved else ""
        parts = [str(checkpoint.iteration), age, checkpoint.path]
        children.append(_Node(f"{'checkpoint':<11} {'  '.join(filter(None, parts))}"))
    if progress is not None and progress.checkpoint_interval:
        often, why = every(progress.checkpoint_interval), progress.checkpoint_interval_reason
        children.append(_Node(f"{'interval':<11} {': '.join(filter(None, (often, why)))}"))
    if status.eviction_cost is not None:
        children.append(_Node(f"{'at risk':<11} {describe(status.eviction_cost, now)}"))
    for attempt in status.attempts:
        if attempt.end_time and attempt.reason != "Succeeded":
            children.append(_Node(_attempt(attempt)))
    return children


def _validation(validation: ValidationStatus) -> list[_Node]:
    loss = "not finite" if validation.loss is None else f"{validation.loss:.4f}"
    parts = [f"{loss} at {validation.iteration}"]
    levels = (validation.low_noise, validation.middle_noise, validation.high_noise)
    names = ("low", "middle", "high")
    shown = [f"{n} {v:.4f}" for n, v in zip(names, levels, strict=True) if v is not None]
    if shown:
        parts.append(f"by noise: {', '.join(shown)}")
    if validation.best_loss is not None:
        parts.append(f"best {validation.best_loss:.4f} at {validation.best_iteration}")
    if validation.base_loss is not None:
        parts.append(f"base weights {validation.base_loss:.4f}")
    if validation.weights == "EMA":
        parts.append("EMA weights")
    nodes = [_Node(f"{'validation':<11} {'  '.join(parts)}")]
    if validation.stopped:
        nodes.append(_Node(f"{'stopped':<11} {validation.stopped}"))
    return nodes


def _samples(status: Status, pods: Sequence[Pod]) -> list[_Node]:
    """List the samples by checkpoint, the newest last; older ones are only counted."""
    rows = status.samples
    nodes = []
    if older := rows[:-MAX_SAMPLES]:
        done, total = sum(row.done for row in older), sum(row.total for row in older)
        nodes.append(_Node(f"{len(older)} older checkpoints: {done}/{total} samples"))
    for row in rows[-MAX_SAMPLES:]:
        parts = [f"{row.checkpoint:<14} {row.state:<10}"]
        parts.append(f"{row.done}/{row.total} samples")
        children = []
        if row.state == "Running":
            children = _pods([p for p in pods if (p.stage, p.attempt) == (SAMPLING, row.iteration)])
        nodes.append(_Node("  ".join(filter(None, [*parts, row.message])), children))
    return nodes


def _progress(progress: ProgressStatus, plain: bool) -> str:
    done, total = progress.iteration, progress.iterations
    full = round(BAR_WIDTH * min(done / total, 1)) if total else 0
    on, off = ("#", ".") if plain else ("█", "░")
    parts = [f"{on * full}{off * (BAR_WIDTH - full)} {done}/{total}"]
    if progress.phase:
        parts.append(f"phase {progress.phase}")
    if (loss := progress.loss) is not None:
        parts.append(f"loss {loss:.4f}")
    if (pace := progress.seconds_per_iteration) is not None:
        parts.append(f"{pace:.3g} s/iteration")
    if eta := progress.eta_seconds:
        parts.append(f"{duration(eta)} left")
    return "  ".join(parts)


def _attempt(attempt: AttemptStatus) -> str:
    why = ": ".join(filter(None, (attempt.reason, attempt.message)))
    reach = f"{attempt.start_iteration} to {attempt.end_iteration}"
    charged = ", counted" if attempt.charged else ""
    return f"attempt {attempt.number}: {why} (iterations {reach}{charged})"


def _restarts(status: Status) -> str:
    shown = status.restarts and status.records_charged_restarts
    return f"{status.restarts}" + (f" ({status.charged_restarts} counted)" if shown else "")


def _gpu_time(gpu: GPUSeconds) -> str:
    parts = {"useful": gpu.useful, "lost": gpu.lost, "idle": gpu.idle}
    held = sum(parts.values())
    share = f" ({100 * parts['useful'] / held:.0f}% useful)" if held else ""
    return ", ".join(f"{duration(value)} {kind}" for kind, value in parts.items()) + share


def _pods(pods: Sequence[Pod]) -> list[_Node]:
    """List the pods of the newest attempt, those not running first; the rest are counted."""
    newest = max((p.attempt for p in pods), default=0)
    rows = [(_state(p), p) for p in pods if p.attempt == newest]
    rows.sort(key=lambda row: (row[0] == "Running", row[1].index))
    shown = [_Node("  ".join(filter(None, (p.name, p.node, s)))) for s, p in rows[:MAX_PODS]]
    if more := Counter(state.partition(":")[0] for state, _ in rows[MAX_PODS:]):
        counts = ", ".join(f"{count} {state}" for state, count in more.most_common())
        shown.append(_Node(f"... and {sum(more.values())} more: {counts}"))
    return shown


def _state(pod: Pod) -> str:
    if pod.deleted is not None and not pod.over:
        return "Terminating"
    if pod.exit_code:
        return f"{pod.reason or 'Failed'}: exit code {pod.exit_code}"
    if pod.waits or pod.unschedulable:
        return f"{pod.phase}: {pod.waits or pod.unschedulable}"
    return pod.phase if pod.ready or pod.phase != "Running" else "Running: not ready"
