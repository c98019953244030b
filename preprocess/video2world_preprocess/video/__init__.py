"""Read, cut and write videos."""
