"""Run a plan on this machine, pods as processes."""
