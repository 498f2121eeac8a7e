"""Load images that were given from Python as normalised tensors, as `Loader` loads those of a table."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from torchdoctor.data.augmentation import AUGMENT, AnyMask, AnyPixels, Augment, augmented
from torchdoctor.data.loader import Loader
from torchdoctor.data.order import Plan
from torchdoctor.data.pixels import Preprocessing
from torchdoctor.data.table import ImageTable
from torchdoctor.images.batches import Batch
from torchdoctor.images.loaders import ImageSource, images_of
from torchdoctor.processes import ALONE, Processes
from torchdoctor.types import InputError

MOST_GIGABYTES = 16.0  # of images given from Python, which are held in memory


@dataclass(frozen=True)
class TensorImages:
    """Images in memory; as the reader of a table it gives pictures of them.

    Attributes:
        images: Normalised images, each [channel, height, width].
        masks: The mask of each image [1, height, width], 1 on the object; None without one.
        shown: How pictures are made of them: what is shown is x * std + mean.
        places: The position of every image, by its id.
    """

    images: Sequence[Tensor]
    masks: Sequence[Tensor | None]
    shown: Preprocessing
    places: Mapping[int, int]

    def __call__(self, position: int) -> tuple[Image.Image, Image.Image | None]:
        """Return a picture of an image.

        Args:
            position: The position of the image.

        Returns:
            The RGB image, and its mask or None.
        """
        mean, std = (torch.tensor(each).view(-1, 1, 1) for each in (self.shown.mean, self.shown.std))
        colours = (self.images[position].cpu() * std + mean).clamp(0, 1).expand(3, -1, -1)
        pixels = (255 * colours).round().to(torch.uint8).permute(1, 2, 0).numpy()
        mask = self.masks[position]
        if mask is None:
            return Image.fromarray(pixels), None
        return Image.fromarray(pixels), Image.fromarray((255 * (mask[0].cpu() >= 0.5)).byte().numpy())

    def stamp(self, position: int) -> tuple[bytes, bytes]:
        """Return bytes that change with an image and with its mask.

        Args:
            position: The position of the image.

        Returns:
            A hash of the image's numbers, and one of its mask's; empty without a mask.
        """
        return _hash(self.images[position]), _hash(self.masks[position])


def _hash(tensor: Tensor | None) -> bytes:
    """Return a hash of a tensor's numbers."""
    if tensor is None:
        return b""
    numbers = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.blake2b(numbers.tobytes(), digest_size=16).digest()


@dataclass(frozen=True)
class TensorLoader(Loader):
    """Images in memory that are normalised already; everything else is as in `Loader`.

    Attributes:
        held: The images; loaders made from this loader share them.
    """

    held: TensorImages = field(default=None, repr=False, compare=False)  # type: ignore[assignment]

    def check(self) -> None:
        """Do nothing: there is nothing to decode."""

    def _load(self, plan: Plan, processes: Processes = ALONE) -> Iterator[Batch]:
        """Yield the batches of a plan; nothing is decoded that processes could share."""
        del processes
        for step, draws in enumerate(plan):
            drawn = [self._drawn(*draw) for draw in draws]
            pixels = torch.stack([image for image, _ in drawn])
            yield self._batch(plan.rows_of(step), pixels, [mask for _, mask in drawn])

    def _drawn(self, row: int, key: tuple[int, ...] | None) -> tuple[AnyPixels, AnyMask | None]:
        """Return an image and its mask, augmented where it has a key."""
        place = self.held.places[int(self.table.ids[row])]
        image, mask = self.held.images[place].cpu(), self.held.masks[place]
        mask = None if mask is None else mask.cpu()
        if key is None or self.augment == "none":
            return image, mask
        return augmented(image, mask, self.augment, key)

    def _normalised(self, pixels: Tensor) -> Tensor:
        """Return the images as they are."""
        return pixels


