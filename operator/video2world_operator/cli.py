"""``v2w`` (and ``kubectl v2w``): check a resource, show its manifests, run it here, look at it."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__

if TYPE_CHECKING:  # at run time imported where needed, so that help comes at once
    from .plan import Plan

__all__ = ["main", "parser"]

EXIT_USER_ERROR = 2
PARTS = ("model", "optim", "scheduler", "trainer")


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
    one.add_argument("--dry-run", action="store_true", help="only list what would run")
    one.add_argument("-v", "--verbose", action="store_true", help="show every line of the workers")
    one = command("status", "Show how far a resource is.", "status demo --volume ./volume")
    where_flags(one)
    one.add_argument("-o", "--output", choices=("text", "json"), default="text")
    one.add_argument("-w", "--watch", action="store_true", help="go on until its end")
    one = command("logs", "Print the logs of a stage.", "logs demo --stage train --rank 1")
    where_flags(one)
    one.add_argument("--stage", help="download, dataset, embeddings, latents, train or inference")
    one.add_argument("--rank", type=int, default=0, help="node of the train group (0)")
    one.add_argument("--attempt", type=int, help="default: the last")
    one.add_argument("--follow", action="store_true", help="go on until interrupted")
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


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``v2w``; returns the exit code (2: the user's mistake)."""
    args = parser().parse_args(argv)
    try:
        if args.command in ("suspend", "resume") or (
            args.command in ("status", "logs", "checkpoints") and _remote(args)
        ):
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
        return make_plan(load_resource(args.file), getattr(args, "namespace", "default"))
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


def _run(args: argparse.Namespace) -> int:
    from .local import LocalEngine, RunRefused, StateFolder
    from .terminal import Display

    plan = _plan(args)
    if args.dry_run:
        state = StateFolder(args.volume.resolve(), plan.name)
        for stage in plan.stages:
            word = "skip" if state.finished(stage) else "run"
            print(f"{word:<5}{stage.name:<11} {' '.join(stage.argv)}")
        return 0
    try:
        return LocalEngine(
            plan, args.volume, Display(sys.stdout, verbose=args.verbose), args.file
        ).run()
    except RunRefused as error:
        raise _Mistake(str(error)) from None
    except OSError as error:
        raise _Mistake(f"--volume {args.volume}: {error}") from None


def _state(args: argparse.Namespace) -> dict[str, Any]:
    from .local import StateFolder

    state = StateFolder(args.volume.resolve(), args.name).read()
    if not state:
        known = sorted(path.parent.name for path in args.volume.glob(".video2world/*/state.json"))
        listed = f"; there is {', '.join(known)}" if known else ""
        raise _Mistake(f"{args.name}: no run of this name on {args.volume}{listed}")
    return state


def _status(args: argparse.Namespace) -> int:
    while True:
        status = _state(args)["status"]
        _show(args, status)
        if not args.watch or status.get("phase") in ("Succeeded", "Failed", "Suspended"):
            return 0
        time.sleep(2)


def _remote_status(args: argparse.Namespace) -> int:
    from .remote import status, watch

    if args.watch:
        watch(args.name, args.namespace, lambda now: _show(args, now))
    else:
        _show(args, status(args.name, args.namespace))
    return 0


