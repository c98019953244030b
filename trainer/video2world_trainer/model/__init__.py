"""Define the DiT: network, attention, LoRA, weights."""
