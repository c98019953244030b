"""Share what the v2w commands have in common: usage errors, plans, and where to look."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from video2world_operator.plan.plan import Plan

DOCTOR = "`v2w doctor {name}` gathers what a bug report needs"
POLL_SECONDS = 2.0  # between two updates of --watch
_DEFAULT_VOLUME = Path("volume")
_ACCOUNT_TOKEN = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")


class UsageError(Exception):
    """A mistake of the user, printed as one line on stderr."""


def uses_cluster(args: argparse.Namespace) -> bool:
    """Whether to read the cluster: -n or kubectl says so, or there is no folder ./volume.

    Otherwise ``args.volume`` is set.
    """
    if args.volume is not None or args.name is None:  # of v2w doctor: this machine
        return False
    is_plugin = Path(sys.argv[0]).name.startswith("kubectl-")
    if args.namespace or is_plugin or not _DEFAULT_VOLUME.is_dir():
        return True
    args.volume = _DEFAULT_VOLUME
    return False


def require_cluster() -> None:
    """Fail at once if no cluster is configured: loading the client takes a second.

    Raises:
        UsageError: there is neither a kubeconfig nor a service account.
    """
    kubeconfig = os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")
    paths = [_ACCOUNT_TOKEN, *(Path(path) for path in kubeconfig.split(os.pathsep) if path)]
    if not any(path.is_file() for path in paths):
        from video2world_operator.api.errors import NO_CLUSTER

        raise UsageError(NO_CLUSTER)


def load_plan(args: argparse.Namespace) -> Plan:
    """Load the resource file of ``args`` and make its plan.

    Raises:
        UsageError: the file cannot be read or is not valid.
    """
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
