"""Prepare the images of a data set in another way, or number its categories in another order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from torchdoctor.data.load import Splits
from torchdoctor.data.loader import Loader
from torchdoctor.data.pixels import PixelStore, Preprocessing
from torchdoctor.types import InputError


def prepared_as(data: Splits, preprocessing: Preprocessing) -> Splits:
    """Return the same images, prepared in another way.

    Args:
        data: The data.
        preprocessing: How its images are to be prepared.

    Returns:
        The data with new loaders; images decoded before are kept where only the normalisation differs.
    """
    normalisation = replace(preprocessing, mean=data.preprocessing.mean, std=data.preprocessing.std)

    def prepared(loader: Loader) -> Loader:
        same = normalisation == data.preprocessing and preprocessing.channels == data.preprocessing.channels
        if same:
            return replace(loader, preprocessing=preprocessing)
        size, channels = preprocessing.image_size, preprocessing.channels
        store = PixelStore(loader.table, size, channels, preprocessing.resize, preprocessing.crop_share)
        return replace(loader, preprocessing=preprocessing, store=store)

    return replace(_with_loaders(data, prepared), preprocessing=preprocessing)


def in_order_of(data: Splits, classes: Sequence[str]) -> Splits:
    """Return the same images, with their categories numbered in another order.

    Args:
        data: The data.
        classes: The names of its categories in the wanted order.

    Returns:
        The data with new tables; images that were decoded before are kept.

    Raises:
        InputError: These are not the names of the data's categories.
    """
    if sorted(classes) != sorted(data.classes):
        raise InputError(f"categories {list(classes)}: expected those of the data, {list(data.classes)}")
    wanted = tuple(classes)
    number = np.array([wanted.index(name) for name in data.classes], dtype=np.int64)

    def ordered(loader: Loader) -> Loader:
        table = replace(loader.table, classes=wanted, labels=number[loader.table.labels])
        return replace(loader, table=table, classes=wanted)

    return replace(_with_loaders(data, ordered), classes=wanted)


def _with_loaders(data: Splits, changed: Callable[[Loader], Loader]) -> Splits:
    """Return the data with every loader changed."""
    return replace(
        data,
        train=changed(data.train),
        validation=changed(data.validation),
        tests={name: changed(loader) for name, loader in data.tests.items()},
    )
