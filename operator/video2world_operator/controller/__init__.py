"""Run the operator: watches, caches, applier, events, metrics, health."""
