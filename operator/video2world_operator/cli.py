"""``v2w`` (and ``kubectl v2w``): check a resource, show its manifests, run it here, look at it."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from . import __version__

if TYPE_CHECKING:  # at run time imported where needed, so that help comes at once
    from .explain import Facts
    from .plan import Plan
    from .view import Snapshot

__all__ = ["main", "parser"]

EXIT_USER_ERROR = 2
EVERY = 2.0  # seconds between two looks of --watch
ENDED = ("Succeeded", "Failed", "Suspended")


class _Mistake(Exception):
    """The user's mistake, for one line on stderr."""


def parser() -> argparse.ArgumentParser:
    """All commands and flags."""
    top = argparse.ArgumentParser(
        prog="v2w",
        description="Post-train Cosmos-Predict2 Video2World models from one resource file.",
        epilog="example: v2w run -f manifests/samples/demo.yaml --volume ./volume",
    )
    top.add_argument("--version", action="version", version=f"v2w {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str, example: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name, help=text, description=text, epilog=f"example: v2w {example}"
        )

    def file_flag(to: argparse.ArgumentParser) -> None:
        to.add_argument("-f", "--file", required=True, type=Path, help="the resource's YAML file")

    def volume_flag(to: argparse.ArgumentParser) -> None:
        to.add_argument(
            "--volume", type=Path, default=Path("volume"),
            help="folder that stands for the persistent volume (./volume)",
        )  # fmt: skip

    def where_flags(to: argparse.ArgumentParser) -> None:
        to.add_argument("name", metavar="NAME", help="the resource's metadata.name")
        to.add_argument(
            "--volume", type=Path,
            help="look at the local run on this folder (default: ./volume if it is there, else "
            "the cluster)",
        )  # fmt: skip
        cluster_flag(to, "look at the cluster, in this namespace")

    def cluster_flag(to: argparse.ArgumentParser, text: str) -> None:
        to.add_argument("-n", "--namespace", help=f"{text} (default: the kubeconfig's)")

    one = command("validate", "Check a resource file.", "validate -f posttrain.yaml")
    file_flag(one)
    one = command(
        "render",
        "Print the Kubernetes manifests of a resource, as the operator applies them.",
        "render -f posttrain.yaml | kubectl apply --dry-run=server -f -",
    )
    file_flag(one)
    one.add_argument("-n", "--namespace", default="default", help="namespace (default)")
    one = command(
        "run",
        "Carry a resource out on this machine. Finished stages are skipped, training resumes.",
        "run -f posttrain.yaml --volume ./volume",
    )
    file_flag(one)
    volume_flag(one)
    one.add_argument(
        "--dry-run", action="store_true", help="only say which stages would run, and why"
    )
    one.add_argument("-v", "--verbose", action="store_true", help="show every line of the workers")
    one = command(
        "preflight",
        "Check before a run that it will find what it needs, here or on a cluster.",
        "preflight -f posttrain.yaml --cluster",
    )
    file_flag(one)
    volume_flag(one)
    one.add_argument("--cluster", action="store_true", help="look at the kubeconfig's cluster")
    cluster_flag(one, "with --cluster: the namespace")
    one = command("status", "Show how far a resource is.", "status demo --watch")
    where_flags(one)
    one.add_argument("-o", "--output", choices=("text", "json"), default="text")
    one.add_argument("-w", "--watch", action="store_true", help="go on until its end")
    one = command(
        "explain", "Say why a resource does not get on, and what to do.", "explain agibot-2b"
    )
    where_flags(one)
    one = command("logs", "Print the logs of a stage.", "logs demo --stage train --rank 1")
    where_flags(one)
    one.add_argument(
        "--stage",
        help="download, dataset, embeddings, latents, train, inference; or "
        "samples, of which --attempt is the iteration",
    )
    one.add_argument("--rank", type=int, default=0, help="node of the train group (0)")
    one.add_argument("--attempt", type=int, help="default: the last")
    one.add_argument("--follow", action="store_true", help="go on until its end")
    one = command("checkpoints", "List the checkpoints of a run.", "checkpoints demo")
    where_flags(one)
    for name, text in (
        ("suspend", "Save a checkpoint and free the GPUs of a resource in the cluster."),
        ("resume", "Let a suspended resource in the cluster go on."),
    ):
        one = command(name, text, f"{name} agibot-2b")
        one.add_argument("name", metavar="NAME", help="the resource's metadata.name")
        cluster_flag(one, "the resource's namespace")
    return top


def _remote(args: argparse.Namespace) -> bool:
    """Whether the cluster is meant, not a folder: -n says so, or that there is no folder."""
    if args.volume is not None:
        return False
    if args.namespace or Path(sys.argv[0]).name.startswith("kubectl-") or not _DEFAULT.is_dir():
        return True
    args.volume = _DEFAULT
    return False


