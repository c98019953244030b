"""Read Kueue's Workload of a Job: why it waits, or why it was evicted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["JOB_UID_LABEL", "Workload"]

JOB_UID_LABEL = "kueue.x-k8s.io/job-uid"  # of a Workload: the UID of its Job


@dataclass(frozen=True)
class Workload:
    """A Workload of kueue.x-k8s.io, as far as v1beta1 and v1beta2 agree.

    ``waits`` is why it has no quota or is not admitted, in Kueue's words; empty while Kueue has not
    looked at it. ``evicted`` is why it lost its quota since its last admission (a reason), and
    ``eviction`` is what Kueue said.
    ``flavors`` are those it was admitted with: their node labels select the nodes of its pods.
    """

    name: str
    admitted: bool = False
    waits: str = ""
    evicted: str = ""
    eviction: str = ""
    flavors: tuple[str, ...] = ()

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> Workload:
        """Read a Workload from its API object."""
        spec, status = body.get("spec") or {}, body.get("status") or {}
        conditions = {c["type"]: c for c in status.get("conditions") or []}
        evicted = conditions.get("Evicted", {})
        if evicted.get("status") != "True":
            evicted = {}
        return cls(
            name=body["metadata"]["name"],
            admitted=conditions.get("Admitted", {}).get("status") == "True",
            waits=_reason_to_wait(spec, conditions, status.get("admissionChecks") or []),
            evicted=evicted.get("reason", ""),
            eviction=evicted.get("message", ""),
            flavors=tuple(_flavors(status.get("admission") or {})),
        )

    @property
    def problem(self) -> str:
        """Why it waits, and why it was evicted; empty while Kueue has not looked at it."""
        if not self.eviction or self.eviction in self.waits:
            return self.waits
        return f"{self.waits.rstrip('. ')} (evicted: {self.eviction.rstrip('. ')})"

    def explain_placement(self, problem: str) -> str:
        """Return why a pod fits no node (may be empty), with the flavors that select its nodes."""
        flavors = " and ".join(self.flavors)
        if not (problem and flavors):
            return problem
        return f"{problem.rstrip('. ')} (Kueue assigned flavor {flavors})"


def _flavors(admission: Mapping[str, Any]) -> list[str]:
    assigned = admission.get("podSetAssignments") or []
    names = (name for one in assigned for name in (one.get("flavors") or {}).values())
    return list(dict.fromkeys(names))


def _reason_to_wait(
    spec: Mapping[str, Any],
    conditions: Mapping[str, Mapping[str, Any]],
    checks: list[Mapping[str, Any]],
) -> str:
    if spec.get("active") is False:
        why = conditions.get("Evicted", {}).get("message", "")
        return f"Workload is deactivated: {why}".rstrip(": ")
    for kind in ("QuotaReserved", "Admitted"):
        condition = conditions.get(kind)
        if condition is None or condition["status"] == "True":
            continue
        if kind == "Admitted" and conditions.get("QuotaReserved", {}).get("status") == "True":
            unready = [c for c in checks if c.get("state") != "Ready"]
            return "; ".join(
                f"admission check {c['name']} is {c.get('state')}: {c.get('message', '')}".rstrip(
                    ": "
                )
                for c in unready
            )
        return str(condition.get("message") or condition.get("reason") or "")
    return ""
