"""Encode captions with T5."""
