"""The test splits that a treatment is compared on: those of the data, and a split of swapped images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from torchdoctor.case.preparation import SWAPPED, Case
from torchdoctor.data.loader import CPU, Loader
from torchdoctor.data.table import spread_over
from torchdoctor.images.backgrounds import across_categories
from torchdoctor.images.batches import Batch, Images

MOST_SWAPPED = 2000  # images: they are all decoded at once
LEAST_SWAPPED = 400  # images: fewer could lose `--max-loss` points by chance


def swapped_images(images: Loader, seed: int) -> tuple[Batch, ...]:
    """Replace the backgrounds of images by those of images of other categories, using their masks.

    Args:
        images: The images of a split.
        seed: The seed of the choice of backgrounds.

    Returns:
        At most 2000 of the images that have masks, spread over the split; empty without masks.
    """
    masked = images.table.ids[images.table.has_mask]
    masked = spread_over(masked, MOST_SWAPPED)
    # All are composed at once, which main memory has more room for.
    chosen = replace(images.select(masked), device=CPU)
    return across_categories(chosen, seed) if len(masked) else ()


def splits_to_compare(case: Case) -> dict[str, Images]:
    """Return the test splits that a treatment is compared on.

    Args:
        case: The prepared case.

    Returns:
        The images by split; `swapped` is among them where the verdict is about it, or where enough images
        have masks.
    """
    tests = dict[str, Images](case.data.tests)
    if not swapped_count(case):
        return tests
    return {**tests, SWAPPED: swapped_images(case.data.tests[case.data.primary], case.plan.seed)}


def swapped_count(case: Case) -> int:
    """Count the images of the split `swapped`, before it is made.

    Data with several test splits already contain a split with a shift: there `swapped` is made only if the
    verdict is about it.

    Args:
        case: The prepared case.

    Returns:
        The number of images; 0 where the split is not made.
    """
    data, decides = case.data, case.plan.primary == SWAPPED
    masked = swappable(data.tests[data.primary])
    wanted = decides or (len(data.tests) == 1 and masked >= LEAST_SWAPPED)
    return min(masked, MOST_SWAPPED) if wanted and SWAPPED not in data.tests else 0


def swappable(images: Loader) -> int:
    """Count the images of a split whose backgrounds can be replaced, without decoding any.

    Args:
        images: The images of a split.

    Returns:
        The number of images that have masks; 0 where they are all of one category.
    """
    table = images.table
    return int(table.has_mask.sum()) if len(np.unique(table.labels[table.has_mask])) > 1 else 0