def tensor_loader(
    source: ImageSource,
    name: str,
    classes: Sequence[str],
    *,
    shown: Preprocessing | None = None,
    batch_size: int | None = None,
    augment: Augment = AUGMENT,
) -> Loader:
    """Make a loader of images that were given from Python.

    Args:
        source: What `images_of` takes; a `Loader` is returned as it is.
        name: What the images are called in messages, such as `train`.
        classes: The names of the categories.
        shown: How the images were normalised, for pictures of them; None: so that their range, channel by
            channel, becomes 0..1.
        batch_size: The number of images in a batch; None: that of the source's first batch.
        augment: How the images of training batches are augmented.

    Returns:
        The loader.

    Raises:
        InputError: There is no image; images differ in size; one has another number of channels than 1 or 3;
            a label is no category; an id comes twice; or they do not fit into memory.
    """
    if isinstance(source, Loader):
        return source
    images: list[Tensor] = []
    masks: list[Tensor | None] = []
    labels: list[int] = []
    ids: list[int] = []
    size = 0
    for batch in images_of(source):
        size = size or len(batch.labels)
        images += batch.images.detach().unbind()
        labels += batch.labels.tolist()
        ids += batch.ids.tolist()
        masks += _masks_of(batch)
        _check_batch(batch, images, labels, name, classes)
    if not images:
        raise InputError(f"{name}: there is no image")
    if len(set(ids)) < len(ids):
        raise InputError(f"{name}: {len(ids)} images have {len(set(ids))} different ids; each needs its own")
    places = {identity: place for place, identity in enumerate(ids)}
    held = TensorImages(images, masks, shown or shown_as(images), places)
    table = ImageTable(
        classes=tuple(classes),
        labels=np.array(labels, dtype=np.int64),
        names=tuple(f"{name}[{number}]" for number in ids),
        ids=np.array(ids, dtype=np.int64),
        read=held,
        has_mask=np.array([mask is not None for mask in masks]),
    )
    return TensorLoader(
        table, held.shown, max(batch_size or size, 2), augment=augment, classes=tuple(classes), held=held
    )


def shown_as(images: Sequence[Tensor]) -> Preprocessing:
    """Find the normalisation that would have made images out of pixels that fill the range 0..1.

    Args:
        images: Normalised images, each [channel, height, width], of one shape.

    Returns:
        Mean and standard deviation such that the smallest value of a channel is (0 - mean) / std and the
        largest (1 - mean) / std; and the shorter side.
    """
    low = torch.stack([image.flatten(1).amin(1).double().cpu() for image in images]).amin(0)
    high = torch.stack([image.flatten(1).amax(1).double().cpu() for image in images]).amax(0)
    std = torch.where(high > low, 1 / (high - low).clamp(min=1e-9), 1.0)
    # x = (pixel - mean) / std: pictures show x * std + mean.
    return Preprocessing(min(images[0].shape[1:]), tuple((-low * std).tolist()), tuple(std.tolist()))


def _masks_of(batch: Batch) -> list[Tensor | None]:
    """Return the mask of each image of a batch, None where it has none."""
    if batch.masks is None:
        return [None] * len(batch.labels)
    known = torch.ones(len(batch.labels)) if batch.annotated is None else batch.annotated
    pairs = zip(batch.masks.unbind(), known.tolist(), strict=True)
    return [mask if annotated and bool(mask.any()) else None for mask, annotated in pairs]


def _check_batch(
    batch: Batch, images: Sequence[Tensor], labels: Sequence[int], name: str, classes: Sequence[str]
) -> None:
    """Refuse images and labels that a checkup cannot use."""
    shape, first = tuple(batch.images.shape[1:]), tuple(images[0].shape)
    if shape != first:
        raise InputError(
            f"{name}: images of {first} and of {shape}; expected one size [channel, height, width]"
        )
    if shape[0] not in (1, 3):
        raise InputError(
            f"{name}: images of {shape[0]} channels; a checkup shows pictures and takes 3 or 1. Call "
            "diagnose, find_causes, treat and compare, which take any number"
        )
    wrong = [label for label in batch.labels.tolist() if not 0 <= label < len(classes)]
    if wrong:
        raise InputError(
            f"{name}: label {wrong[0]}, and there are {len(classes)} categories; expected 0 to "
            f"{len(classes) - 1}"
        )
    gigabytes = len(labels) * batch.images[0].nbytes / 1e9
    if gigabytes > MOST_GIGABYTES:
        raise InputError(
            f"{name}: more than {MOST_GIGABYTES:g} GB of images, and a checkup in Python holds them in "
            "memory. Give images that load_data reads (td.load_data(...).train), or the command checkup"
        )
