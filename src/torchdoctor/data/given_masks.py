"""Give images of a table masks from files that lie apart from the data."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from torchdoctor.data.fingerprints import DIGITS
from torchdoctor.data.image_names import file_of
from torchdoctor.data.mask_folder import WithMasks
from torchdoctor.data.table import ChosenRows, ImageTable


def with_masks(table: ImageTable, files: Mapping[int, Path]) -> ImageTable:
    """Give images of a table masks from files.

    Args:
        table: The images.
        files: The mask files by the image's id, drawn on the upright images.

    Returns:
        The same images with the masks.
    """
    masks = tuple(files.get(identity) for identity in table.ids.tolist())
    own = tuple(file_of(table, position) for position in range(len(table)))
    told = np.array([mask is not None for mask in masks], dtype=bool)
    reader = WithMasks(table.read, masks, own, table.names, drawn_upright=True)
    return replace(table, read=reader, has_mask=table.has_mask | told)


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
