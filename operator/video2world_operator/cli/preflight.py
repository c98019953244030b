"""Implement v2w preflight."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from video2world_common.exit_codes import EXIT_USER_ERROR
from video2world_operator.cli.common import UsageError, load_plan, require_cluster

if TYPE_CHECKING:
    from video2world_operator.plan.plan import Plan
    from video2world_operator.preflight.check import Check
    from video2world_operator.preflight.facts import Gpu
    from video2world_operator.preflight.requirements import ResourceEstimate
    from video2world_operator.preflight.time_estimate import TimeEstimate


def run_checks(args: argparse.Namespace) -> int:
    """Run the preflight checks, print them and the estimated times; returns 2 if one fails."""
    from video2world_operator.preflight.action_checks import check_proprioception, check_sequences
    from video2world_operator.preflight.caption_requests import check_captions
    from video2world_operator.preflight.check import Check, Verdict
    from video2world_operator.preflight.checks import check_hub
    from video2world_operator.preflight.dataset_checks import check_dataset, dataset_disk
    from video2world_operator.preflight.dataset_facts import dataset_facts
    from video2world_operator.preflight.machine import hub
    from video2world_operator.preflight.requirements import estimate
    from video2world_operator.preflight.time_estimate import estimate_time

    plan = load_plan(args)
    estimated = estimate(plan.resource)
    access = hub(estimated.repositories)
    dataset = dataset_facts(plan.resource, access, None if args.cluster else args.volume)
    more = dataset_disk(plan.resource, dataset)
    estimated = replace(estimated, disk=estimated.disk + more)
    found, gpus = (_cluster if args.cluster else _machine)(plan, estimated, args)
    found = [Check("spec", Verdict.OK, f"{args.file} is valid"), *found]
    found += check_captions(plan, None if args.cluster else args.volume)
    found += check_sequences(plan, None if args.cluster else args.volume)
    found += check_proprioception(plan.resource.spec, None if args.cluster else args.volume)
    found += check_hub(access)
    found += check_dataset(plan, dataset)
    times = estimate_time(plan.resource, gpus)
    if args.output == "json":
        print(json.dumps(_data(plan.name, found, times), indent=2))
    else:
        _print(plan.name, found, times)
    return EXIT_USER_ERROR if any(one.verdict is Verdict.FAIL for one in found) else 0


def _cluster(
    plan: Plan, estimated: ResourceEstimate, args: argparse.Namespace
) -> tuple[list[Check], list[Gpu]]:
    """Check the cluster; returns the checks and the GPUs that could train."""
    require_cluster()
    from video2world_operator.api.validation import load_manifest
    from video2world_operator.cli.cluster_run import preflight as cluster_facts
    from video2world_operator.preflight import checks, registry
    from video2world_operator.preflight.cluster_checks import check_cluster
    from video2world_operator.preflight.node_fit import training_gpus

    facts = cluster_facts(plan, load_manifest(args.file), args.namespace)
    try:
        found = list(check_cluster(plan, estimated, facts))
        gpus = training_gpus(plan, facts)
    except ValueError as error:  # the user's pod template is free-form
        raise UsageError(f"{args.file}: podTemplate: {error}") from None
    found += checks.check_images(plan, registry.pullable(checks.images_of(plan)))
    return found, gpus


def _machine(
    plan: Plan, estimated: ResourceEstimate, args: argparse.Namespace
) -> tuple[list[Check], list[Gpu]]:
    """Check this machine; returns the checks and its GPUs."""
    from video2world_operator.preflight import checks, machine

    here = machine.machine(args.volume)
    return list(checks.check_machine(plan, estimated, here)), list(here.gpus or ())


def _print(name: str, found: Sequence[Check], times: TimeEstimate | None) -> None:
    from video2world_operator.preflight.check import Verdict
    from video2world_operator.preflight.time_estimate import describe
    from video2world_operator.terminal import sanitize_terminal

    for check in found:
        print(f"{check.verdict:<5} {check.name:<18} {sanitize_terminal(check.text)}")
        if check.remedy:
            fix = "" if check.verdict is Verdict.UNKNOWN else "fix: "
            print(f"{'':<5} {'':<18} {fix}{sanitize_terminal(check.remedy)}")
    for title, text in describe(times):
        print(f"{'time' if title else '':<5} {title:<18} {text}")
    failed = sum(check.verdict is Verdict.FAIL for check in found)
    unknown = sum(check.verdict is Verdict.UNKNOWN for check in found)
    print(f"{name}: {len(found)} checks, {failed} failed, {unknown} unknown")


def _data(name: str, found: Sequence[Check], times: TimeEstimate | None) -> dict[str, object]:
    return {
        "name": name,
        "checks": [vars(check) for check in found],
        "time": None if times is None else times.data(),
    }
