"""Robot actions: what leads from one frame of a window to the next."""
