"""Object masks for pictures on black: what is brighter than 0 is the object (MNIST, Fashion-MNIST)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from torchdoctor.data.table import ImageTable, ReadImage, Tables

DARK = 8  # of 255: what a lossy copy leaves of black


@dataclass(frozen=True)
class BrightObject:
    """Reads an image and marks what is not black."""

    read: ReadImage

    def __call__(self, position: int) -> tuple[Image.Image, Image.Image | None]:
        """Decode one image with its mask; a black one has none."""
        image, _ = self.read(position)
        bright = np.asarray(image.convert("L")) > DARK
        return image, Image.fromarray(np.where(bright, 255, 0).astype(np.uint8)) if bright.any() else None


def by_pixel(tables: Tables) -> Tables:
    """Return the tables with a mask for every image."""

    def masked(table: ImageTable) -> ImageTable:
        return replace(table, read=BrightObject(table.read), has_mask=np.ones(len(table), dtype=bool))

    return replace(
        tables,
        train=masked(tables.train),
        validation=masked(tables.validation),
        tests={name: masked(one) for name, one in tables.tests.items()},
    )
