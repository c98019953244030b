"""Which fields of a spec can be changed once work has begun, and when a change takes effect.

Whatever is not in the table is what the work is built on, and cannot be changed: the rules of the
CRD are made of it, and so is the reference.
"""

from __future__ import annotations

from collections.abc import Mapping

from video2world_operator.api.spec import Spec, TrainingSpec

__all__ = ["CHANGEABLE", "SUSPENDED", "adjustable", "fixed"]

AT_ONCE = "At once."
NEXT = (
    "With the next attempt at a stage; an attempt none of whose pods has started is begun anew at "
    "once. `v2w suspend NAME` and `v2w resume NAME` begin the next attempt from the last "
    "checkpoint."
)
SUSPENDED = "Only while `spec.suspend` is true; when it is resumed."

CHANGEABLE: Mapping[str, str] = {  # by path below spec
    "training.iterations": "At once: the attempt is ended, and the next one resumes from the last "
    "checkpoint to the new length.",
    "training.checkpoint": NEXT,
    "training.hangTimeoutSeconds": NEXT,
    "training.stopWhenDiverged": NEXT,
    "training.maxRestarts": AT_ONCE,
    "training.restartBackoffSeconds": AT_ONCE,
    "inference": "At once: samples are made again as far as the change asks for others.",
    "images": NEXT,
    "stages": NEXT,
    "credentials": NEXT,
    "scheduling": SUSPENDED,
    "suspend": AT_ONCE,
    "activeDeadlineSeconds": AT_ONCE,
    "cleanupPolicy": AT_ONCE,
    "ttlSecondsAfterFinished": AT_ONCE,
}


def adjustable() -> list[str]:
    """Fields of spec.training that can be changed."""
    return [path.removeprefix("training.") for path in CHANGEABLE if path.startswith("training.")]


def fixed() -> tuple[list[str], list[str]]:
    """Fields of spec, and of spec.training, that cannot be changed."""
    of_spec = [field.alias or name for name, field in Spec.model_fields.items()]
    of_training = [field.alias or name for name, field in TrainingSpec.model_fields.items()]
    changes = adjustable()
    return (
        [name for name in of_spec if name not in CHANGEABLE and name != "training"],
        [name for name in of_training if name not in changes],
    )
