"""The test splits that a treatment is compared on: the data's own, and one before other backgrounds."""

from __future__ import annotations

import numpy as np

from torchdoctor.case.preparation import SWAPPED, Case
from torchdoctor.data.loader import Loader
from torchdoctor.images.backgrounds import across_categories
from torchdoctor.images.batches import Batch, Images

MOST = 2000  # images that are decoded at once to be swapped
LEAST = 400  # fewer could lose `--max-loss` points by chance


def swapped_images(images: Loader, seed: int) -> tuple[Batch, ...]:
    """Return the images that have masks, each before the background of one of another category.

    At most 2000 of them, spread over the split; empty without masks.
    """
    masked = images.table.ids[images.table.has_mask]
    if len(masked) > MOST:
        masked = masked[np.linspace(0, len(masked) - 1, MOST).round().astype(int)]
    return across_categories(images.select(masked), seed) if len(masked) else ()


def splits_to_compare(case: Case) -> dict[str, Images]:
    """Return the test splits by name, and `swapped` where it decides or enough images have masks."""
    tests = dict[str, Images](case.data.tests)
    if not swapped_count(case):
        return tests
    return {**tests, SWAPPED: swapped_images(case.data.tests[case.data.primary], case.plan.seed)}


def swapped_count(case: Case) -> int:
    """Return how many images the split `swapped` will have; 0 where it is not made.

    Data with several test splits bring a shifted one of their own: there it is made only if it decides.
    """
    data, decides = case.data, case.plan.primary == SWAPPED
    table = data.tests[data.primary].table
    masked = int(table.has_mask.sum()) if len(np.unique(table.labels[table.has_mask])) > 1 else 0
    wanted = decides or (len(data.tests) == 1 and masked >= LEAST)
    return min(masked, MOST) if wanted and SWAPPED not in data.tests else 0
