"""Define the command line of v2w."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from video2world_operator import __version__

if TYPE_CHECKING:
    Subparsers: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]

__all__ = ["parser"]


def parser() -> argparse.ArgumentParser:
    """Build the parser with all commands and flags."""
    top = argparse.ArgumentParser(
        prog="v2w",
        description="Post-train Cosmos-Predict2 Video2World models from one resource file.",
        epilog="example: v2w run -f manifests/samples/demo.yaml --volume ./volume",
    )
    top.add_argument("--version", action="version", version=f"v2w {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_file_commands(commands)
    _add_read_commands(commands)
    _add_suspend_commands(commands)
    one = _add(
        commands,
        "completion",
        "Print a script that completes commands and flags in your shell.",
        "completion bash > ~/.local/share/bash-completion/completions/v2w",
    )
    one.add_argument("shell", metavar="SHELL", choices=("bash", "zsh"), help="bash or zsh")
    return top


def _add(commands: Subparsers, name: str, text: str, example: str) -> argparse.ArgumentParser:
    return commands.add_parser(name, help=text, description=text, epilog=f"example: v2w {example}")


def _add_file_commands(commands: Subparsers) -> None:
    """Add the commands that write or take a resource file."""
    one = _add(
        commands,
        "init",
        "Write a commented resource file: asks five questions, of which flags answer some or all.",
        "init --data lerobot --location my-team/cups --camera top --size 2B --iterations 1000",
    )
    one.add_argument(
        "--data", help="lerobot, videos, agibot, or prepared (a folder in the guide's layout)"
    )
    one.add_argument(
        "--location", help="repository on the Hub, folder on the volume, or AgiBotWorld's tasks"
    )
    one.add_argument("--camera", help="camera of a LeRobotDataset (default: the only one)")
    one.add_argument("--size", help="Tiny, 2B or 14B (default: 2B)")
    one.add_argument("--iterations", help="optimizer steps (default: 1000)")
    one.add_argument("--name", help="name of the resource (default: from the location)")
    one.add_argument("-o", "--output", type=Path, help="file to write (default: NAME.yaml)")
    one.add_argument("--force", action="store_true", help="replace the file if it exists")
    one = _add(commands, "validate", "Check a resource file.", "validate -f posttrain.yaml")
    _file_flag(one)
    one = _add(
        commands,
        "render",
        "Print the Kubernetes manifests that the operator applies for a resource.",
        "render -f posttrain.yaml | kubectl apply --dry-run=server -f -",
    )
    _file_flag(one)
    one.add_argument("-n", "--namespace", default="default", help="namespace (default: default)")
    one = _add(
        commands,
        "run",
        "Run a resource on this machine. Finished stages are skipped and training resumes.",
        "run -f posttrain.yaml --volume ./volume",
    )
    _file_flag(one)
    _volume_flag(one)
    one.add_argument(
        "--dry-run", action="store_true", help="only show which stages would run, and why"
    )
    one.add_argument(
        "-v", "--verbose", action="store_true", help="print the full output of the workers"
    )
    one = _add(
        commands,
        "preflight",
        "Check disk, memory, GPUs, licences and the cluster before a run, and estimate its time.",
        "preflight -f posttrain.yaml --cluster",
    )
    _file_flag(one)
    _volume_flag(one)
    one.add_argument(
        "--cluster",
        action="store_true",
        help="check the kubeconfig's cluster instead of this machine",
    )
    _namespace_flag(one, "namespace, with --cluster")
    one.add_argument("-o", "--output", choices=("text", "json"), default="text")


def _add_read_commands(commands: Subparsers) -> None:
    """Add the commands that read a run, on a folder or in the cluster."""
    one = _add(commands, "status", "Show the progress of a resource.", "status demo --watch")
    _run_flags(one)
    one.add_argument("-o", "--output", choices=("text", "json"), default="text")
    one.add_argument(
        "-w", "--watch", action="store_true", help="update until the resource has ended"
    )
    one = _add(
        commands,
        "explain",
        "Explain why a resource is stuck and how to fix it.",
        "explain agibot-2b",
    )
    _run_flags(one)
    one = _add(commands, "logs", "Print the logs of a stage.", "logs demo --stage train --rank 1")
    _run_flags(one)
    one.add_argument(
        "--stage",
        help="download, dataset, captions, embeddings, latents, train, inference or samples "
        "(default: the running or last one)",
    )
    one.add_argument(
        "--rank", type=int, default=0, help="index of the pod within its stage (default: 0)"
    )
    one.add_argument(
        "--attempt",
        type=int,
        help="number of the attempt, for samples the iteration (default: the last)",
    )
    one.add_argument("--follow", action="store_true", help="keep printing until the log ends")
    one = _add(commands, "checkpoints", "List the checkpoints of a run.", "checkpoints demo")
    _run_flags(one)
    one = _add(
        commands,
        "doctor",
        "Write an archive for a bug report: versions, state, causes, events and the ends of the "
        "logs, without secrets.",
        "doctor agibot-2b",
    )
    _run_flags(one, optional=True)
    one.add_argument(
        "-o", "--output", type=Path, help="archive to write (default: v2w-doctor-NAME.zip)"
    )


def _add_suspend_commands(commands: Subparsers) -> None:
    """Add the commands that change a resource in the cluster."""
    for name, text in (
        ("suspend", "Save a checkpoint and release the GPUs of a resource in the cluster."),
        ("resume", "Resume a suspended resource in the cluster."),
    ):
        one = _add(commands, name, text, f"{name} agibot-2b")
        one.add_argument("name", metavar="NAME", help="metadata.name of the resource")
        _namespace_flag(one, "namespace of the resource")


def _file_flag(to: argparse.ArgumentParser) -> None:
    to.add_argument("-f", "--file", required=True, type=Path, help="YAML file of the resource")


def _volume_flag(to: argparse.ArgumentParser) -> None:
    to.add_argument(
        "--volume",
        type=Path,
        default=Path("volume"),
        help="folder to use as the persistent volume (default: ./volume)",
    )


def _run_flags(to: argparse.ArgumentParser, *, optional: bool = False) -> None:
    to.add_argument(
        "name",
        metavar="NAME",
        nargs="?" if optional else None,
        help=f"metadata.name of the resource{' (default: this machine only)' if optional else ''}",
    )
    to.add_argument(
        "--volume",
        type=Path,
        help="read the local run on this folder (default: ./volume if it exists, else the cluster)",
    )
    _namespace_flag(to, "read the resource from the cluster, in this namespace")


def _namespace_flag(to: argparse.ArgumentParser, text: str) -> None:
    to.add_argument("-n", "--namespace", help=f"{text} (default: that of the kubeconfig)")
