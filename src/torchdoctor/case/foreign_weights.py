"""Find out how images are to be prepared for weights without a card, by their accuracy on training images.

A card is the JSON file that `torchdoctor train` writes beside weights: model, categories, preprocessing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from jaxtyping import Bool, Int
from scipy.stats import binomtest
from torch import nn

from torchdoctor.data.arrangement import prepared_as
from torchdoctor.data.load import Splits
from torchdoctor.data.settings import DataSettings
from torchdoctor.diagnosis.renaming import Renaming, renamed
from torchdoctor.display.cards import listed
from torchdoctor.images.normalisation import NORMALISATIONS, per_channel
from torchdoctor.network.prediction import predict_logits
from torchdoctor.types import Resize

FIRST, SAMPLE = 32, 128  # training images: for a first look, and where that does not look right
PROMISING = 0.1  # share of the first look that another preparation must bring right, to be looked at again
LOOKS_RIGHT = 0.9  # share of training images that trained weights classify correctly
LOOKS_WRONG = 0.6  # share below which it is said that something may not fit
SURE = 1e-4  # largest p value at which another preparation is taken
BY_CATEGORY, MOST = 8, 512  # images for each category in the sample, so that their order can be told; at most
NAMED = 6  # categories that a note names
RESIZES: dict[Resize, str] = {
    "crop": "the centre cut out",
    "squash": "both sides scaled to the size (--resize squash)",
}


@dataclass(frozen=True)
class Fitting:
    """A data set that is prepared for given weights.

    Attributes:
        data: The data, prepared in the way that gives the best accuracy.
        notes: Sentences on what was found.
    """

    data: Splits
    notes: tuple[str, ...] = ()


def suited(model: nn.Module, data: Splits, settings: DataSettings) -> Fitting:
    """Prepare images as the weights need them, and say where their accuracy is low for trained weights.

    Trained weights classify most of their training images correctly. Where they do not, it is tested first
    whether they number the categories in another order, in which their predictions are right. If not, the
    usual ways to prepare images are tried on training images, and another way is taken if its accuracy is
    higher beyond chance.

    Args:
        model: The network with its weights, in evaluation mode.
        data: The data as it is prepared without further knowledge.
        settings: What the user asked for; it is never changed.

    Returns:
        The data, and sentences on what was changed or looks wrong.
    """
    order = np.random.default_rng(0).permutation(data.train.table.ids)
    labels, predicted = _answers(model, data, order[: FIRST // 2])
    if (labels == predicted).mean() >= LOOKS_RIGHT:
        return Fitting(data)
    sample = order[: max(SAMPLE, min(BY_CATEGORY * len(data.classes), MOST))]
    found = before = _renamed(model, data, sample)
    notes: tuple[str, ...] = ()
    known = before.right.mean() >= LOOKS_RIGHT
    for other, text in () if known else _ways(data, settings, sample):
        labels, predicted = _answers(model, other, order[:FIRST])
        look = max((labels == predicted).mean(), renamed(labels, predicted, len(data.classes)).right.mean())
        if look < before.right[:FIRST].mean() + PROMISING:
            continue
        after = _renamed(model, other, sample)
        gained, lost = int((after.right & ~before.right).sum()), int((before.right & ~after.right).sum())
        sure = gained > lost and binomtest(gained, gained + lost).pvalue <= SURE
        if sure and after.right.mean() > found.right.mean():
            data, found = other, after
            notes = (
                f"the weights bring no card, and of {len(sample)} training images they classify "
                f"{_percent(after.right)} correctly with {text}, {_percent(before.right)} as images are "
                "prepared otherwise: the former was taken. --mean, --std, --resize and --crop-share set it",
            )
    return Fitting(data, notes + _doubts(model, data, sample, found))


def _answers(
    model: nn.Module, data: Splits, ids: Int[np.ndarray, " image"], *, reverse: bool = False
) -> tuple[Int[np.ndarray, " image"], Int[np.ndarray, " image"]]:
    """Return the labels of training images and the categories they are given; `reverse` reverses
    the colour channels."""
    images = data.train.select(ids)
    turned = (replace(batch, images=batch.images.flip(1)) for batch in images)
    _, labels, logits = predict_logits(model, list(turned) if reverse else images)
    return labels.numpy(), logits.argmax(1).numpy()


def _renamed(model: nn.Module, data: Splits, ids: Int[np.ndarray, " image"]) -> Renaming:
    """Return which training images are classified correctly, in which order of the categories."""
    return renamed(*_answers(model, data, ids), len(data.classes))


def _ways(
    data: Splits, settings: DataSettings, sample: Int[np.ndarray, " image"]
) -> Iterator[tuple[Splits, str]]:
    """Yield the data prepared in other ways that the user left open, with a description of each."""
    now = data.preprocessing
    square = all(
        image.size[0] == image.size[1]
        for image in (data.train.table.read(position)[0] for position in _positions(data, sample[:8]))
    )
    normalisations = NORMALISATIONS if settings.mean == "auto" else {"": (now.mean, now.std)}
    resizes: list[Resize] = [now.resize] if square or settings.resize != "auto" else ["crop", "squash"]
    for resize, (name, (mean, std)) in product(resizes, normalisations.items()):
        way = replace(
            now, mean=per_channel(mean, now.channels), std=per_channel(std, now.channels), resize=resize
        )
        text = " and ".join(each for each in (name, "" if square else RESIZES[resize]) if each)
        if way != now:
            yield prepared_as(data, way), text


def _positions(data: Splits, ids: Int[np.ndarray, " image"]) -> list[int]:
    """Return where images stand in the training table."""
    place = {identity: position for position, identity in enumerate(data.train.table.ids.tolist())}
    return [place[identity] for identity in ids.tolist()]


def _doubts(
    model: nn.Module, data: Splits, sample: Int[np.ndarray, " image"], found: Renaming
) -> tuple[str, ...]:
    """Say what looks wrong for trained weights."""
    if found.taken_for is not None:
        order = found.order(data.classes)
        theirs = (
            f" (theirs: {listed(order, NAMED)}; the data's: {listed(data.classes, NAMED)})" if order else ""
        )
        return (
            f"the weights seem to number the categories in another order than the data{theirs}: "
            f"{', '.join(found.pairs(data.classes, NAMED))}. In that order {_percent(found.right)} of "
            f"{len(sample)} training images are right{_or_reversed(model, data, sample)}. Save their order "
            "with them (`class_to_idx` beside `state_dict`), and it is followed",
        )
    if found.right.mean() >= LOOKS_WRONG:
        return ()
    return (
        f"{_percent(found.right)} of {len(sample)} training images are classified correctly, which is little "
        "for trained weights. If your own evaluation gives more, images are prepared otherwise there: see "
        "--mean, --std, --resize, --crop-share and --image-size; or the categories are numbered in "
        "another order",
    )


def _or_reversed(model: nn.Module, data: Splits, sample: Int[np.ndarray, " image"]) -> str:
    """Say whether colours in reverse order would explain what looks like another order of categories."""
    if data.preprocessing.channels != 3:
        return ""
    labels, predicted = _answers(model, data, sample, reverse=True)
    right = labels == predicted
    if right.mean() < LOOKS_RIGHT:
        return ""
    return (
        f"; {_percent(right)} are right without it if the colours are given in reverse order (BGR, as OpenCV "
        "reads images): then turn them in the network's forward instead"
    )


def _percent(right: Bool[np.ndarray, " image"]) -> str:
    """Write a share of correct answers."""
    return f"{100 * right.mean():.0f} %"
