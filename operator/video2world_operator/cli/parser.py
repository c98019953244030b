"""Define the command line of v2w."""

from __future__ import annotations

import argparse
from pathlib import Path

from video2world_operator import __version__

__all__ = ["parser"]


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
            "--volume",
            type=Path,
            default=Path("volume"),
            help="folder that stands for the persistent volume (./volume)",
        )

    def where_flags(to: argparse.ArgumentParser) -> None:
        to.add_argument("name", metavar="NAME", help="the resource's metadata.name")
        to.add_argument(
            "--volume",
            type=Path,
            help="look at the local run on this folder (default: ./volume if it is there, else "
            "the cluster)",
        )
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
