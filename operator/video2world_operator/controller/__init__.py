"""Run the operator: watch, cache, decide, apply, and report status, events and metrics."""
