"""Reading an epoch takes the same memory for ten times the images, where they do not fit into it."""

from __future__ import annotations

import importlib.util

import pytest

from benchmarks.speed.memory import KINDS, compared

IMAGES, TIMES = 2000, 10
INDEX_BYTES = 3_000  # of an image, with what the allocator keeps; decoded it has 12,288
STORED_BYTES = 3_500


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_memory_is_flat_in_the_number_of_images(kind):
    if kind == "datasets" and importlib.util.find_spec("datasets") is None:
        pytest.skip("needs the extra hf")
    found = compared(kind, IMAGES, TIMES)
    for size, count in (("small", IMAGES), ("large", TIMES * IMAGES)):
        assert found[size]["images"] == found[size]["expected"] == 0.9 * count
    assert found["bytes_per_image"] < INDEX_BYTES
    assert found["large"]["own"] < 1.15 * found["small"]["own"]


@pytest.mark.slow
def test_images_that_stay_in_memory_are_seen_by_the_measurement():
    found = compared("parquet", IMAGES, TIMES, keep=True)
    assert found["bytes_per_image"] > STORED_BYTES
