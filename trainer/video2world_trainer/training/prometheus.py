"""A training's figures for Prometheus, served by the rank that leads while it runs.

Told what the progress lines tell, so that nothing is measured for it. No figure has a label: what
the run is called, the scrape knows. Where ``V2W_METRICS_PORT`` is not set there is nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from video2world_common.events import say

__all__ = ["FIGURES", "Exporter"]

FIGURES: Mapping[str, str] = {
    "iteration": "Iterations done.",
    "iterations": "Iterations wanted.",
    "loss": "Mean loss since the report before.",
    "seconds_per_iteration": "Mean time of an iteration since the report before.",
    "learning_rate": "Learning rate of the last iteration.",
    "gradient_norm": "Norm of the last gradients.",
    "tokens_per_second": "Tokens trained on by all ranks together.",
    "model_flops_utilisation": "Share of the GPUs' peak that the model's arithmetic takes.",
    "peak_memory_gib": "Most GPU memory that the leading rank has held.",
    "checkpoint_iteration": "Iteration of the last whole checkpoint.",
    "skipped_steps": "Steps left out for a loss or gradient that is not finite.",
    "report_time_seconds": "When these figures were told, in seconds since 1970.",
}


class Exporter:
    """Serves what it is :meth:`told`, if a port is given; a port that is taken costs the figures,
    not the run."""

    def __init__(self, port: str | None = None) -> None:
        self._set: dict[str, Callable[[float], None]] = {}
        self._server: Any = None
        port = os.environ.get("V2W_METRICS_PORT") if port is None else port
        if not port:
            return
        try:
            from prometheus_client import CollectorRegistry, Gauge, start_http_server
        except ImportError:
            say("note: no metrics, the package prometheus_client is not installed")
            return
        registry = CollectorRegistry()
        # the nodes of a local run meet on loopback: nobody else is meant to see it
        local = os.environ.get("MASTER_ADDR", "").startswith(("127.", "localhost"))
        try:
            self._server, _ = start_http_server(
                int(port), "127.0.0.1" if local else "0.0.0.0", registry
            )
        except (OSError, OverflowError, ValueError) as error:
            say(f"note: no metrics at port {port} ({error})")
            return
        for name, text in FIGURES.items():
            self._set[name] = Gauge(f"video2world_training_{name}", text, registry=registry).set
        self.port = self._server.server_port

    def told(self, **figures: float | None) -> None:
        """Serve these from now on; what is None is not known, and NaN there."""
        for name, value in (figures | {"report_time_seconds": time.time()}).items():
            if name in self._set:
                self._set[name](float("nan") if value is None else value)

    def close(self) -> None:
        """Serve no longer."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
