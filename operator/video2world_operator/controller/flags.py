"""Define the operator's command-line flags, each with its environment variable."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from video2world_operator import __version__
from video2world_operator.kube.leader_election import LeaseTimes
from video2world_operator.reconcile.actions import Policy

__all__ = ["FLAGS", "Flag", "Options", "parse_arguments", "parser"]


@dataclass(frozen=True)
class Options:
    """How the operator runs. Times are in seconds."""

    namespaces: tuple[str, ...] = ()  # to watch; empty: all
    own_namespace: str = ""  # of the Lease; empty: that of the credentials
    pod: str = ""  # UID of the pod this runs in; empty: none, or unknown
    host: str = "0.0.0.0"
    port: int = 8080
    poll: float = 10  # between two polls of a log, and two status writes of mere progress
    housekeeping: float = 30  # between two checks of the cache, the rights and the API groups
    policy: Policy = field(default_factory=Policy)
    lease: LeaseTimes = field(default_factory=LeaseTimes)
    requests_per_second: float = 300
    verbose: bool = False


@dataclass(frozen=True)
class Flag:
    """A flag that takes a value, which its environment variable can set too."""

    name: str
    variable: str
    kind: Callable[[str], object]
    default: str
    help: str

    def add_to(self, flags: argparse.ArgumentParser) -> None:
        note = f"{self.variable}; {self.default}" if self.default else self.variable
        flags.add_argument(
            f"--{self.name}",
            type=self.kind,
            default=self.kind(os.environ.get(self.variable, self.default)),
            help=f"{self.help} ({note})",
        )


FLAGS = (
    Flag(
        "namespaces", "V2W_NAMESPACES", str, "", "comma-separated namespaces to watch; default all"
    ),
    Flag(
        "own-namespace",
        "V2W_OWN_NAMESPACE",
        str,
        "",
        "namespace of the Lease; default that of the credentials",
    ),
    Flag("port", "V2W_PORT", int, "8080", "port of the probes and metrics"),
    Flag(
        "poll-seconds",
        "V2W_POLL_SECONDS",
        float,
        "10",
        "log polling interval; at least 0.1 s per resource",
    ),
    Flag(
        "termination-bound-seconds",
        "V2W_TERMINATION_BOUND_SECONDS",
        float,
        "60",
        "force-delete a pod that outlives its grace period by so long",
    ),
    Flag(
        "stuck-after-seconds",
        "V2W_STUCK_AFTER_SECONDS",
        float,
        "30",
        "report a stage that makes no progress for so long as stuck, and end a sidecar that "
        "outlives its worker by so long",
    ),
    Flag(
        "elastic-after-seconds",
        "V2W_ELASTIC_AFTER_SECONDS",
        float,
        "600",
        "shrink a training group with minNodes that lacks nodes for so long, and let it grow once "
        "more could be had for so long",
    ),
    Flag(
        "lease-seconds",
        "V2W_LEASE_SECONDS",
        float,
        "15",
        "duration of the leader's lease without renewal",
    ),
    Flag(
        "pod-uid",
        "V2W_POD_UID",
        str,
        "",
        "UID of the pod this runs in: a restarted container then resumes leading without waiting "
        "for the lease to expire, as its predecessor has ended",
    ),
)


def parser() -> argparse.ArgumentParser:
    """Build the parser of the operator's flags."""
    flags = argparse.ArgumentParser(
        prog="python -m video2world_operator",
        description="Watch Video2WorldPostTrain resources and run them.",
        epilog="On --port: /healthz, /readyz, /metrics. RBAC rules: manifests/rbac.yaml.",
    )
    flags.add_argument("--version", action="version", version=__version__)
    for flag in FLAGS:
        flag.add_to(flags)
    flags.add_argument("-v", "--verbose", action="store_true", help="log debug messages")
    return flags


def parse_arguments(argv: Sequence[str] | None) -> Options:
    """Parse the command line; exits with code 2 at mistakes."""
    args = parser().parse_args(argv)
    return Options(
        namespaces=tuple(filter(None, (n.strip() for n in args.namespaces.split(",")))),
        own_namespace=args.own_namespace,
        pod=args.pod_uid,
        port=args.port,
        poll=args.poll_seconds,
        policy=Policy(
            termination_bound=args.termination_bound_seconds,
            stuck_after=args.stuck_after_seconds,
            elastic_after=args.elastic_after_seconds,
        ),
        lease=LeaseTimes.of(args.lease_seconds),
        verbose=args.verbose,
    )
