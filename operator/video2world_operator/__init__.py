"""Control side: the API, the plan and the engines that carry it out; never imports torch."""

__version__ = "0.1.0"
