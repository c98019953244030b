"""Generate videos from a trained model."""
