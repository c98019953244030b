"""Define the command line of v2w."""

from __future__ import annotations

import argparse
from pathlib import Path

from video2world_operator import __version__

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

    def command(name: str, text: str, example: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name, help=text, description=text, epilog=f"example: v2w {example}"
        )

    def file_flag(to: argparse.ArgumentParser) -> None:
        to.add_argument("-f", "--file", required=True, type=Path, help="YAML file of the resource")

    def volume_flag(to: argparse.ArgumentParser) -> None:
        to.add_argument(
            "--volume",
            type=Path,
            default=Path("volume"),
            help="folder to use as the persistent volume (default: ./volume)",
        )

    def where_flags(to: argparse.ArgumentParser) -> None:
        to.add_argument("name", metavar="NAME", help="metadata.name of the resource")
        to.add_argument(
            "--volume",
            type=Path,
            help="read the local run on this folder (default: ./volume if it exists, else the "
            "cluster)",
        )
        cluster_flag(to, "read the resource from the cluster, in this namespace")

    def cluster_flag(to: argparse.ArgumentParser, text: str) -> None:
        to.add_argument("-n", "--namespace", help=f"{text} (default: that of the kubeconfig)")

    one = command("validate", "Check a resource file.", "validate -f posttrain.yaml")
    file_flag(one)
    one = command(
        "render",
        "Print the Kubernetes manifests that the operator applies for a resource.",
        "render -f posttrain.yaml | kubectl apply --dry-run=server -f -",
    )
    file_flag(one)
    one.add_argument("-n", "--namespace", default="default", help="namespace (default: default)")
    one = command(
        "run",
        "Run a resource on this machine. Finished stages are skipped and training resumes.",
        "run -f posttrain.yaml --volume ./volume",
    )
    file_flag(one)
    volume_flag(one)
    one.add_argument(
        "--dry-run", action="store_true", help="only show which stages would run, and why"
    )
    one.add_argument(
        "-v", "--verbose", action="store_true", help="print the full output of the workers"
    )
    one = command(
        "preflight",
        "Check disk, memory, GPUs, licences and the cluster before a run.",
        "preflight -f posttrain.yaml --cluster",
    )
    file_flag(one)
    volume_flag(one)
    one.add_argument(
        "--cluster",
        action="store_true",
        help="check the kubeconfig's cluster instead of this machine",
    )
    cluster_flag(one, "namespace, with --cluster")
    one = command("status", "Show the progress of a resource.", "status demo --watch")
    where_flags(one)
    one.add_argument("-o", "--output", choices=("text", "json"), default="text")
    one.add_argument(
        "-w", "--watch", action="store_true", help="update until the resource has ended"
    )
    one = command(
        "explain", "Explain why a resource is stuck and how to fix it.", "explain agibot-2b"
    )
    where_flags(one)
    one = command("logs", "Print the logs of a stage.", "logs demo --stage train --rank 1")
    where_flags(one)
    one.add_argument(
        "--stage",
        help="download, dataset, embeddings, latents, train, inference or samples (default: the "
        "running or last one)",
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
    one = command("checkpoints", "List the checkpoints of a run.", "checkpoints demo")
    where_flags(one)
    for name, text in (
        ("suspend", "Save a checkpoint and release the GPUs of a resource in the cluster."),
        ("resume", "Resume a suspended resource in the cluster."),
    ):
        one = command(name, text, f"{name} agibot-2b")
        one.add_argument("name", metavar="NAME", help="metadata.name of the resource")
        cluster_flag(one, "namespace of the resource")
    return top
