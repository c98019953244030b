"""Define which fields of a spec can be changed once work has begun, and when changes take effect.

All other fields are fixed, because finished work depends on them. The CRD's rules about changes and
the reference are generated from this table.
"""

from __future__ import annotations

from collections.abc import Mapping

from video2world_operator.api.spec import Spec
from video2world_operator.api.training_spec import TrainingSpec

__all__ = ["CHANGEABLE", "IMMUTABLE", "SUSPENDED", "adjustable", "fixed"]

AT_ONCE = "At once."
NEXT = (
    "With the next attempt at a stage; an attempt without a started pod is replaced at once. `v2w "
    "suspend NAME` and `v2w resume NAME` start the next attempt from the last checkpoint."
)
SUSPENDED = "Only while `spec.suspend` is true; takes effect on resume."

IMMUTABLE = ("managedBy",)  # fields of spec that can never be changed, not even before work begins

CHANGEABLE: Mapping[str, str] = {  # by path below spec
    "training.iterations": "At once: the attempt ends, and the next one resumes from the last "
    "checkpoint and trains to the new length.",
    "training.checkpoint": NEXT,
    "training.resourceClaims": NEXT,
    "training.hangTimeoutSeconds": NEXT,
    "training.stopWhenDiverged": NEXT,
    "training.validation": NEXT,
    "training.stopWhen": "At once: the attempt ends, and the next one resumes from the last "
    "checkpoint; a training that ended early continues if it no longer applies.",
    "training.minNodes": "At once: a running attempt keeps its nodes.",
    "training.maxRestarts": AT_ONCE,
    "training.restartBackoffSeconds": AT_ONCE,
    "inference": "At once: samples that the change affects are generated again. `gpus` and "
    "`offload` affect none, and take effect as `stages` do.",
    "evaluation": "At once: clips that the change affects are generated again.",
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
    """Return the fields of spec.training that can be changed."""
    return [path.removeprefix("training.") for path in CHANGEABLE if path.startswith("training.")]


def fixed() -> tuple[list[str], list[str]]:
    """Return the fields of spec, and of spec.training, that cannot be changed."""
    of_spec = [field.alias or name for name, field in Spec.model_fields.items()]
    of_training = [field.alias or name for name, field in TrainingSpec.model_fields.items()]
    changes = adjustable()
    return (
        [name for name in of_spec if name not in {*CHANGEABLE, *IMMUTABLE, "training"}],
        [name for name in of_training if name not in changes],
    )
