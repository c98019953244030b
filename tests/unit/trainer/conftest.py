"""Share the tiny training's fixtures among the trainer's tests."""

from tiny_training import here, one_thread, volume

__all__ = ["here", "one_thread", "volume"]
