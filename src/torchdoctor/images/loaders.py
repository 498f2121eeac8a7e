"""Take images as users of PyTorch have them: a DataLoader, a Dataset, or anything that yields them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from torchdoctor.images.batches import Batch, Images
from torchdoctor.types import InputError, first_line

ImageSource = Images | Iterable[Any] | Dataset[Any]
"""Where images come from: our own `Images`, a DataLoader, a Dataset, or an iterable of what these yield."""

# Names under which dictionaries hold images, labels and object masks, the likeliest first.
IMAGES = ("pixel_values", "images", "image", "img", "inputs", "input", "x")
LABELS = ("labels", "label", "targets", "target", "category", "fine_label", "y")
MASKS = ("masks", "mask", "object_masks", "object_mask")
TOGETHER = 64  # single images that are put into a batch
EXPECTED = (
    "expected a torchdoctor.Batch, (images, labels), (images, labels, masks), or a dictionary with "
    "'pixel_values' or 'image' and 'labels' or 'label'"
)


def images_of(source: ImageSource) -> Images:
    """Return images as this package takes them.

    Ids are the places of images in their data set, in its own order; so a DataLoader that shuffles is read
    through a loader of the same data set that does not, and no image is dropped.

    Args:
        source: Our own `Images`; a DataLoader; a Dataset; or an iterable. These yield `Batch`, (images,
            labels), (images, labels, masks), or dictionaries as Hugging Face's; of batches or of single
            images [channel, height, width]. Images are normalised, as the network takes them; masks are 1 on
            the object, and an empty one stands for an image without a mask.

    Returns:
        The images; `source` itself where it is `Images` already.

    Raises:
        InputError: The order of the images cannot be known, or (while it is iterated) they are something
            else than is expected.
    """
    if hasattr(source, "select") and hasattr(source, "table"):  # of this package; costly to peek into
        return cast(Images, source)
    if isinstance(source, DataLoader):
        return _checked(_Adapted(_in_order(source), getattr(source.dataset, "classes", None)))
    if isinstance(source, Dataset) and not isinstance(source, IterableDataset):
        loader = DataLoader(source, batch_size=TOGETHER)
        return _checked(_Adapted(loader, getattr(source, "classes", None)))
    if isinstance(source, Mapping | str | bytes | Tensor) or not hasattr(source, "__iter__"):
        raise InputError(f"images: found {type(source).__name__}; expected a DataLoader, a Dataset or a list")
    if iter(source) is source:  # an iterator can be read once only
        source = tuple(source)
    first = next(iter(source), None)
    if first is None or isinstance(first, Batch):
        return cast(Images, source)
    return _checked(_Adapted(source, getattr(source, "classes", None)))


@dataclass(frozen=True)
class _Adapted:
    """Images made from what an iterable yields.

    `source` yields the same each time it is iterated; `classes` are the names of the categories, if known.
    """

    source: Iterable[Any]
    classes: Any = None

    def __iter__(self) -> Iterator[Batch]:
        """Return an iterator over the batches."""
        start = 0
        for items in _told(_batches(self.source)):
            batch = items if isinstance(items, Batch) else batch_of(items, start)
            start += len(batch.labels)
            yield batch

    def share(self, rank: int, count: int) -> Iterator[Batch]:
        """Yield the batches of one of several processes; a DataLoader of batches loads no other image.

        Args:
            rank: The number of the process, from 0.
            count: How many there are.

        Yields:
            Every `count`-th of the batches that iterating yields, from the `rank`-th on.
        """
        loader: Any = self.source
        sampler = loader.batch_sampler if isinstance(loader, DataLoader) else None
        if type(sampler) is not BatchSampler or isinstance(loader.dataset, IterableDataset):
            yield from islice(self, rank, None, count)
            return
        part = _with_batches(loader, list(sampler)[rank::count])
        starts = range(rank * sampler.batch_size, len(loader.dataset), count * sampler.batch_size)
        for start, items in zip(starts, _told(iter(part)), strict=True):
            yield items if isinstance(items, Batch) else batch_of(items, start)


def _checked(images: _Adapted) -> Images:
    """Return the images; InputError where a second look shows others than the first."""
    once, again = (next(iter(images), None) for _ in range(2))
    if once is None or again is None:
        return images
    if once.images.shape != again.images.shape or not torch.equal(once.images, again.images):
        raise InputError(
            "images: a second pass gives other pixels than the first (random augmentation in the data set's "
            "transform?). Give images as they are: their evidence is compared from pass to pass"
        )
    return images


def _in_order(loader: DataLoader[Any]) -> DataLoader[Any]:
    """Return a loader that yields all images in the order of the data set."""
    sampler, whole = loader.sampler, not loader.drop_last
    if isinstance(loader.dataset, IterableDataset) or (isinstance(sampler, SequentialSampler) and whole):
        return loader
    usual = type(loader.batch_sampler) is BatchSampler
    whole_set = isinstance(sampler, RandomSampler) and not sampler.replacement
    whole_set = whole_set and len(cast(Any, sampler)) == len(cast(Any, loader.dataset))
    if not usual or not (whole_set or isinstance(sampler, SequentialSampler)):
        kind = type(sampler if usual else loader.batch_sampler).__name__
        raise InputError(
            f"images: the DataLoader chooses its images by a {kind}, and each image needs a number that "
            "stays: give a DataLoader with shuffle=False and no sampler of its own"
        )
    dataset: Any = loader.dataset
    return _with_batches(loader, BatchSampler(SequentialSampler(dataset), loader.batch_size or 1, False))


def _with_batches(loader: DataLoader[Any], batches: Iterable[list[int]]) -> DataLoader[Any]:
    """Return a loader of other batches of the same data set."""
    return DataLoader(
        loader.dataset,
        batch_sampler=batches,
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
    )


def _told(items: Iterator[Any]) -> Iterator[Any]:
    """Yield items; where PyTorch cannot put single ones together, say what it was given."""
    while True:
        try:
            item = next(items)
        except StopIteration:
            return
        except TypeError as error:
            if "default_collate" not in str(error):
                raise
            raise InputError(
                f"images: the data set gives no tensors ({first_line(error)}): give it a transform that ends "
                "in normalised tensors, such as ToTensor and Normalize"
            ) from error
        yield item


def _batches(source: Iterable[Any]) -> Iterator[Any]:
    """Yield batches; single images are put together."""
    items = iter(source)
    for first in items:
        if isinstance(first, Batch) or np.ndim(_parts(first)[0]) != 3:
            yield first
            continue
        singles = [_parts(each) for each in (first, *islice(items, TOGETHER - 1))]
        together = [
            torch.stack([torch.as_tensor(part) for part in parts]) for parts in zip(*singles, strict=True)
        ]
        yield tuple(together)


def _parts(item: Any) -> tuple[Any, ...]:
    """Return images, labels and, if they are there, masks."""
    if isinstance(item, Mapping):
        found = [_field(item, names) for names in (IMAGES, LABELS, MASKS)]
        if found[0] is None or found[1] is None:
            raise InputError(f"images: found a dictionary with {', '.join(map(str, item))}; {EXPECTED}")
        return tuple(part for part in found if part is not None)
    if isinstance(item, tuple | list) and len(item) in (2, 3):
        return tuple(item)
    size = f" of {len(item)}" if isinstance(item, tuple | list) else ""
    raise InputError(f"images: found {type(item).__name__}{size}; {EXPECTED}")


def _field(item: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    """Return the first of these fields that is there."""
    return next((item[name] for name in names if name in item), None)


def batch_of(item: Any, start: int = 0) -> Batch:
    """Return images with their labels and, if they are there, masks, as a batch of this package.

    Args:
        item: (images, labels), (images, labels, masks), or a dictionary that holds them; see `images_of`.
        start: The id of the first image; the others follow.

    Returns:
        The batch; an image whose mask is empty counts as one without a mask.

    Raises:
        InputError: Something is missing, or has another shape or type than is expected.
    """
    parts = _parts(item)
    pixels, labels = _tensor(parts[0], "images"), _tensor(parts[1], "labels")
    if pixels.ndim != 4:
        raise InputError(
            f"images: found shape {tuple(pixels.shape)}; expected [batch, channel, height, width]"
        )
    if not pixels.is_floating_point():
        raise InputError(
            f"images: found {pixels.dtype} pixels; expected normalised floats, as the network takes them"
        )
    labels = labels.flatten() if labels.numel() == len(pixels) else labels
    if labels.ndim != 1 or len(labels) != len(pixels) or bool((labels != labels.long()).any()):
        raise InputError(
            f"images: labels of shape {tuple(labels.shape)} and type {labels.dtype} for {len(pixels)} "
            "images; expected the number of one category for each image"
        )
    batch = Batch(pixels, labels.long(), torch.arange(start, start + len(labels)))
    return replace(batch, **_masked(parts[2], pixels)) if len(parts) == 3 else batch


def _masked(mask: Any, pixels: Tensor) -> dict[str, Tensor]:
    """Return the fields of a batch that hold masks."""
    masks = _tensor(mask, "masks")
    masks = masks[:, None] if masks.ndim == 3 else masks
    if masks.shape != (len(pixels), 1, *pixels.shape[2:]):
        raise InputError(
            f"images: masks of shape {tuple(masks.shape)} for images of {tuple(pixels.shape)}; expected "
            "[batch, 1, height, width] or [batch, height, width] of the images' size"
        )
    masks = masks.float()
    if bool((masks < 0).any() or (masks > 1).any() or masks.isnan().any()):
        raise InputError("images: masks hold other values than 0..1; expected 1 on the object, 0 elsewhere")
    return {"masks": masks, "annotated": masks.flatten(1).any(1).cpu()}


def _tensor(value: Any, name: str) -> Tensor:
    """Return a tensor; InputError where it is made of something else than numbers."""
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"images: {name} are {type(value).__name__}; {EXPECTED}") from error
