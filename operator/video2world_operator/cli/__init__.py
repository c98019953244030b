"""Implement v2w and kubectl v2w."""
