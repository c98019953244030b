"""Encode captions with T5, and store the embeddings."""
