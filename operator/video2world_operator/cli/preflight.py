"""Implement v2w preflight."""

from __future__ import annotations

import argparse

from video2world_common.exit_codes import EXIT_USER_ERROR
from video2world_operator.cli.common import UsageError, load_plan, require_cluster


def run_checks(args: argparse.Namespace) -> int:
    """Run the preflight checks and print them; returns 2 if one fails."""
    from video2world_operator.api.validation import load_manifest
    from video2world_operator.preflight import checks, machine, registry
    from video2world_operator.preflight.caption_requests import check_captions
    from video2world_operator.preflight.check import Check, Verdict
    from video2world_operator.preflight.cluster_checks import check_cluster
    from video2world_operator.preflight.requirements import estimate

    plan = load_plan(args)
    estimated = estimate(plan.resource)
    found = [Check("spec", Verdict.OK, f"{args.file} is valid")]
    if args.cluster:
        require_cluster()
        from video2world_operator.cli.cluster_run import preflight as cluster_facts

        facts = cluster_facts(plan, load_manifest(args.file), args.namespace)
        try:
            found += check_cluster(plan, estimated, facts)
        except ValueError as error:  # the user's pod template is free-form
            raise UsageError(f"{args.file}: podTemplate: {error}") from None
        found += checks.check_images(plan, registry.pullable(checks.images_of(plan)))
    else:
        found += checks.check_machine(plan, estimated, machine.machine(args.volume))
    found += check_captions(plan, None if args.cluster else args.volume)
    found += checks.check_hub(machine.hub(estimated.repositories))
    for check in found:
        print(f"{check.verdict:<5} {check.name:<18} {check.text}")
        if check.remedy:
            print(f"{'':<5} {'':<18} fix: {check.remedy}")
    failed = sum(check.verdict is Verdict.FAIL for check in found)
    unknown = sum(check.verdict is Verdict.UNKNOWN for check in found)
    print(f"{plan.name}: {len(found)} checks, {failed} failed, {unknown} unknown")
    return EXIT_USER_ERROR if failed else 0
