"""Encode videos as latents and decode latents as videos."""
