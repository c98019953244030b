"""Read tar archives, locally and over HTTP ranges."""
