"""Generate videos with a trained model."""
