"""Settings of all tests; array shapes are checked throughout (see pytest's options in pyproject.toml)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets; tests that need it skip where it is not."""
    folder = os.environ.get("TORCHDOCTOR_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("TORCHDOCTOR_DATA names no folder")
    return Path(folder)
