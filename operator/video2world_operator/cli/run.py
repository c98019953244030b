"""Implement v2w run."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from video2world_common.exit_codes import EXIT_FAILURE
from video2world_operator.cli.common import DOCTOR, UsageError, load_plan

if TYPE_CHECKING:
    from video2world_operator.plan.plan import Plan


def run(args: argparse.Namespace) -> int:
    """Run a resource file on this machine; returns the exit code of the run."""
    from video2world_operator.local.engine import LocalEngine
    from video2world_operator.local.state import RunRefused
    from video2world_operator.terminal import Display

    plan = _local(load_plan(args))
    if args.dry_run:
        _dry_run(plan, args.volume.resolve())
        return 0
    display = Display(sys.stdout, verbose=args.verbose)
    try:
        code = LocalEngine(plan, args.volume, display, args.file).run()
    except RunRefused as error:
        raise UsageError(str(error)) from None
    except OSError as error:
        raise UsageError(f"--volume {args.volume}: {error}") from None
    if code == EXIT_FAILURE:
        display.say(f"{DOCTOR.format(name=plan.name)} (add --volume {args.volume})")
    return code


def _local(plan: Plan) -> Plan:
    """Return the plan without claims for devices, which only a cluster allocates."""
    from video2world_operator.api.device_claims import without_claims
    from video2world_operator.plan.plan import make_plan

    spec = plan.resource.spec
    if not any(spec.resource_claims(stage.kind) for stage in plan.stages):
        return plan
    print("resourceClaims are for a cluster: this run uses the GPUs of this machine")
    resource = plan.resource.model_copy(update={"spec": without_claims(spec)})
    return make_plan(resource, plan.namespace)


def _dry_run(plan: Plan, volume: Path) -> None:
    """Print for each stage whether it would run, why, and its command; then estimated times."""
    from video2world_operator.local.stage_check import check_stages, volume_root
    from video2world_operator.preflight.machine import gpus_here
    from video2world_operator.preflight.time_estimate import describe, estimate_time
    from video2world_operator.terminal import sanitize_terminal

    checks, first_to_run = check_stages(volume_root(plan, volume), plan.stages), ""
    for stage in plan.stages:
        check = checks[stage.name]
        verdict, why = ("skip" if check.done else "run"), check.why
        if check.done and first_to_run:
            verdict, why = "skip?", f"done; checked again once {first_to_run} has run"
        first_to_run = first_to_run or ("" if check.done else stage.name)
        note = f"; {check.note}" if check.note else ""
        print(f"{verdict:<6}{stage.name:<11} {sanitize_terminal(why + note)}")
        print(f"{'':<17} {' '.join(stage.argv)}")
    for title, text in describe(estimate_time(plan.resource, gpus_here() or ())):
        print(f"{'time' if title else '':<6}{title:<11} {text}")
