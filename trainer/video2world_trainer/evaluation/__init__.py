"""Measure how well checkpoints predict held-out videos."""
