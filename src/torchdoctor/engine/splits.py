"""The test splits that a treatment is compared on: the data's own, and one before other backgrounds."""

from __future__ import annotations

import numpy as np

from torchdoctor.data import Loader
from torchdoctor.engine.preparation import SWAPPED, Case
from torchdoctor.swapping import across_categories
from torchdoctor.types import Batch, Images

MOST = 2000  # images that are decoded at once to be swapped
LEAST = 100  # fewer would call chance a loss


def swapped_images(images: Loader, seed: int) -> tuple[Batch, ...]:
    """Return the images that have masks, each before the background of one of another category.

    At most 2000 of them, spread over the split; empty without masks.
    """
    masked = images.table.ids[images.table.has_mask]
    if len(masked) > MOST:
        masked = masked[np.linspace(0, len(masked) - 1, MOST).round().astype(int)]
    return across_categories(images.select(masked), seed) if len(masked) else ()


def splits_to_compare(case: Case) -> dict[str, Images]:
    """Return the test splits by name, and `swapped` where it decides or at least 100 images have masks.

    Data with several test splits bring a shifted one of their own: there it is made only if it decides.
    """
    data, tests = case.data, dict[str, Images](case.data.tests)
    source, decides = data.tests[data.primary], case.settings.primary == SWAPPED
    enough = len(tests) == 1 and int(source.table.has_mask.sum()) >= LEAST
    if SWAPPED in tests or not (decides or enough):
        return tests
    return {**tests, SWAPPED: swapped_images(source, case.settings.seed)}
