"""Test whether far more images are classified correctly if they are prepared in another usual way."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import permutations

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import binomtest
from torch import Tensor, nn

from torchdoctor.diagnosis.renaming import renamed
from torchdoctor.images.batches import Batch, Images, only
from torchdoctor.images.normalisation import NORMALISATIONS, per_channel
from torchdoctor.network.frozen import frozen_eval
from torchdoctor.network.prediction import device_of, dtype_of

FIRST, LOOKED_AT = 64, 256  # images: for a first look, and where that is promising
PROMISING, BETTER = 0.03, 0.1  # share of them that must come right beyond those that go wrong
SURE = 1e-5  # largest p value of that
NEARLY = 0.05  # share of images by which it may fall behind another order of the categories


def other_preparations(channels: int) -> Mapping[str, tuple[Float[Tensor, "channel 1 1"], ...] | None]:
    """Return the other usual ways to prepare normalised images.

    Args:
        channels: The number of channels.

    Returns:
        The ways by their descriptions. A way is a factor and a summand for each channel; None stands for the
        channels in reverse order, which is left out for images of one channel.
    """
    known = {
        name: [torch.tensor(per_channel(values, channels)).view(-1, 1, 1) for values in both]
        for name, both in NORMALISATIONS.items()
    }
    ways: dict[str, tuple[Tensor, ...] | None] = {
        f"with {name} instead of {other_name}": (other_std / std, (other_mean - mean) / std)
        for (other_name, (other_mean, other_std)), (name, (mean, std)) in permutations(known.items(), 2)
    }
    return ways | ({"with the colours in reverse order": None} if channels == 3 else {})


def prepared(
    images: Float[Tensor, "batch channel height width"], way: tuple[Tensor, ...] | None
) -> Float[Tensor, "batch channel height width"]:
    """Prepare normalised images in another way.

    Args:
        images: The images.
        way: A value of `other_preparations`.

    Returns:
        The images as that way gives them.
    """
    return images.flip(1) if way is None else images * way[0].to(images) + way[1].to(images)


def better_preparation(
    model: nn.Module, images: Images, ids: list[int], seed: int = 0
) -> tuple[str, tuple[Tensor, ...] | None] | None:
    """Find another preparation by which far more images are classified correctly.

    Args:
        model: The network.
        images: The normalised images.
        ids: The ids of all images, of which at most `LOOKED_AT` are looked at.
        seed: The seed of their choice.

    Returns:
        The best way and its description; None where no way makes clearly more images right than wrong: the
        difference must be at least `BETTER` of the images, and more than chance. Where predictions are right
        in another order of the categories, a way must make nearly as many images right as that order does.
    """
    chosen = np.random.default_rng(seed).permutation(ids)[:LOOKED_AT].tolist()
    batches = list(only(images, chosen))
    pixels = torch.cat([batch.images for batch in batches])
    labels = torch.cat([batch.labels for batch in batches])
    predicted = _predicted(model, pixels)
    before, wanted = predicted == labels.cpu().numpy(), 0.0
    order = renamed(labels.cpu().numpy(), predicted, int(max(predicted.max(), labels.max())) + 1)
    if order.taken_for is not None:
        wanted = float(order.right.mean()) - NEARLY
    best: tuple[float, str, tuple[Tensor, ...] | None] = (0.0, "", None)
    for name, way in other_preparations(pixels.shape[1]).items():
        look = _right(model, prepared(pixels[:FIRST], way), labels[:FIRST])
        if look.mean() < before[:FIRST].mean() + PROMISING:
            continue
        after = _right(model, prepared(pixels, way), labels)
        gained, lost = int((after & ~before).sum()), int((before & ~after).sum())
        share = (gained - lost) / len(before)
        if (
            after.mean() >= wanted
            and share >= max(BETTER, best[0])
            and binomtest(gained, gained + lost).pvalue <= SURE
        ):
            best = (share, name, way)
    return (best[1], best[2]) if best[1] else None


def right_if(model: nn.Module, batch: Batch, way: tuple[Tensor, ...] | None) -> Bool[np.ndarray, " image"]:
    """Return which images are classified correctly if they are prepared in another way.

    Args:
        model: The network.
        batch: The images.
        way: A value of `other_preparations`.

    Returns:
        True where the prediction is the label.
    """
    return _right(model, prepared(batch.images, way), batch.labels)


def _right(model: nn.Module, images: Tensor, labels: Tensor) -> Bool[np.ndarray, " image"]:
    """Return which images are classified correctly."""
    return np.asarray(_predicted(model, images) == labels.cpu().numpy())


def _predicted(model: nn.Module, images: Tensor) -> Int[np.ndarray, " image"]:
    """Return the categories that images are given."""
    with frozen_eval(model) as frozen, torch.no_grad():
        predicted = [
            frozen.logits(part.to(device_of(model), dtype_of(model))).argmax(1).cpu()
            for part in images.split(FIRST)
        ]
    return np.asarray(torch.cat(predicted).numpy())
