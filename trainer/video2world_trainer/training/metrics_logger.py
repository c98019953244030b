"""Report a run's progress to the log, as event lines, to Prometheus and to files."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from video2world_common.checkpoint_interval import Interval
from video2world_common.events import emit, say
from video2world_common.exit_codes import UserError
from video2world_common.gpu_rates import RATED_FLOPS, gpu_kind
from video2world_trainer.checkpoint.validation_record import ValidationResult, best_result
from video2world_trainer.distributed.parallelize import ParallelMesh
from video2world_trainer.model.action_conditioning import (
    is_action_parameter,
    is_text_parameter,
)
from video2world_trainer.model.dit import VideoDiT
from video2world_trainer.model.flops import step_flops
from video2world_trainer.training.config import TrainConfig
from video2world_trainer.training.divergence import REMEDY, Divergence
from video2world_trainer.training.global_batch import GlobalBatch
from video2world_trainer.training.history import HistoryWriter
from video2world_trainer.training.phases import Phase, phase_at
from video2world_trainer.training.progress import STAGE, Progress
from video2world_trainer.training.prometheus import PrometheusExporter

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["MetricsLogger"]


class MetricsLogger:
    """Measure the iterations since the last report and report them; only the main rank writes.

    Args:
        config: the run's settings.
        mesh: all ranks.
        net: the network, for the floating-point operations of a step.
        densities: share of query-key pairs that self-attention computes, by phase in order.
        iteration: iterations done so far.
        at_risk: returns the GPU seconds since the newest checkpoint, at every scrape.

    Raises:
        UserError: TensorBoard is requested but not installed.
    """

    def __init__(
        self,
        config: TrainConfig,
        mesh: ParallelMesh,
        net: VideoDiT,
        densities: Mapping[Phase, float],
        *,
        iteration: int,
        at_risk: Callable[[], float],
    ) -> None:
        self._config, self._world = config, mesh.world
        self._last_time, self._last_iteration = time.monotonic(), iteration
        self._clips = GlobalBatch.of(config, mesh.data_size).clips  # per iteration, on all ranks
        parameters = _token_parameters(net)
        lora = config.architecture == "lora"
        self._flops = {  # of an iteration
            one: self._clips
            * step_flops(net.config, parameters, one.tokens_per_clip, lora=lora, density=density)
            for one, density in densities.items()
        }
        self._history: HistoryWriter | None = None
        self._exporter: PrometheusExporter | None = None
        self._tensorboard: SummaryWriter | None = None
        if mesh.world.is_main_rank:
            self._history = HistoryWriter(config.job_folder)
            self._exporter = PrometheusExporter()
            self._exporter.compute("gpu_seconds_at_risk", at_risk)
            if config.tensorboard:
                self._tensorboard = _tensorboard_writer(config)

    def log(
        self,
        progress: Progress,
        divergence: Divergence,
        *,
        loss: float | None,
        learning_rate: float,
        gradient_norm: float | None,
        checkpoint: int,
        newly_diverged: bool,
        interval: Interval | None,
    ) -> None:
        """Report the iterations since the last call.

        Args:
            progress: the run's progress.
            divergence: whether training has diverged.
            loss: mean loss since the last report; None if all steps were skipped.
            learning_rate: learning rate of the next step.
            gradient_norm: norm of the newest gradients.
            checkpoint: iteration of the newest checkpoint.
            newly_diverged: training had not diverged at the last report.
            interval: the interval of checkpoints and its reason, if it was chosen automatically.
        """
        iteration, config = progress.iteration, self._config
        now = time.monotonic()
        seconds = (now - self._last_time) / max(iteration - self._last_iteration, 1)
        self._last_time, self._last_iteration = now, iteration
        if not self._world.is_main_rank:
            return
        phase = phase_at(tuple(self._flops), iteration - 1)
        eta = self._seconds_left(iteration, seconds, phase)
        if gradient_norm is not None and not math.isfinite(gradient_norm):
            gradient_norm = None
        numbers: dict[str, float | None] = {
            "learning_rate": learning_rate,
            "gradient_norm": gradient_norm,
            "tokens_per_second": round(phase.tokens_per_clip * self._clips / seconds),
            **self._gpu_numbers(seconds, self._flops[phase]),
        }
        shown = "  ".join(
            f"{name.replace('_', ' ')} {value:.4g}"
            for name, value in numbers.items()
            if value is not None and name != "learning_rate"
        )
        if self._exporter is not None:
            self._exporter.update(
                iteration=iteration,
                iterations=config.max_iter,
                loss=loss,
                seconds_per_iteration=seconds,
                checkpoint_iteration=checkpoint,
                skipped_steps=len(progress.skipped),
                **numbers,
            )
        say(
            f"iteration {iteration}/{config.max_iter}  "
            f"loss {'-' if loss is None else f'{loss:.4f}'}  lr {learning_rate:.3e}  "
            f"{seconds:.3f} s/iteration  {shown}  {eta:.0f} s left"
            f"{phase.label and f'  phase {phase.label}'}"
        )
        saves: dict[str, int | str] = {}
        if interval is not None:
            saves["checkpoint_interval"] = interval.iterations
            saves["checkpoint_interval_reason"] = interval.reason
        warnings: dict[str, str] = {}
        if divergence.since is not None:
            warnings["warning"] = divergence.warning()
            numbers["diverged_after"] = divergence.since
            if newly_diverged:
                say(f"warning: {divergence.warning()} {REMEDY}")
        emit(
            "progress",
            STAGE,
            iteration=iteration,
            iterations=config.max_iter,
            loss=loss,
            seconds_per_iteration=round(seconds, 4),
            eta_seconds=round(eta, 1),
            checkpoint=checkpoint,
            **saves,
            **numbers,
            **({"phase": phase.label} if phase.label else {}),
            **warnings,
        )
        if self._history is not None:
            self._history.append(iteration, loss=loss, seconds=seconds, **numbers)
        if self._tensorboard is not None:
            for name, value in {"loss": loss, "seconds_per_iteration": seconds, **numbers}.items():
                if value is not None:
                    self._tensorboard.add_scalar(name, value, iteration)
            self._tensorboard.flush()

    def log_validation(
        self, results: Sequence[ValidationResult], seconds: float, stopped: str
    ) -> None:
        """Report the newest of ``results``; its time does not count as time of iterations.

        Args:
            results: the run's comparable results, oldest first.
            seconds: what the newest took.
            stopped: why it ends training; empty if it does not.
        """
        self._last_time += seconds
        if not self._world.is_main_rank:
            return
        newest, best = results[-1], best_result(results)
        numbers = {
            "validation_loss": newest.loss,
            "validation_loss_low": newest.low,
            "validation_loss_middle": newest.middle,
            "validation_loss_high": newest.high,
            "validation_seconds": round(seconds, 3),
        }
        best_so_far = {"best_iteration": best.iteration, "best_loss": best.loss} if best else {}
        levels = ", ".join(
            f"{name} {'-' if value is None else f'{value:.4f}'}"
            for name, value in (
                ("low", newest.low),
                ("middle", newest.middle),
                ("high", newest.high),
            )
        )
        say(
            f"iteration {newest.iteration}: validation loss "
            f"{'-' if newest.loss is None else f'{newest.loss:.4f}'} (noise {levels}; "
            f"{newest.clips} clips, {newest.weights} weights, {seconds:.1f} s)"
            f"{f', best {best.loss:.4f} at {best.iteration}' if best else ''}"
        )
        if stopped:
            say(f"training ends at iteration {newest.iteration}: {stopped}")
        emit(
            "validation",
            STAGE,
            iteration=newest.iteration,
            loss=newest.loss,
            low=newest.low,
            middle=newest.middle,
            high=newest.high,
            weights=newest.weights,
            base_loss=results[0].loss if results[0].iteration == 0 else None,
            **best_so_far,
            seconds=numbers["validation_seconds"],
            stopped=stopped,
        )
        if self._exporter is not None:
            best_loss = best.loss if best else None
            self._exporter.update(**numbers, best_validation_loss=best_loss)
        if self._tensorboard is not None:
            for name, value in numbers.items():
                if value is not None:
                    self._tensorboard.add_scalar(name, value, newest.iteration)
            self._tensorboard.flush()

    def _seconds_left(self, iteration: int, seconds: float, running: Phase) -> float:
        """Estimate the time left: another phase's iterations take as long as they have work."""
        return sum(
            max(one.end - max(iteration, one.start), 0) * seconds * flops / self._flops[running]
            for one, flops in self._flops.items()
        )

    def _gpu_numbers(self, seconds: float, flops: float) -> dict[str, float | None]:
        """Return the GPU's utilisation and peak memory.

        Args:
            seconds: seconds per iteration.
            flops: floating-point operations of an iteration, on all ranks.
        """
        device = self._world.device
        if device.type != "cuda":
            return {}
        numbers: dict[str, float | None] = {}
        kind = gpu_kind(torch.cuda.get_device_name(device))
        if kind is not None:
            used = flops / seconds / self._world.size / RATED_FLOPS[kind]
            numbers["model_flops_utilisation"] = round(used, 4)
        memory = torch.cuda.max_memory_allocated(device) / 2**30
        numbers["peak_memory_gib"] = round(memory, 2)
        return numbers


def _token_parameters(net: VideoDiT) -> int:
    """Count the parameters that tokens are multiplied with.

    Those of action embedders are not, nor are those of cross-attention without captions.
    """
    actions = net.config.actions
    uses_text = actions is None or actions.uses_text
    return sum(
        one.numel()
        for name, one in net.named_parameters()
        if not is_action_parameter(name) and (uses_text or not is_text_parameter(name))
    )


def _tensorboard_writer(config: TrainConfig) -> SummaryWriter:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError(
            "trainer.tensorboard=true: the package tensorboard is not installed "
            "(pip install tensorboard), or leave it out"
        ) from error
    return SummaryWriter(str(config.job_folder / "tensorboard"))
