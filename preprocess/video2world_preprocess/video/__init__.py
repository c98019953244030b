"""Read, cut and write videos."""

from video2world_preprocess.video.reader import probe, read_frames

__all__ = ["probe", "read_frames"]
