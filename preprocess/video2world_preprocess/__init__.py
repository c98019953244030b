"""Data side: raw robot video to windows, captions, embeddings and latents on the volume."""