_DEFAULT = Path("volume")
_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")


def _need_a_cluster() -> None:
    """Say at once that none is configured: the client that would takes a second to load."""
    given = os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")
    places = [_ACCOUNT, *(Path(one) for one in given.split(os.pathsep) if one)]
    if not any(place.is_file() for place in places):
        from .errors import NO_CLUSTER

        raise _Mistake(NO_CLUSTER)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``v2w``; returns the exit code (2: the user's mistake)."""
    args = parser().parse_args(argv)
    try:
        if args.command in ("suspend", "resume") or (
            args.command in ("status", "explain", "logs", "checkpoints") and _remote(args)
        ):
            _need_a_cluster()
            from .remote import RemoteFailed

            try:
                return int(globals()[f"_remote_{args.command}"](args))
            except RemoteFailed as error:
                raise _Mistake(str(error)) from None
        return int(globals()[f"_{args.command}"](args))
    except _Mistake as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except BrokenPipeError:  # the reader of a pipe has seen enough
        sys.stderr.close()
        return 0
    except KeyboardInterrupt:
        return 130


def _plan(args: argparse.Namespace) -> Plan:
    from .api import load_resource
    from .errors import InvalidResource
    from .plan import make_plan

    try:
        return make_plan(load_resource(args.file), getattr(args, "namespace", None) or "default")
    except InvalidResource as error:
        lines = "\n  ".join(map(str, error.problems))
        raise _Mistake(f"{args.file} is not valid:\n  {lines}") from None
    except OSError as error:
        raise _Mistake(f"{args.file} cannot be read: {error.strerror}") from None


def _validate(args: argparse.Namespace) -> int:
    plan = _plan(args)
    stages = " -> ".join(stage.name for stage in plan.stages)
    print(f"{args.file}: {plan.name} is valid ({stages})")
    return 0


def _render(args: argparse.Namespace) -> int:
    from .plan import to_yaml

    sys.stdout.write(to_yaml(_plan(args)))
    return 0


def _preflight(args: argparse.Namespace) -> int:
    from . import preflight, probes, registry
    from .api import load_manifest
    from .needs import needs

    plan = _plan(args)
    need = needs(plan.resource)
    checks = [preflight.Check("spec", preflight.Verdict.OK, f"{args.file} is valid")]
    if args.cluster:
        _need_a_cluster()
        from .remote import RemoteFailed
        from .remote import preflight as look

        try:
            facts = look(plan, load_manifest(args.file), args.namespace)
        except RemoteFailed as error:
            raise _Mistake(str(error)) from None
        try:
            checks += preflight.check_cluster(plan, need, facts)
        except ValueError as error:  # a pod template of the user's own can be anything
            raise _Mistake(f"{args.file}: podTemplate: {error}") from None
        checks += preflight.check_images(plan, registry.pullable(preflight.images_of(plan)))
    else:
        checks += preflight.check_machine(plan, need, probes.machine(args.volume))
    checks += preflight.check_hub(probes.hub(need.repositories))
    for check in checks:
        print(f"{check.verdict:<5} {check.name:<18} {check.text}")
        if check.remedy:
            print(f"{'':<5} {'':<18} do: {check.remedy}")
    failed = sum(check.verdict is preflight.Verdict.FAIL for check in checks)
    open_ = sum(check.verdict is preflight.Verdict.UNKNOWN for check in checks)
    print(f"{plan.name}: {len(checks)} checks, {failed} failed, {open_} could not be made")
    return EXIT_USER_ERROR if failed else 0


def _run(args: argparse.Namespace) -> int:
    from .local import LocalEngine, RunRefused
    from .terminal import Display

    plan = _plan(args)
    if args.dry_run:
        _dry_run(plan, args.volume.resolve())
        return 0
    try:
        return LocalEngine(
            plan, args.volume, Display(sys.stdout, verbose=args.verbose), args.file
        ).run()
    except RunRefused as error:
        raise _Mistake(str(error)) from None
    except OSError as error:
        raise _Mistake(f"--volume {args.volume}: {error}") from None


def _dry_run(plan: Plan, volume: Path) -> None:
    """Print for each stage whether it would run, why, and its command."""
    from .judgement import judge, root_of
    from .terminal import harmless

    judged, first = judge(root_of(plan, volume), plan.stages), ""
    for stage in plan.stages:
        found = judged[stage.name]
        word, why = ("skip" if found.done else "run"), found.why
        if found.done and first:
            word, why = "skip?", f"done; checked again once {first} has run"
        first = first or ("" if found.done else stage.name)
        note = f"; {found.note}" if found.note else ""
        print(f"{word:<6}{stage.name:<11} {harmless(why + note)}")
        print(f"{'':<17} {' '.join(stage.argv)}")


def _status(args: argparse.Namespace) -> int:
    from .local_view import NotFound, snapshot

    show = _shower(args)
    while True:
        try:
            seen = snapshot(args.volume, args.name)
        except NotFound as error:
            raise _Mistake(str(error)) from None
        show(seen)
        if not args.watch or seen.gone or seen.status.get("phase") in ENDED:
            return 0
        time.sleep(EVERY)


def _remote_status(args: argparse.Namespace) -> int:
    from .remote import watch

    watch(args.name, args.namespace, _shower(args), EVERY if args.watch else None)
    return 0


def _shower(args: argparse.Namespace) -> Callable[[Snapshot], None]:
    """Shows what it is given: as JSON, or as a tree that stays in its place on a terminal."""
    from .terminal import Screen
    from .view import tree

    screen, before = Screen(sys.stdout, live=args.watch), list[object]()

    def show(seen: Snapshot) -> None:
        changed = before != [seen.status, seen.note]
        before[:] = seen.status, seen.note
        if args.output == "json":
            if changed:
                print(json.dumps(seen.status, indent=2), flush=True)
            return
        plain = "utf" not in (sys.stdout.encoding or "").lower()
        screen.show(tree(seen, datetime.now(UTC), plain=plain), changed=changed)

    return show


def _explain(args: argparse.Namespace) -> int:
    from .explain import Facts
    from .local_view import NotFound, snapshot

    try:
        return _tell(snapshot(args.volume, args.name), Facts())
    except NotFound as error:
        raise _Mistake(str(error)) from None


def _remote_explain(args: argparse.Namespace) -> int:
    from .remote import observe

    return _tell(*observe(args.name, args.namespace))


def _tell(seen: Snapshot, around: Facts) -> int:
    """Print the causes; the exit code is 0, found or not."""
    from .explain import explain
    from .terminal import harmless

    status = seen.status
    causes = explain(seen, around, datetime.now(UTC))
    message = "" if causes else status.get("message", "")  # a cause says it better
    print(harmless(f"{seen.name}: {status.get('phase', 'Pending')}  {message}".rstrip()))
    if not causes:
        print("nothing holds it up")
    for cause in causes:
        print(f"why   {harmless(cause.what)}")
        print(f"do    {harmless(cause.remedy)}.")
        said = [line for line in cause.evidence.splitlines() if line and line != cause.what]
        for number, line in enumerate(said):
            print(f"{'' if number else 'told':<5} {harmless(line)}")
    return 0


def _remote_logs(args: argparse.Namespace) -> int:
    from .remote import logs

    logs(
        args.name, args.namespace, stage=args.stage, rank=args.rank, attempt=args.attempt,
        follow=args.follow,
    )  # fmt: skip
    return 0


def _remote_checkpoints(args: argparse.Namespace) -> int:
    from .remote import checkpoints

    newest, attempts = checkpoints(args.name, args.namespace)
    if not newest:
        print(f"{args.name}: no checkpoint yet")
        return 0
    print(f"{newest['iteration']:>9}  {newest.get('time', '')}  {newest.get('path', '')}  latest")
    for attempt in attempts:
        span = f"{attempt['startIteration']} to {attempt['endIteration']}"
        print(f"  attempt {attempt['number']}: iterations {span}  {attempt.get('reason', '')}")
    return 0


def _remote_suspend(args: argparse.Namespace) -> int:
    from .remote import suspend

    changed = suspend(args.name, args.namespace, True)
    print(f"{args.name}: {'saves its work and frees its GPUs' if changed else 'is suspended'}")
    return 0


def _remote_resume(args: argparse.Namespace) -> int:
    from .remote import suspend

    changed = suspend(args.name, args.namespace, False)
    print(f"{args.name}: {'goes on' if changed else 'is not suspended'}")
    return 0


def _logs(args: argparse.Namespace) -> int:
    from .local_view import NotFound, print_log

    try:
        print_log(
            args.volume, args.name, stage=args.stage, rank=args.rank, attempt=args.attempt,
            follow=args.follow, out=sys.stdout,
        )  # fmt: skip
    except NotFound as error:
        raise _Mistake(str(error)) from None
    return 0


def _checkpoints(args: argparse.Namespace) -> int:
    from .local_view import NotFound, checkpoints
    from .progress import duration

    try:
        for folder, found in checkpoints(args.volume, args.name):
            print(folder)
            print(f"  {'ITERATION':>9}  {'SIZE':>10}  {'AGE':>7}  STATE")
            for one in found:
                size, age = f"{one.size / 2**20:.1f} MiB", duration(one.age)
                mark = "  latest" if one.latest else ""
                state = f"{one.damage or 'whole'}{mark}"
                print(f"  {one.iteration:>9}  {size:>10}  {age:>7}  {state}")
    except NotFound as error:
        raise _Mistake(str(error)) from None
    return 0


if __name__ == "__main__":
    sys.exit(main())
