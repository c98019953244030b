"""Locate files of the checkout, independent of where a test lies."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
