"""Generate docs/reference/ (fields, messages, commands, metrics, environment) and docs/sizing.md.

``python -m video2world_operator.codegen.reference`` writes the pages, ``--check`` fails if they are
not up to date.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from video2world_operator.api import crd_schema
from video2world_operator.api.conditions import Reason, Type
from video2world_operator.api.mutability import CHANGEABLE, IMMUTABLE, fixed
from video2world_operator.api.wording import Schema
from video2world_operator.cli import parser
from video2world_operator.codegen.markdown import HEAD, table
from video2world_operator.codegen.sizing import sizing_page
from video2world_operator.codegen.write import generate
from video2world_operator.controller.flags import FLAGS
from video2world_operator.controller.metrics import Metrics, ResourceMetrics
from video2world_operator.kube.workqueue import WorkQueue
from video2world_operator.reconcile import known_errors
from video2world_operator.reconcile.failures import REASONS
from video2world_operator.reconcile.reason_remedies import BY_REASON

__all__ = ["ENVIRONMENT", "FOLDER", "Variable", "main", "pages"]

FOLDER = Path(__file__).parents[3] / "docs" / "reference"


@dataclass(frozen=True)
class Variable:
    """An environment variable that one of our programs reads or sets."""

    name: str
    default: str
    meaning: str


USER, OPERATOR, PLAN, GROUP = (
    "Variables that you can set",
    "Variables that the operator reads",
    "Variables that the operator sets in every pod",
    "Variables that the operator sets in pods of the training group",
)
ENVIRONMENT: Mapping[str, tuple[Variable, ...]] = {
    USER: (
        Variable(
            "HF_TOKEN",
            "",
            "Hugging Face token, for gated weights and datasets. On a "
            "cluster it comes from spec.credentials.huggingFaceTokenSecret.",
        ),
        Variable(
            "HF_HOME",
            "~/.cache/huggingface",
            "Folder of the token and the cache of huggingface_hub.",
        ),
        Variable("HF_ENDPOINT", "https://huggingface.co", "Address of the Hub, or of a mirror."),
        Variable("HF_HUB_OFFLINE", "0", "1: use only files on disk."),
        Variable(
            "CAPTIONS_TOKEN",
            "",
            "Bearer token of the endpoint of dataset.captions. On a cluster it comes from "
            "spec.dataset.captions.tokenSecret.",
        ),
        Variable("KUBECONFIG", "~/.kube/config", "Cluster that v2w and the operator use."),
        Variable("CUDA_VISIBLE_DEVICES", "all", "GPUs that a local run may use."),
        Variable(
            "OMP_NUM_THREADS",
            "the cores, divided between the pods",
            "Threads of each local worker.",
        ),
        Variable(
            "GLOO_SOCKET_IFNAME",
            "lo in local runs of several pods",
            "Network interface of CPU collectives.",
        ),
        Variable("TRITON_CACHE_DIR", "~/.triton/cache", "Folder of compiled kernels."),
        Variable(
            "V2W_TRITON_CACHE",
            "",
            "Folder of compiled kernels in the images, which Triton starts from.",
        ),
        Variable(
            "CC",
            "gcc or clang",
            "C compiler for Triton; without one, the VAE uses slower operations.",
        ),
        Variable("UV_CACHE_DIR", "uv's own", "Cache folder of package installation."),
    ),
    OPERATOR: tuple(
        Variable(flag.variable, flag.default, flag.help[0].upper() + flag.help[1:] + ".")
        for flag in FLAGS
    ),
    PLAN: (
        Variable("V2W_STAGE", "", "Name of the stage."),
        Variable("V2W_RESOURCE", "", "Name of the resource."),
        Variable("V2W_INPUTS_HASH", "", "Hash of everything that the stage's result depends on."),
        Variable(
            "V2W_VOLUME_ID",
            "",
            "Expected identity of the volume; a worker that finds another one stops.",
        ),
        Variable(
            "V2W_LATER_STAGES",
            "",
            "Later stages with their hashes; the worker reports which "
            "of them are complete on the volume.",
        ),
        Variable("V2W_CONFIG_DIR", "/etc/video2world", "Folder of samples.json."),
        Variable(
            "V2W_WORKERS", "the pod's CPUs", "Videos that the dataset stage cuts in parallel."
        ),
        Variable("PYTHONUNBUFFERED", "1", "Log lines are written without delay."),
        Variable("HOME", "/tmp", "The root file system is read-only."),
        Variable(
            "USER", "video2world", "PyTorch names folders by it; the user of the pod has no name."
        ),
        Variable("JOB_COMPLETION_INDEX", "", "Index of the pod, set by the Job controller."),
    ),
    GROUP: (
        Variable("PET_NNODES", "", "Number of pods of the group (torchrun)."),
        Variable("PET_NPROC_PER_NODE", "", "Processes per pod (torchrun)."),
        Variable("PET_RDZV_BACKEND", "static", "Rendezvous backend (torchrun)."),
        Variable("PET_RDZV_ENDPOINT", "", "Rendezvous endpoint: pod 0 (torchrun)."),
        Variable("PET_RDZV_ID", "", "Name of the attempt (torchrun)."),
        Variable("PET_RDZV_CONF", "timeout=1800", "Rendezvous timeout (torchrun)."),
        Variable("PET_NODE_RANK", "the pod's index", "Rank of the node (torchrun)."),
        Variable("PET_MAX_RESTARTS", "0", "The operator restarts the group, not torchrun."),
        Variable("MASTER_ADDR", "", "Pod 0, for torch.distributed."),
        Variable("MASTER_PORT", "", "Port of pod 0, one above the rendezvous port."),
        Variable("RANK", "", "Set by torchrun for each process."),
        Variable("LOCAL_RANK", "", "Set by torchrun for each process."),
        Variable("WORLD_SIZE", "", "Set by torchrun for each process."),
        Variable("V2W_RUN_HASH", "", "Identifies a run that may resume from its checkpoints."),
        Variable("V2W_ATTEMPT", "", "Number of the attempt."),
        Variable(
            "V2W_SECONDS_BETWEEN_FAILURES",
            "by the number of GPUs",
            "Expected seconds between two failures, with checkpoint.everyIterations: Auto.",
        ),
        Variable("V2W_METRICS_PORT", "", "Port of rank 0's metrics for Prometheus."),
        Variable("NCCL_*, FI_*", "", "Follow from spec.training.interconnect."),
    ),
}


def pages() -> dict[Path, str]:
    """Return every page by its path."""
    made = {
        "fields.md": _fields(),
        "messages.md": _messages(),
        "commands.md": _commands(),
        "metrics.md": _metrics(),
        "environment.md": _environment(),
    }
    sizing = FOLDER.parent / "sizing.md"
    return {FOLDER / name: HEAD + text for name, text in made.items()} | {
        sizing: HEAD + sizing_page()
    }


# ---------------------------------------------------------------------- fields


def _fields() -> str:
    (version,) = crd_schema.build()["spec"]["versions"]
    schema = version["schema"]["openAPIV3Schema"]["properties"]
    text = "# Fields of Video2WorldPostTrain\n\n"
    text += "A resource of `video2world.dev/v1alpha1`; `[]` denotes the items of a list.\n"
    for part, title in (("spec", "desired state"), ("status", "observed state")):
        rows = list(_walk(schema[part], part))
        rows_text = table(("field", "type", "default", "meaning"), rows)
        text += f"\n## {part}: {title}\n\n{rows_text}"
    text += "\n## What can be changed once work has begun\n\n"
    of_spec, _ = fixed()
    text += "The API server refuses any other change: of " + ", ".join(f"`{n}`" for n in of_spec)
    text += " and the rest of `training`. "
    text += f"{', '.join(f'`{n}`' for n in IMMUTABLE)} cannot be changed before that either.\n\n"
    changes = ((f"`spec.{path}`", when) for path, when in CHANGEABLE.items())
    return text + table(("field", "when a change takes effect"), changes)


def _walk(schema: Schema, path: str) -> Iterator[tuple[str, ...]]:
    for name, field in schema.get("properties", {}).items():
        here = f"{path}.{name}"
        default = field.get("default")
        shown = "" if default is None or isinstance(default, dict) else f"`{_plain(default)}`"
        yield f"`{here}`", _type(field), shown, field.get("description", "")
        if field.get("type") == "array":
            yield from _walk(field["items"], f"{here}[]")
        else:
            yield from _walk(field, here)


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _type(field: Schema) -> str:
    if "enum" in field:
        return " \\| ".join(f"`{value}`" for value in field["enum"]).replace("\\|", "or")
    if field.get("type") == "array":
        return f"list of {_type(field['items'])}"
    mixed = field.get("x-kubernetes-int-or-string")
    if mixed and (word := re.fullmatch(r"\^(\w+)\$", field["pattern"])):
        return f"integer, {field['minimum']} to {field['maximum']}, or `{word[1]}`"
    kind = "quantity" if mixed else field.get("type", "any")
    low, high = field.get("minimum"), field.get("maximum")
    if low is not None or high is not None:
        above = "above " if field.get("exclusiveMinimum") else ""
        kind += (
            f", {above}{low if low is not None else 'any'} to {high if high is not None else 'any'}"
        )
    return str(kind)


# ---------------------------------------------------------------------- messages


def _messages() -> str:
    text = "# Conditions, reasons and messages\n\n"
    text += "`v2w explain NAME` explains them, with the remedy.\n\n## Conditions\n\n"
    text += table(("type", "true when"), ((f"`{t}`", t.meaning) for t in Type))
    text += "\n## Reasons\n\nWords in capitals are placeholders.\n\n"
    rows = (
        (f"`{reason}`", _named(reason.template), _named(BY_REASON.get(reason, "")))
        for reason in Reason
    )
    text += table(("reason", "message", "remedy"), rows)
    text += "\n## Why a training attempt ended\n\n"
    ended = {"Succeeded", "Suspended", "SpecChanged", "DeadlineExceeded", "Interrupted", "Killed"}
    text += (
        f"In `status.attempts[].reason`: {', '.join(f'`{r}`' for r in sorted(REASONS | ended))}.\n"
    )
    text += "\n## Causes that v2w explain recognizes\n\n"
    rules = ((_named(rule.what), _named(rule.remedy)) for rule in known_errors.KNOWN_ERRORS)
    text += table(("cause", "remedy"), (row for row in rules if row[0]))
    return text


def _named(text: str) -> str:
    if text == "{gpu_trouble}":
        return "Not enough GPUs are free, no node has so many, or the cluster has none."
    if text == "{gpu_remedy}":
        return "Wait, change spec.training.gpusPerNode and nodes, or add nodes."
    text = text.replace("{again}", known_errors.AGAIN_CLUSTER)
    text = text.replace("{{", "{").replace("}}", "}")
    return re.sub(r"\{(\w+)\}", lambda match: match[1].upper(), text)


# ---------------------------------------------------------------------- commands


def _commands() -> str:
    text = "# Commands of v2w\n"
    (commands,) = (
        action
        for action in parser.parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    for name, one in commands.choices.items():
        text += f"\n## v2w {name}\n\n{one.description}\n\n"
        rows = []
        for action in one._actions:
            if isinstance(action, argparse._HelpAction):
                continue
            flags = ", ".join(f"`{flag}`" for flag in action.option_strings)
            rows.append((flags or f"`{action.metavar}`", str(action.help or "")))
        text += table(("argument", "meaning"), rows)
        text += f"\n```console\n$ {str(one.epilog).removeprefix('example: ')}\n```\n"
    return text


# ---------------------------------------------------------------------- metrics


async def _idle(key: Any) -> None: ...


def _metrics() -> str:
    metrics = Metrics()
    metrics.attach(ResourceMetrics(list, WorkQueue(_idle), lambda: 0.0))
    labels = {metric._name: metric._labelnames for metric in metrics.counted}
    rows = []
    for family in metrics.registry.collect():
        if not family.name.startswith("video2world_"):
            continue
        names = labels.get(family.name) or next((s.labels for s in family.samples), {})
        suffix = "_total" if family.type == "counter" else ""
        shown = ", ".join(f"`{name}`" for name in names)
        rows.append((f"`{family.name}{suffix}`", family.type, shown, family.documentation))
    text = "# Metrics of the operator\n\n"
    text += "At `/metrics` on the port of the probes (8080), for Prometheus and OpenMetrics; only "
    text += "the leader has metrics of resources. No label holds a name that users choose. "
    text += "There are also `process_*` metrics of the process itself.\n\n"
    return text + table(("metric", "type", "labels", "meaning"), sorted(rows))


# ---------------------------------------------------------------------- environment


def _environment() -> str:
    text = "# Environment variables\n\n"
    text += "`V2W_*`, `PET_*` and `MASTER_*` of your shell are not passed to workers.\n"
    for title, variables in ENVIRONMENT.items():
        rows = ((f"`{v.name}`", v.default, v.meaning) for v in variables)
        text += f"\n## {title}\n\n{table(('variable', 'default', 'meaning'), rows)}"
    return text


def main(arguments: list[str] | None = None) -> int:
    """Write the pages, or with ``--check`` return 1 if one is not up to date."""
    flags = argparse.ArgumentParser(
        prog="video2world_operator.codegen.reference", description=__doc__
    )
    flags.add_argument("--check", action="store_true", help="only compare")
    return generate(pages(), check=flags.parse_args(arguments).check)


if __name__ == "__main__":
    sys.exit(main())
