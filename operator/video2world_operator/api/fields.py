"""Define the field types that the spec is made of: bounded text, names, quantities, paths."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from video2world_operator.api.constants import MAX_NAME

__all__ = [
    "RESOURCE_NAME_EXPECTED",
    "RESOURCE_NAME_PATTERN",
    "ActionColumn",
    "ActionName",
    "ActionSequence",
    "AnnotationKey",
    "ApiModel",
    "Checkpoint",
    "CheckpointName",
    "ClipName",
    "Count",
    "DNSName",
    "EnvVarName",
    "EpisodeID",
    "EpisodeRange",
    "FeatureKey",
    "FolderName",
    "FreeObject",
    "Iteration",
    "LabelKey",
    "LabelValue",
    "NamespaceName",
    "OutputName",
    "Override",
    "Quantity",
    "QueueName",
    "RepoID",
    "ResourceName",
    "Revision",
    "SecretKeyName",
    "Text",
    "VolumePath",
    "VolumeSize",
    "reject_boolean",
    "with_example",
]


class ApiModel(BaseModel):
    """Base of all models of the API: camelCase in YAML, unknown fields refused."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        extra="forbid",
        populate_by_name=True,
        defer_build=True,  # validators are built on first use, which keeps imports fast
    )


def with_example(example: dict[str, Any]) -> ConfigDict:
    """Return the configuration of a model with an example, which error messages show."""
    return ConfigDict(json_schema_extra={"examples": [example]})


def reject_boolean(value: object) -> object:
    """Refuse true and false, which Python takes for 1 and 0."""
    if isinstance(value, bool):
        raise ValueError("not a number")
    return value


def _text(maximum: int, expected: str, example: str, pattern: str | None = None) -> Any:
    """Bound a text; ``expected`` describes it in error messages and in the reference."""
    return Field(
        min_length=1,
        max_length=maximum,
        pattern=pattern,
        examples=[example],
        json_schema_extra={"expected": expected},
    )


Text = Annotated[str, _text(253, "1 to 253 characters", "ghcr.io/mine/trainer:1.0")]
FreeObject = dict[str, Any]

# --------------------------------------------------------------------- names of Kubernetes

_LABEL = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_SUBDOMAIN = rf"^{_LABEL}(\.{_LABEL})*$"
_SUBDOMAIN_EXPECTED = (
    "lowercase letters, digits, dashes and dots, starting and ending with a letter or digit"
)
RESOURCE_NAME_PATTERN = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
RESOURCE_NAME_EXPECTED = (
    f"lowercase letters, digits and dashes, starting with a letter, at most {MAX_NAME} characters"
)
ResourceName = Annotated[
    str, _text(MAX_NAME, RESOURCE_NAME_EXPECTED, "agibot-2b", RESOURCE_NAME_PATTERN)
]
NamespaceName = Annotated[
    str,
    _text(
        63, "lowercase letters, digits and dashes, at most 63 characters", "my-team", rf"^{_LABEL}$"
    ),
]
DNSName = Annotated[str, _text(253, _SUBDOMAIN_EXPECTED, "my-team", _SUBDOMAIN)]
QueueName = Annotated[  # at most 63, because it becomes the value of a label
    str, _text(63, f"{_SUBDOMAIN_EXPECTED}, at most 63 characters", "my-team", _SUBDOMAIN)
]
# As the API server accepts it: an optional DNS name with a slash, then the name itself.
_LABEL_KEY = (
    r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?"
    r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"
)
LabelKey = Annotated[
    str, _text(316, "the key of a Kubernetes label", "topology.kubernetes.io/rack", _LABEL_KEY)
]
AnnotationKey = Annotated[
    str,
    _text(
        316,
        "the key of a Kubernetes annotation",
        "example.com/owner",
        _LABEL_KEY.replace(_LABEL, "[A-Za-z0-9]([-A-Za-z0-9]*[A-Za-z0-9])?"),
    ),
]
LabelValue = Annotated[
    str,
    Field(
        max_length=63,
        pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$",
        examples=["vision"],
        json_schema_extra={
            "expected": "letters, digits, dashes, dots and underscores, starting and ending with "
            "a letter or digit, at most 63 characters"
        },
    ),
]
SecretKeyName = Annotated[
    str,
    _text(
        253,
        "letters, digits, dashes, dots and underscores, not starting with two dots",
        "token",
        r"^\.?[-_a-zA-Z0-9][-._a-zA-Z0-9]*$",
    ),
]
EnvVarName = Annotated[
    str,
    _text(
        128,
        "letters, digits and underscores, not starting with a digit, at most 128 characters",
        "NCCL_DEBUG",
        r"^[A-Za-z_][A-Za-z0-9_]*$",
    ),
]

# --------------------------------------------------------------------- quantities

