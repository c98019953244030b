"""Run a plan on this machine, with a process for each pod."""
