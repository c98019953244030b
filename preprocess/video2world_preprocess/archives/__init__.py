"""Read AgiBot's tar archives, on the volume or over HTTP ranges."""
