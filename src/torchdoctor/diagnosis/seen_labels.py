"""What a network says of labelled images: logits and averaged maps, without categories of few images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from torchdoctor.diagnosis.diagnose import category_names
from torchdoctor.evidence.measurement import first_images
from torchdoctor.images.batches import Images
from torchdoctor.network.pooled import logits_and_pooled, places_of
from torchdoctor.processes import ALONE, Processes
from torchdoctor.types import InputError


@dataclass(frozen=True)
class Seen:
    """What the network says of the images, in the order of their ids; small categories are left out.

    Attributes:
        ids: The ids of the images.
        labels: Their labels, which number the categories in `names`.
        logits: The logits of these categories.
        features: The averaged maps.
        names: The names of the categories that have enough images.
        numbers: The numbers of these categories among all.
        categories: The number of all categories.
        accuracy: How many of all images are classified as labelled, in percent.
        few: The names of the categories that were left out.
    """

    ids: Int[np.ndarray, " image"]
    labels: Int[np.ndarray, " image"]
    logits: Float[np.ndarray, "image category"]
    features: Float[Tensor, "image feature"]
    names: tuple[str, ...]
    numbers: Int[np.ndarray, " category"]
    categories: int
    accuracy: float
    few: tuple[str, ...]


def look(
    model: nn.Module,
    images: Images,
    layers: Sequence[str] | None,
    folds: int,
    classes: Sequence[str] | None,
    processes: Processes = ALONE,
) -> Seen:
    """Run all images through the network, and check that their labels can be judged.

    Args:
        model: The network.
        images: The images.
        layers: The layers whose maps are kept (see `find_suspects`).
        folds: The number of images that a category needs.
        classes: The names of the categories; None: those of `images`, else numbers.
        processes: The processes that work together: each predicts a share of the batches.

    Returns:
        What the network says.

    Raises:
        InputError: Fewer than two categories have enough images, or the network gives NaN.
    """
    places = places_of(model, first_images(model, images), layers)
    ids, labels, logits, features = logits_and_pooled(model, images, places, processes=processes)
    names = category_names(classes, images, logits.shape[1])
    broken = ~(logits.isfinite().all(1) & features.isfinite().all(1))
    if bool(broken.any()):
        raise InputError(
            f"the network gives NaN or infinity for {int(broken.sum())} of {len(ids)} images, such as image "
            f"id {int(ids[broken][0])}: look for damaged weights, or run it in float32"
        )
    counts = np.bincount(labels.numpy(), minlength=len(names))
    enough = np.flatnonzero(counts >= folds)
    if len(enough) < 2:
        raise InputError(
            f"{len(enough)} of {len(names)} categories have {folds} images or more, one for each fold; "
            "expected at least two categories: give more images, or fewer folds"
        )
    rows = torch.argsort(ids)
    rows = rows[torch.isin(labels[rows], torch.from_numpy(enough))]
    number = np.full(len(names), -1)
    number[enough] = np.arange(len(enough))
    return Seen(
        ids=ids[rows].numpy(),
        labels=number[labels[rows].numpy()],
        logits=logits[rows][:, enough].double().numpy(),
        features=features[rows],
        names=tuple(names[category] for category in enough.tolist()),
        numbers=enough,
        categories=len(names),
        accuracy=float(100.0 * (logits.argmax(1) == labels).double().mean()),
        few=tuple(names[category] for category in np.flatnonzero((counts > 0) & (counts < folds)).tolist()),
    )
