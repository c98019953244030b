"""Export training metrics to Prometheus from the main rank.

The values are those of the progress reports. Metrics have no labels, as scrape targets identify the
run. Without ``V2W_METRICS_PORT`` nothing is served.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from video2world_common.events import say

if TYPE_CHECKING:
    from wsgiref.simple_server import WSGIServer

__all__ = ["METRICS", "PrometheusExporter"]

METRICS: Mapping[str, str] = {
    "iteration": "Iterations done.",
    "iterations": "Total number of iterations.",
    "loss": "Mean loss since the last report.",
    "seconds_per_iteration": "Mean time per iteration since the last report.",
    "learning_rate": "Learning rate of the next iteration.",
    "gradient_norm": "Norm of the newest gradients.",
    "tokens_per_second": "Tokens trained on per second by all ranks together.",
    "model_flops_utilisation": "Model FLOPs utilization: share of the GPUs' peak performance.",
    "peak_memory_gib": "Peak GPU memory of the main rank.",
    "checkpoint_iteration": "Iteration of the newest complete checkpoint.",
    "gpu_seconds_at_risk": "GPU seconds of all ranks since the newest complete checkpoint.",
    "validation_loss": "Loss on the held-out clips at the last validation.",
    "validation_loss_low": "The same at the lowest third of noise levels.",
    "validation_loss_middle": "The same at the middle third of noise levels.",
    "validation_loss_high": "The same at the highest third of noise levels.",
    "best_validation_loss": "Lowest loss on the held-out clips so far.",
    "validation_seconds": "Duration of the last validation.",
    "skipped_steps": "Skipped steps with non-finite loss or gradients.",
    "report_time_seconds": "Time of the last report, in seconds since 1970.",
}


class PrometheusExporter:
    """Serve metrics over HTTP; without a usable port training runs without them.

    Args:
        port: the port to listen on; None reads ``V2W_METRICS_PORT``, empty serves nothing.
    """

    def __init__(self, port: str | None = None) -> None:
        self._set: dict[str, Callable[[float], None]] = {}
        self._compute: dict[str, Callable[[Callable[[], float]], None]] = {}
        self._server: WSGIServer | None = None
        port = os.environ.get("V2W_METRICS_PORT") if port is None else port
        if not port:
            return
        try:
            from prometheus_client import CollectorRegistry, Gauge, start_http_server
        except ImportError:
            say("note: no metrics: the package prometheus_client is not installed")
            return
        registry = CollectorRegistry()
        # ranks of a local run communicate over loopback, so their metrics stay there too
        local = os.environ.get("MASTER_ADDR", "").startswith(("127.", "localhost"))
        try:
            self._server, _ = start_http_server(
                int(port), "127.0.0.1" if local else "0.0.0.0", registry
            )
        except (OSError, OverflowError, ValueError) as error:
            say(f"note: no metrics on port {port} ({error})")
            return
        for name, text in METRICS.items():
            gauge = Gauge(f"video2world_training_{name}", text, registry=registry)
            self._set[name], self._compute[name] = gauge.set, gauge.set_function
            if "validation" in name:
                self._set[name](float("nan"))  # none yet, or none at all
        self.port = self._server.server_port

    def update(self, **metrics: float | None) -> None:
        """Set the values to serve; None is served as NaN."""
        for name, value in (metrics | {"report_time_seconds": time.time()}).items():
            if name in self._set:
                self._set[name](float("nan") if value is None else value)

    def compute(self, name: str, value: Callable[[], float]) -> None:
        """Compute a metric at every scrape."""
        if name in self._compute:
            self._compute[name](value)

    def close(self) -> None:
        """Stop serving."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
