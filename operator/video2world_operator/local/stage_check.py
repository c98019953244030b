"""Ask the workers' own check which stages are done on a volume, and why the others are not."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from video2world_operator.plan.plan import Plan
from video2world_operator.plan.stage import Stage

__all__ = ["Judgement", "judge", "root_of"]

CHECK = (sys.executable, "-m", "video2world_common.markers")
NOT_DONE = "not done yet with these settings"


@dataclass(frozen=True)
class Judgement:
    """Whether a stage is done, and why; ``note`` is what its user should know."""

    done: bool
    why: str
    note: str = ""

    @property
    def again(self) -> bool:
        """Whether the stage was done before, and what it was bound to has changed."""
        return not self.done and self.why != NOT_DONE


def root_of(plan: Plan, volume: Path) -> Path:
    """The folder of ``volume`` in which the plan's pods work."""
    return volume / (plan.resource.spec.storage.sub_path or "")


def judge(folder: Path, stages: Sequence[Stage]) -> dict[str, Judgement]:
    """Judge ``stages`` on the volume whose root is ``folder``, by name.

    A worker checks again when it starts: where the check itself fails, the stage is to run.
    """
    if not (folder / ".video2world" / "stages").is_dir():
        return {stage.name: Judgement(False, NOT_DONE) for stage in stages}
    entries = [f"{stage.name}={stage.inputs_hash}" for stage in stages]
    done = subprocess.run([*CHECK, *entries], cwd=folder, capture_output=True, text=True)
    found = {}
    for line in done.stdout.splitlines():
        verdict = json.loads(line)
        stage = verdict.pop("stage")
        found[stage] = Judgement(**verdict)
    error = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    unknown = Judgement(False, f"it cannot be checked ({error})")
    return {stage.name: found.get(stage.name, unknown) for stage in stages}
