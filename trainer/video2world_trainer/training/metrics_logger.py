"""What a run says of its progress: a line for people, one for machines, curves on the volume."""

from __future__ import annotations

import math
import time
from typing import Any

import torch

from video2world_common.events import emit, say
from video2world_common.exit_codes import UserError
from video2world_trainer.model.flops import peak_flops, step_flops
from video2world_trainer.training.history import Records
from video2world_trainer.training.prometheus import Exporter
from video2world_trainer.training.trainer import STAGE, Run

__all__ = ["REMEDY", "Report"]

REMEDY = (
    "Lower optimizer.lr (spec.training.learningRate) or raise scheduler.warm_up_steps "
    "(spec.training.warmupIterations)."
)


class Report:
    """Measures and reports the iterations since the last report; rank 0 prints."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._since, self._counted = time.monotonic(), run.progress.iteration
        config, layout = run.config, run.layout
        self._tokens = run.tokens_per_clip * config.batch_size * layout.data_size  # an iteration's
        count = sum(one.numel() for one in run.net.parameters())
        lora = config.architecture == "lora"
        clip = step_flops(run.net.config, count, run.tokens_per_clip, lora=lora)
        self._flops = clip * config.batch_size * layout.data_size
        self._records = Records(config.job_folder) if run.world.leads else None
        self._exporter = Exporter() if run.world.leads else None
        self._writer: Any = None
        if config.tensorboard and run.world.leads:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise UserError(
                    "trainer.tensorboard=true: the package tensorboard is not installed "
                    "(pip install tensorboard), or leave it out"
                ) from error
            self._writer = SummaryWriter(str(config.job_folder / "tensorboard"))

    def __call__(self) -> None:
        """Report; the loss is the mean since the last report."""
        run = self._run
        run.settle()
        progress, config = run.progress, run.config
        loss = progress.loss_sum / progress.loss_count if progress.loss_count else None
        clips = progress.loss_count * config.batch_size * run.layout.data_size
        last = progress.iteration >= config.max_iter
        before = run.divergence.since
        run.divergence.report(progress.iteration, loss, clips, last=last)
        progress.loss_sum, progress.loss_count = 0.0, 0
        now = time.monotonic()
        seconds = (now - self._since) / max(progress.iteration - self._counted, 1)
        self._since, self._counted = now, progress.iteration
        if not run.world.leads:
            return
        eta = (config.max_iter - progress.iteration) * seconds
        numbers: dict[str, float | None] = {
            "learning_rate": run.learning_rate,
            "gradient_norm": run.norm if run.norm is not None and math.isfinite(run.norm) else None,
            "tokens_per_second": round(self._tokens / seconds),
        }
        if run.world.device.type == "cuda":
            rate = peak_flops(torch.cuda.get_device_name(run.world.device))
            if rate is not None:
                used = self._flops / seconds / run.world.size / rate
                numbers["model_flops_utilisation"] = round(used, 4)
            peak = torch.cuda.max_memory_allocated(run.world.device) / 2**30
            numbers["peak_memory_gib"] = round(peak, 2)
        shown = "  ".join(
            f"{name.replace('_', ' ')} {value:.4g}"
            for name, value in numbers.items()
            if value is not None and name != "learning_rate"
        )
        if self._exporter is not None:
            self._exporter.told(
                iteration=progress.iteration,
                iterations=config.max_iter,
                loss=loss,
                seconds_per_iteration=seconds,
                checkpoint_iteration=run.saver.saved,
                skipped_steps=len(progress.skipped),
                **numbers,
            )
        say(
            f"iteration {progress.iteration}/{config.max_iter}  "
            f"loss {'-' if loss is None else f'{loss:.4f}'}  lr {run.learning_rate:.3e}  "
            f"{seconds:.3f} s/iteration  {shown}  {eta:.0f} s left"
        )
        diverged = run.divergence.since
        told: dict[str, str] = {}
        if diverged is not None:
            told["warning"] = run.divergence.warning()
            numbers["diverged_after"] = diverged
            if before is None:
                say(f"warning: {told['warning']} {REMEDY}")
        emit(
            "progress",
            STAGE,
            iteration=progress.iteration,
            iterations=config.max_iter,
            loss=loss,
            seconds_per_iteration=round(seconds, 4),
            eta_seconds=round(eta, 1),
            checkpoint=run.saver.saved,
            **numbers,
            **told,
        )
        if self._records is not None:
            self._records.append(progress.iteration, loss=loss, seconds=seconds, **numbers)
        if self._writer is not None:
            for name, value in {"loss": loss, "seconds_per_iteration": seconds, **numbers}.items():
                if value is not None:
                    self._writer.add_scalar(name, value, progress.iteration)
            self._writer.flush()
