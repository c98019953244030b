"""Share what every v2w command needs: usage errors, the plan of a file, local or cluster."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from video2world_operator.plan.plan import Plan

EVERY = 2.0  # seconds between two looks of --watch
ENDED = ("Succeeded", "Failed", "Suspended")


class UsageError(Exception):
    """The user's mistake, for one line on stderr."""


def uses_cluster(args: argparse.Namespace) -> bool:
    """Whether the cluster is meant, not a folder: -n says so, or that there is no folder."""
    if args.volume is not None:
        return False
    if args.namespace or Path(sys.argv[0]).name.startswith("kubectl-") or not _DEFAULT.is_dir():
        return True
    args.volume = _DEFAULT
    return False


_DEFAULT = Path("volume")
_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")


def require_cluster() -> None:
    """Say at once that none is configured: the client that would takes a second to load."""
    given = os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")
    places = [_ACCOUNT, *(Path(one) for one in given.split(os.pathsep) if one)]
    if not any(place.is_file() for place in places):
        from video2world_operator.api.errors import NO_CLUSTER

        raise UsageError(NO_CLUSTER)


def load_plan(args: argparse.Namespace) -> Plan:
    from video2world_operator.api.errors import InvalidResource
    from video2world_operator.api.validation import load_resource
    from video2world_operator.plan.plan import make_plan

    try:
        return make_plan(load_resource(args.file), getattr(args, "namespace", None) or "default")
    except InvalidResource as error:
        lines = "\n  ".join(map(str, error.problems))
        raise UsageError(f"{args.file} is not valid:\n  {lines}") from None
    except OSError as error:
        raise UsageError(f"{args.file} cannot be read: {error.strerror}") from None
