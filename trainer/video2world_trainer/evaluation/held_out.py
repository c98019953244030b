"""Choose which held-out windows of a data set are evaluated."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

from video2world_common.exit_codes import UserError
from video2world_common.files import cut_name
from video2world_trainer.generation.requests import SampleRequest

__all__ = ["HeldOutWindows", "choose_windows"]


@dataclass(frozen=True)
class HeldOutWindows:
    """The chosen windows; ``available`` have a video and a caption, ``left_out`` say why not."""

    chosen: tuple[Path, ...]
    available: int
    left_out: dict[str, str]

    def entries(self, folder: Path, seed: int) -> list[dict[str, object]]:
        """Return the entries of a batch file that generate the windows into ``folder``.

        A window's noise depends on its name and ``seed`` only, and is the same for all checkpoints.
        """
        names = {window: _clip_name(window) for window in self.chosen}
        return [
            {
                "input_video": str(window),
                "output_video": str(folder / f"{name}.mp4"),
                "seed": (seed + zlib.crc32(window.stem.encode())) % 2**32,
            }
            for window, name in names.items()
        ]


def _clip_name(window: Path) -> str:
    short = cut_name(window.stem, 100)
    if short == window.stem:
        return short
    return f"{short}-{zlib.crc32(window.stem.encode()):08x}"


def choose_windows(
    dataset_dir: Path, samples: int, *, needs_captions: bool = True
) -> HeldOutWindows:
    """Choose ``samples`` windows of ``dataset_dir``/val, evenly spaced in order of their names.

    All are chosen if there are fewer. Names begin with the episode, so that the choice spreads over
    episodes; it is the same for every run.

    Args:
        dataset_dir: the data set.
        samples: at least 1.
        needs_captions: leave windows without a caption out.

    Raises:
        UserError: there is no held-out window with a caption.
    """
    videos = dataset_dir / "val" / "videos"
    found = sorted(p for p in videos.glob("*.mp4") if not p.name.startswith(".") and p.is_file())
    left_out = {
        path.stem: f"it has no caption {path.stem}.txt in {videos.parent / 'metas'}"
        for path in found
        if needs_captions and not SampleRequest(path, "", path).effective_prompt
    }
    usable = [path for path in found if path.stem not in left_out]
    if not usable:
        why = f"none of the {len(found)} has a caption" if found else "there is no video"
        raise UserError(
            f"no held-out windows in {videos} ({why}): hold out some episodes or videos in "
            "spec.dataset, or remove spec.evaluation"
        )
    count = min(samples, len(usable))
    chosen = tuple(usable[number * len(usable) // count] for number in range(count))
    return HeldOutWindows(chosen, len(usable), left_out)