_UNIT = "(Ki|[MGTPE]i?|[mk])?$"
_UNITS = "with or without one of the units k, M, G, T, P, E, Ki, Mi, Gi, Ti, Pi, Ei"
Quantity = Annotated[
    str,
    _text(32, f"a number {_UNITS}, or m for thousandths", "16Gi", rf"^[0-9]+(\.[0-9]+)?{_UNIT}"),
]
Count = Annotated[int, Field(ge=0, le=2**53)]
_POSITIVE_PATTERN = rf"^([0-9]*[1-9][0-9]*(\.[0-9]+)?|[0-9]+\.[0-9]*[1-9][0-9]*){_UNIT}"
VolumeSize = Annotated[str, _text(32, f"a number above zero {_UNITS}", "500Gi", _POSITIVE_PATTERN)]

# --------------------------------------------------------------------- files and folders

# Relative to the volume's root and inside it; a leading dash would be read as a flag.
VolumePath = Annotated[
    str,
    _text(
        512,
        "a path relative to the volume's root, without a leading slash or dash, // and $",
        "datasets/mine",
        r"^[^-/$\x00][^/$\x00]*(/[^/$\x00]+)*/?$",
    ),
]
ActionSequence = Annotated[
    str,
    _text(
        512,
        "a path relative to the volume's root, without a leading slash or dash, // and $, ending "
        "in .csv, .json or .safetensors",
        "moves/left.csv",
        r"^[^-/$\x00][^/$\x00]*(/[^/$\x00]+)*\.(csv|json|safetensors)$",
    ),
]
_NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*"
FolderName = Annotated[
    str,
    _text(
        100,
        "letters, digits, dots, dashes and underscores, not starting with a dot or dash, at most "
        "100 characters",
        "first_run",
        rf"{_NAME}$",
    ),
]
ClipName = Annotated[
    str,
    _text(200, "a file name without folder and extension", "clip_001", r"^[^-/$\x00][^/$\x00]*$"),
]
OutputName = Annotated[
    str,
    _text(
        100,
        "a file name ending in .mp4: letters, digits, dots, dashes and underscores, at most 100 "
        "characters",
        "first.mp4",
        rf"{_NAME}\.mp4$",
    ),
]
_CHECKPOINT_EXPECTED = (
    "latest, best, the number of an iteration, or the path of a weights file on the volume"
)
Checkpoint = Annotated[
    str,
    _text(512, _CHECKPOINT_EXPECTED, "latest", r"^(latest|best|[0-9]+|[A-Za-z0-9_.][^$\x00]*)$"),
]
# As VolumePath, without a .. segment: no CEL rule can check that where integers are allowed too.
_CHECKPOINT_PATTERN = (
    r"^(\.?[A-Za-z0-9_][^/$\x00]*|\.\.[^/$\x00]+)"
    r"(/(\.?[^./$\x00][^/$\x00]*|\.|\.\.[^/$\x00]+))*$"
)
CheckpointName = Annotated[
    str, _text(512, f"{_CHECKPOINT_EXPECTED}, without .. in it", "latest", _CHECKPOINT_PATTERN)
]
Iteration = Annotated[int, Field(ge=0, le=10_000_000, strict=True)]

# --------------------------------------------------------------------- the rest

# A commit, tag or branch; a leading dash would be read as a flag.
Revision = Annotated[
    str,
    _text(
        253,
        "a commit, tag or branch: letters, digits, dots, dashes, underscores and slashes",
        "main",
        r"^[A-Za-z0-9_][A-Za-z0-9_./-]*$",
    ),
]
RepoID = Annotated[
    str,
    _text(
        200,
        "owner/name of a repository",
        "agibot-world/AgiBotWorld-Alpha",
        r"^[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+$",
    ),
]
EpisodeID = Annotated[int, Field(ge=0, le=2**53)]
EpisodeRange = (
    Annotated[
        str,
        _text(31, "a number, or an inclusive range", "0-99", r"^[0-9]{1,15}(-[0-9]{1,15})?$"),
    ]
    | Annotated[int, Field(ge=0, le=10**15 - 1, strict=True)]
)
# Part of a path on the volume and on the Hub, where it is the name of a folder.
FeatureKey = Annotated[
    str,
    _text(
        200,
        "letters, digits, dots, dashes and underscores, not starting with a dot or dash",
        "observation.images.top",
        r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$",
    ),
]
# Arguments of a command: a leading dash would be read as a flag.
ActionColumn = Annotated[
    str,
    _text(
        200,
        "letters, digits, dots, dashes, underscores and slashes, not starting with a dot, dash or "
        "slash",
        "observation.state",
        r"^[A-Za-z0-9_][A-Za-z0-9_./-]*$",
    ),
]
ActionName = Annotated[
    str,
    _text(
        128,
        "1 to 128 characters without control characters and $, not starting with a dash",
        "shoulder_pan.pos",
        r"^[^-$\x00-\x1f][^$\x00-\x1f]*$",
    ),
]
Override = Annotated[str, _text(512, "name=value", "optimizer.lr=1e-5")]