def _show(args: argparse.Namespace, status: Mapping[str, Any]) -> None:
    from .progress import duration

    if args.output == "json":
        print(json.dumps(status, indent=2))
        return
    if not status:
        print(f"{args.name}: Pending  no operator has looked at it yet; is one running?")
        return
    print(f"{args.name}: {status.get('phase', 'Unknown')}  {status.get('message', '')}".rstrip())
    for stage in status.get("stages", []):
        count = f"{stage['done']}/{stage['total']}" if stage.get("total") else ""
        print(f"  {stage['name']:<11} {stage['state']:<10} {count}".rstrip())
    if progress := status.get("progress"):
        words = [f"{progress['iteration']}/{progress['iterations']}"]
        if (loss := progress.get("loss")) is not None:
            words.append(f"loss {loss:.4f}")
        if eta := progress.get("etaSeconds"):
            words.append(f"{duration(eta)} left")
        print(f"  progress    {'  '.join(words)}")
    if checkpoint := status.get("checkpoint"):
        path = checkpoint.get("path", "")
        print(f"  checkpoint  {checkpoint['iteration']}  {path}".rstrip())
    print(f"  restarts    {status.get('restarts', 0)}")
    for attempt in status.get("attempts", [])[:-1]:
        if attempt.get("endTime"):
            why = ": ".join(filter(None, (attempt["reason"], attempt["message"])))
            print(f"    attempt {attempt['number']}: {why}")
    if gpu := status.get("gpuSeconds"):
        words = [f"{duration(gpu[kind])} {kind}" for kind in ("useful", "lost", "idle")]
        print(f"  GPU time    {', '.join(words)}")


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
    folder = args.volume / ".video2world" / args.name / "logs"
    names = {}
    for path in folder.glob("*.log"):
        if match := re.fullmatch(r"([a-z]+)-(\d+)-(\d+)", path.stem):
            names[match[1], int(match[2]), int(match[3])] = path
    if not names:
        _state(args)  # says so if there is no such run
        raise _Mistake(f"{args.name}: there are no logs in {folder} yet")
    stage = args.stage or max(names, key=lambda key: names[key].stat().st_mtime)[0]
    attempts = [attempt for name, attempt, _ in names if name == stage]
    if not attempts:
        known = ", ".join(sorted({name for name, _, _ in names}))
        raise _Mistake(f"--stage {stage}: there is no log of it; there is {known}")
    key = (stage, args.attempt or max(attempts), args.rank)
    if key not in names:
        raise _Mistake(f"there is no log of {stage}, attempt {key[1]}, rank {args.rank}")
    with names[key].open("r", encoding="utf-8", errors="replace") as stream:
        while True:
            if text := stream.read(1 << 16):
                sys.stdout.write(text)
            elif not args.follow:
                return 0
            else:
                sys.stdout.flush()
                time.sleep(0.5)


def _checkpoints(args: argparse.Namespace) -> int:
    from .progress import duration

    found = sorted(args.volume.glob(f"checkpoints/*/*/{args.name}/checkpoints"))
    if not found:
        raise _Mistake(f"{args.name}: no checkpoints on {args.volume}; is NAME its job name?")
    for folder in found:
        latest_file = folder / "latest_checkpoint.txt"
        latest = latest_file.read_text().strip() if latest_file.exists() else ""
        print(folder)
        print(f"  {'ITERATION':>9}  {'SIZE':>10}  {'AGE':>7}  STATE")
        for model in sorted((folder / "model").glob("iter_*.pt")):
            files = [folder / part / model.name for part in PARTS]
            size = sum(path.stat().st_size for path in files if path.exists())
            age = datetime.now(UTC).timestamp() - model.stat().st_mtime
            state = _torn(folder, model.name) or "whole"
            mark = "  latest" if model.name == latest else ""
            number = int(model.stem.removeprefix("iter_"))
            print(f"  {number:>9}  {size / 2**20:>6.1f} MiB  {duration(age):>7}  {state}{mark}")
    return 0


def _torn(folder: Path, name: str) -> str:
    """What is wrong with a checkpoint's files, by their recorded sizes; empty if nothing is."""
    try:
        record = json.loads((folder / "trainer" / name).with_suffix(".json").read_text())
    except (OSError, ValueError):
        record = {}
    for part in PARTS:
        path = folder / part / name
        if not path.exists():
            return f"torn: {part} is missing"
        wanted = record.get(part, {}).get("bytes")
        if wanted is not None and path.stat().st_size != wanted:
            return f"torn: {part} has {path.stat().st_size} bytes instead of {wanted}"
    return ""


if __name__ == "__main__":
    sys.exit(main())
