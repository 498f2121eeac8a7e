"""Give images of a table masks from files that lie apart from the data."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL.Image import Image

from torchdoctor.data.annotations import check_mask_size, mask_from_png
from torchdoctor.data.fingerprints import DIGITS, stamp_of_file
from torchdoctor.data.table import ChosenRows, ImageTable


@dataclass(frozen=True)
class WithMasks:
    """A reader of images, some of which have a mask in a file of its own.

    Attributes:
        images: The reader of the images; a mask that it has itself gives way to the file.
        files: The mask files by the position of the image. A mask is drawn on the upright image.
    """

    images: ChosenRows
    files: Mapping[int, Path]

    def __call__(self, position: int) -> tuple[Image, Image | None]:
        """Decode an image and its mask.

        Args:
            position: The position of the image in the table.

        Returns:
            The image, and its mask or None.

        Raises:
            InputError: A file is damaged, or a mask has another size than its image.
        """
        image, own = self.images(position)
        file = self.files.get(position)
        if file is None:
            return image, own
        return image, check_mask_size(mask_from_png(file, str(file)), image.size, str(file))

    def stamp(self, position: int) -> tuple[bytes, bytes]:
        """Return bytes that change with an image and with its mask.

        Args:
            position: The position of the image in the table.

        Returns:
            The stamps of the image and of its mask.
        """
        image, own = self.images.stamp(position)
        file = self.files.get(position)
        return image, own if file is None else stamp_of_file(file)

    def identity(self, position: int) -> bytes:
        """Return bytes that no other image has, without decoding it.

        Args:
            position: The position of the image in the table.

        Returns:
            What the reader of the images has for this.
        """
        return self.images.identity(position)


def with_masks(table: ImageTable, files: Mapping[int, Path]) -> ImageTable:
    """Give images of a table masks from files.

    Args:
        table: The images.
        files: The mask files by the image's id.

    Returns:
        The same images with the masks.
    """
    places = {identity: place for place, identity in enumerate(table.ids.tolist())}
    by_place = {places[identity]: file for identity, file in files.items()}
    has_mask = table.has_mask.copy()
    has_mask[list(by_place)] = True
    rows = ChosenRows(table.read, np.arange(len(table)))
    return replace(table, read=WithMasks(rows, by_place), has_mask=has_mask)


def image_hash(table: ImageTable, position: int) -> str:
    """Return a hash of an image by which a later run knows it again.

    Args:
        table: The images.
        position: The position of the image in the table.

    Returns:
        Hexadecimal digits; empty where the reader of the images can tell nothing without decoding.
    """
    identity = ChosenRows(table.read, np.arange(len(table))).identity(position)
    return hashlib.blake2b(identity, digest_size=8).hexdigest()[:DIGITS] if identity else ""
