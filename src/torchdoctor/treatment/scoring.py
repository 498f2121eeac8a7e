"""Score a network on the validation images, and say how sure a difference of two scores is."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float
from torch import nn

from torchdoctor.images.batches import Batch, Images
from torchdoctor.network.prediction import predict_logits
from torchdoctor.treatment.heads import balanced_accuracy
from torchdoctor.treatment.training import accuracy

Select = Literal["iid", "balanced", "swapped", "mean"]
NEED_SWAPPED = ("swapped", "mean")  # scores that images with swapped backgrounds decide


def score_of(
    model: nn.Module, validation: Images, swapped: Collection[Batch], select: Select
) -> dict[str, float]:
    """Measure a network on the validation images.

    Args:
        model: The network.
        validation: The validation images.
        swapped: The same images with swapped backgrounds; empty without masks.
        select: Which accuracy is the score: on the plain images (`iid`), on them with every category weighing
            the same (`balanced`), `swapped`, or the `mean` of `iid` and `swapped`.

    Returns:
        The accuracies `iid`, `balanced` and `swapped` and the `score`, in percent; NaN without swapped
        images.
    """
    _, labels, logits = predict_logits(model, validation)
    iid = 100.0 * float((logits.argmax(1) == labels).double().mean())
    balanced = 100 * balanced_accuracy(logits.double().numpy(), labels.numpy())
    other = accuracy(model, list(swapped)) if swapped else math.nan
    score = {"iid": iid, "balanced": balanced, "swapped": other, "mean": (iid + other) / 2}[select]
    return {"iid": iid, "balanced": balanced, "swapped": other, "score": score}


@dataclass(frozen=True)
class Answered:
    """Which validation images a network classifies correctly, and what each counts in the score.

    Attributes:
        right: 1 for a correct answer, 0 for a wrong one; a mean over several networks lies between.
        weights: What each image counts; their sum is 1.
    """

    right: Float[np.ndarray, " image"]
    weights: Float[np.ndarray, " image"]

    @property
    def score(self) -> float:
        """The score in percent, as `score_of` returns it."""
        return 100 * float(self.right @ self.weights)

    def error_of_difference(self, other: Answered) -> float:
        """Return the standard error of the difference of two scores, over the images, in percentage points.

        Two images more are counted for every group, of which one is answered differently. Otherwise the
        error of a category with one or two images would be 0 where both networks get them wrong.

        Args:
            other: The answers of another network to the same images.

        Returns:
            The square root of the sum over groups of images that weigh the same, w each, of `n w^2 v`, where
            v is `(sum_i d_i^2 + 1) / (n + 2) - m^2`, d_i the difference for image i, m its mean and n the
            number of images in the group.
        """
        difference, variance = self.right - other.right, 0.0
        for weight in np.unique(self.weights):
            group = difference[self.weights == weight]
            each = (np.square(group).sum() + 1) / (len(group) + 2) - np.square(group.mean())
            variance += len(group) * weight**2 * max(float(each), 0.0)
        return 100 * float(np.sqrt(variance))


def mean_answers(answers: Sequence[Answered]) -> Answered:
    """Return the mean of the answers of several networks to the same images.

    Args:
        answers: The answers of each network.

    Returns:
        The share of the networks that classify each image correctly, and what each image counts.
    """
    return Answered(np.mean([each.right for each in answers], axis=0), answers[0].weights)


def answers_of(model: nn.Module, validation: Images, swapped: Collection[Batch], select: Select) -> Answered:
    """Return the answers behind a score.

    Args:
        model: As in `score_of`.
        validation: As in `score_of`.
        swapped: As in `score_of`.
        select: As in `score_of`.

    Returns:
        The answers, whose score is that of `score_of`.
    """
    parts: list[Answered] = []
    if select != "swapped":
        _, labels, logits = predict_logits(model, validation)
        right = (logits.argmax(1) == labels).double().numpy()
        counts = np.bincount(labels.numpy())
        each = np.where(select == "balanced", (counts > 0).sum() * counts[labels.numpy()], len(labels))
        parts.append(Answered(right, 1.0 / each))
    if select in NEED_SWAPPED:
        _, labels, logits = predict_logits(model, list(swapped))
        right = (logits.argmax(1) == labels).double().numpy()
        parts.append(Answered(right, np.full(len(right), 1.0 / len(right))))
    return Answered(
        np.concatenate([part.right for part in parts]),
        np.concatenate([part.weights for part in parts]) / len(parts),
    )
