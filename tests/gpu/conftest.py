"""These tests need an NVIDIA GPU with the packages of the trainer image; elsewhere they skip."""

import pytest
import torch


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if "tests/gpu" in str(item.path):
            item.add_marker(pytest.mark.skip(reason="no GPU"))
