"""Find out how images were prepared for weights that bring no card, from how the weights do on them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from jaxtyping import Bool, Int
from scipy.optimize import linear_sum_assignment
from scipy.stats import binomtest
from torch import nn

from torchdoctor.data.arrangement import prepared_as
from torchdoctor.data.load import Splits
from torchdoctor.data.settings import DataSettings
from torchdoctor.images.normalisation import NORMALISATIONS, per_channel
from torchdoctor.network.prediction import predict_logits
from torchdoctor.types import Resize

FIRST, SAMPLE = 32, 128  # training images: for a first look, and where that does not look right
PROMISING = 0.1  # share of the first look that another preparation must bring right, to be looked at again
LOOKS_RIGHT = 0.9  # share of training images that trained weights classify correctly
LOOKS_WRONG = 0.6  # share below which it is said that something may not fit
SURE = 1e-4  # largest p value at which another preparation is taken
EXCHANGED = 0.25  # share of the images that must come right by exchanging categories, to say so
RESIZES: dict[Resize, str] = {
    "crop": "the centre cut out",
    "squash": "both sides scaled to the size (--resize squash)",
}


@dataclass(frozen=True)
class Fitting:
    """How the images of a data set suit weights.

    Attributes:
        data: The data, prepared in the way that suits best.
        notes: Sentences on what was found.
    """

    data: Splits
    notes: tuple[str, ...] = ()


def suited(model: nn.Module, data: Splits, settings: DataSettings) -> Fitting:
    """Prepare images as the weights need them, where nobody says how, and say where they do badly.

    Trained weights classify most of their training images correctly. Where they do not, the usual ways to
    prepare images are tried on training images, and another way is taken if it is better beyond chance.

    Args:
        model: The network with its weights, in evaluation mode.
        data: The data as it is prepared without further knowledge.
        settings: What the user asked for: where a way is given, it stays.

    Returns:
        The data, and sentences on what was changed or looks wrong.
    """
    order = np.random.default_rng(0).permutation(data.train.table.ids)
    first = _answers(model, data, order[: FIRST // 2])[0]
    if first.mean() >= LOOKS_RIGHT:
        return Fitting(data)
    sample = order[:SAMPLE]
    right, predicted = _answers(model, data, sample)
    before, notes = right, tuple[str, ...]()
    for other, text in _ways(data, settings, sample):
        look = _answers(model, other, order[:FIRST])[0]
        if look.mean() < before[:FIRST].mean() + PROMISING:
            continue
        found, named = _answers(model, other, sample)
        gained, lost = int((found & ~before).sum()), int((before & ~found).sum())
        sure = gained > lost and binomtest(gained, gained + lost).pvalue <= SURE
        if sure and found.mean() > right.mean():
            data, right, predicted = other, found, named
            notes = (
                f"the weights bring no card, and of {len(sample)} training images they classify "
                f"{_percent(found)} correctly with {text}, {_percent(before)} as images are prepared "
                "otherwise: the former was taken. --mean, --std, --resize and --crop-share set it",
            )
    return Fitting(data, notes + _doubts(data, sample, right, predicted))


def _answers(
    model: nn.Module, data: Splits, ids: Int[np.ndarray, " image"]
) -> tuple[Bool[np.ndarray, " image"], Int[np.ndarray, " image"]]:
    """Return which images are classified correctly, and the categories that they are given."""
    _, labels, logits = predict_logits(model, data.train.select(ids))
    predicted = logits.argmax(1)
    return (predicted == labels).numpy(), predicted.numpy()


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
    data: Splits,
    sample: Int[np.ndarray, " image"],
    right: Bool[np.ndarray, " image"],
    predicted: Int[np.ndarray, " image"],
) -> tuple[str, ...]:
    """Say what looks wrong for trained weights."""
    if right.mean() >= LOOKS_WRONG:
        return ()
    labels = data.train.table.labels[_positions(data, sample)]
    counts = np.zeros((len(data.classes),) * 2, dtype=np.int64)
    np.add.at(counts, (labels, predicted), 1)
    taken_for = linear_sum_assignment(-counts)[1]
    if (taken_for[labels] == predicted).mean() >= right.mean() + EXCHANGED:
        pairs = [
            f"{data.classes[label]} is taken for {data.classes[other]}"
            for label, other in enumerate(taken_for.tolist())
            if label != other and counts[label, other] > 0
        ]
        return (
            "the weights seem to number the categories in another order than the data: "
            f"{', '.join(pairs[:6])}. Save their order with them (`class_to_idx` beside "
            "`state_dict`), and it is followed",
        )
    return (
        f"{_percent(right)} of {len(sample)} training images are classified correctly, which is little for "
        "trained weights. If your own evaluation gives more, images are prepared otherwise there: see "
        "--mean, --std, --resize, --crop-share and --image-size; or the categories are numbered in "
        "another order",
    )


def _percent(right: Bool[np.ndarray, " image"]) -> str:
    """Write a share of correct answers."""
    return f"{100 * right.mean():.0f} %"
