"""Prepare the images of a data set in another way, or number its categories in another order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from torchdoctor.data.load import Splits
from torchdoctor.data.loader import Loader
from torchdoctor.data.pixels import PixelStore, Preprocessing
from torchdoctor.processes import ALONE, Processes
from torchdoctor.types import InputError

LARGER, LEAST_LARGER = 1.5, 1.25  # times the side of the images; see `larger_images`
SAMPLED = 24  # images whose files are opened to learn how many pixels they have


def prepared_as(data: Splits, preprocessing: Preprocessing) -> Splits:
    """Return the same images, prepared in another way.

    Args:
        data: The data.
        preprocessing: How its images are to be prepared.

    Returns:
        The data with new loaders; images decoded before are kept where only the normalisation differs.
    """
    changed = _with_loaders(data, lambda loader: prepared_loader(loader, preprocessing))
    return replace(changed, preprocessing=preprocessing)


def larger_images(images: Loader) -> Loader | None:
    """Return the same images made half as large again, where their files have the pixels.

    Args:
        images: The images.

    Returns:
        The images with 1.5 times the pixels along a side, or with as many as the files have if that is at
        least 1.25 times; None where most files have fewer. The side is a multiple of 8.
    """
    if not len(images):
        return None
    places = np.unique(np.linspace(0, len(images) - 1, SAMPLED).astype(int)).tolist()
    sides = [min(images.table.read(place)[0].size) for place in places]
    size = images.preprocessing.image_size
    possible = int(min(LARGER * size, float(np.median(sides)))) // 8 * 8
    if possible < LEAST_LARGER * size:
        return None
    return prepared_loader(images, replace(images.preprocessing, image_size=possible))


def prepared_loader(loader: Loader, preprocessing: Preprocessing) -> Loader:
    """Return the images of a loader, prepared in another way.

    Args:
        loader: The images.
        preprocessing: How they are to be prepared.

    Returns:
        A new loader; images decoded before are kept where only the normalisation differs.
    """
    now = loader.preprocessing
    renormalised = replace(preprocessing, mean=now.mean, std=now.std)
    if renormalised == now and preprocessing.channels == now.channels:
        return replace(loader, preprocessing=preprocessing)
    size, channels = preprocessing.image_size, preprocessing.channels
    store = PixelStore(loader.table, size, channels, preprocessing.resize, preprocessing.crop_share)
    return replace(loader, preprocessing=preprocessing, store=store)


def loaded_to(data: Splits, device: torch.device, processes: Processes = ALONE) -> Splits:
    """Let the batches of all splits be put together where the network computes.

    Args:
        data: The splits.
        device: The device of the network.
        processes: Who trains together: each then decodes a part of every training batch.

    Returns:
        The same splits, whose batches lie there.
    """
    there = _with_loaders(data, lambda loader: replace(loader, device=device))
    return replace(there, train=replace(there.train, processes=processes))


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
