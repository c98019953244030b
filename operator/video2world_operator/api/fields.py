"""Define the field types of the spec: bounded text, names, quantities, paths."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel


class _Model(BaseModel):
    model_config = ConfigDict(
        alias_generator=to_camel,
        extra="forbid",
        populate_by_name=True,
        defer_build=True,  # validators are built at first use: importing stays quick
    )


def _text(maximum: int, words: str, example: str, pattern: str | None = None) -> Any:
    """The bounds of a text and how they read to people, in errors as in the documentation."""
    return Field(
        min_length=1,
        max_length=maximum,
        pattern=pattern,
        examples=[example],
        json_schema_extra={"words": words},
    )


def _no_boolean(value: object) -> object:
    """Refuse true and false, which Python takes for 1 and 0."""
    if isinstance(value, bool):
        raise ValueError("not a number")
    return value


def _by_example(example: dict[str, Any]) -> ConfigDict:
    """The configuration of a model that shows how it is written."""
    return ConfigDict(json_schema_extra={"examples": [example]})


Text = Annotated[str, _text(253, "1 to 253 characters", "ghcr.io/mine/trainer:1.0")]
# A label's key as the API server has it: a DNS name and a slash before it, or nothing.
LABEL_KEY = (
    r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?"
    r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"
)
_LABEL = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
DNSName = Annotated[
    str,
    _text(
        253,
        "lowercase letters, digits, dashes and dots, starting and ending with a letter or digit",
        "my-team",
        rf"^{_LABEL}(\.{_LABEL})*$",
    ),
]
QueueName = Annotated[
    str,
    _text(
        63,  # it is the value of a label
        "lowercase letters, digits, dashes and dots, starting and ending with a letter or digit, "
        "at most 63 characters",
        "my-team",
        rf"^{_LABEL}(\.{_LABEL})*$",
    ),
]
# Relative to the volume's root, never out of it; what begins with a dash would read as a flag.
VolumePath = Annotated[
    str,
    _text(
        512,
        "a path relative to the volume's root, without a slash or dash in front, // and $",
        "datasets/mine",
        r"^[^-/$\x00][^/$\x00]*(/[^/$\x00]+)*/?$",
    ),
]
_NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*"
FolderName = Annotated[
    str,
    _text(
        100,
        "letters, digits, dots, dashes and underscores, no dot or dash in front, at most 100 "
        "characters",
        "first_run",
        rf"{_NAME}$",
    ),
]
_UNIT = "(Ki|[MGTPE]i?|[mk])?$"
_UNITS = "with or without one of the units k, M, G, T, P, E, Ki, Mi, Gi, Ti, Pi, Ei"
Quantity = Annotated[
    str,
    _text(32, f"a number {_UNITS}, or m for thousandths", "16Gi", rf"^[0-9]+(\.[0-9]+)?{_UNIT}"),
]
Count = Annotated[int, Field(ge=0, le=2**53)]
ABOVE_ZERO = rf"^([0-9]*[1-9][0-9]*(\.[0-9]+)?|[0-9]+\.[0-9]*[1-9][0-9]*){_UNIT}"
# A commit, tag or branch; what begins with a dash would read as a flag.
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
FreeObject = dict[str, Any]

# As VolumePath, without .. by itself, as no rule can be put beside it where numbers may stand too.
CHECKPOINT = (
    r"^(\.?[A-Za-z0-9_][^/$\x00]*|\.\.[^/$\x00]+)"
    r"(/(\.?[^./$\x00][^/$\x00]*|\.|\.\.[^/$\x00]+))*$"
)
_CHECKPOINTS = "latest, the number of an iteration, or the path of a weights file on the volume"
CheckpointName = Annotated[
    str, _text(512, f"{_CHECKPOINTS}, without .. in it", "latest", CHECKPOINT)
]
Iteration = Annotated[int, Field(ge=0, le=10_000_000, strict=True)]

_KEY = _text(
    253,
    "letters, digits, dashes, dots and underscores, no two dots in front",
    "token",
    r"^\.?[-_a-zA-Z0-9][-._a-zA-Z0-9]*$",
)

_SIZE = _text(32, f"a number above zero {_UNITS}", "500Gi", ABOVE_ZERO)

LabelKey = Annotated[
    str,
    _text(
        316, "the key of a label, as Kubernetes has them", "topology.kubernetes.io/rack", LABEL_KEY
    ),
]

_VARIABLE = _text(
    128,
    "letters, digits and underscores, no digit in front, at most 128 characters",
    "NCCL_DEBUG",
    r"^[A-Za-z_][A-Za-z0-9_]*$",
)
