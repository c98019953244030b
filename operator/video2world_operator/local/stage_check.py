"""Ask the workers' own check which stages are done on a volume, and why the others are not."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from video2world_operator.plan.plan import Plan
from video2world_operator.plan.stage import Stage

__all__ = ["StageCheck", "check_stages", "volume_root"]

COMMAND = (sys.executable, "-m", "video2world_common.markers")
NOT_DONE = "not done yet with these settings"


@dataclass(frozen=True)
class StageCheck:
    """Whether a stage is done, and why; ``note`` is something the user should know.

    ``result`` are the fields of the event with its result, if the stage has one.
    """

    done: bool
    why: str
    note: str = ""
    result: dict[str, object] = field(default_factory=dict)

    @property
    def runs_again(self) -> bool:
        """Whether the stage was done before, but its inputs or outputs have changed since."""
        return not self.done and self.why != NOT_DONE


def volume_root(plan: Plan, volume: Path) -> Path:
    """Return the folder of ``volume`` in which the plan's pods work."""
    return volume / (plan.resource.spec.storage.sub_path or "")


def check_stages(folder: Path, stages: Sequence[Stage]) -> dict[str, StageCheck]:
    """Check ``stages`` on the volume whose root is ``folder``, by name.

    A stage that cannot be checked counts as not done: its worker checks again when it starts.
    """
    if not (folder / ".video2world" / "stages").is_dir():
        return {stage.name: StageCheck(False, NOT_DONE) for stage in stages}
    entries = [f"{stage.name}={stage.inputs_hash}" for stage in stages]
    ended = subprocess.run([*COMMAND, *entries], cwd=folder, capture_output=True, text=True)
    found = {}
    for line in ended.stdout.splitlines():
        verdict = json.loads(line)
        stage = verdict.pop("stage")
        found[stage] = StageCheck(**verdict)
    error = (ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"])[-1]
    unknown = StageCheck(False, f"it cannot be checked ({error})")
    return {stage.name: found.get(stage.name, unknown) for stage in stages}
