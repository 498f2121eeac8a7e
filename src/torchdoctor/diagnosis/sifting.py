"""Select the images that represent a category, and the images that a person should annotate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor

LowOrder = Literal["mistakes_first", "low_confidence"]  # how the images to annotate are ranked (see `sift`)


@dataclass(frozen=True)
class Sifting:
    """The training images that are used for a diagnosis, and those that a person should annotate.

    Attributes:
        high: For each category the ids of the images to diagnose with: classified correctly, with a
            probability above `confidence`, the most confident first.
        low: For each category the ids of the images to annotate, the most confident mistakes first.
        confidence: The probability that the images in `high` exceed, 0..1.
        images_per_category: The largest number of images of a category in `high` (the paper's T).
    """

    high: tuple[tuple[int, ...], ...]
    low: tuple[tuple[int, ...], ...]
    confidence: float
    images_per_category: int

    def __repr__(self) -> str:
        """Return a single line: how many images there are of both kinds."""
        return (
            f"Sifting({sum(map(len, self.high))} images that speak for their category, "
            f"{sum(map(len, self.low))} to annotate, confidence {self.confidence:g})"
        )


def sift(
    ids: Int[Tensor, " image"],
    labels: Int[Tensor, " image"],
    logits: Float[Tensor, "image category"],
    *,
    images_per_category: int = 100,
    confidence: float = 0.9,
    annotations_per_category: int = 20,
    low_order: LowOrder = "mistakes_first",
) -> Sifting:
    """Select two lists of images of each category: those to diagnose with, and those to annotate.

    The images to diagnose with (`high`) are classified correctly with a confidence above `confidence`; the
    most confident come first. The confidence is the softmax of the predicted category. The images to annotate
    (`low`) are ranked by `low_order`. Images of equal rank are ordered by id.

    Args:
        ids: The id of each image.
        labels: The category of each image.
        logits: The outputs of the network.
        images_per_category: The largest number of images to diagnose with (the paper's T).
        confidence: The confidence (0..1) that these images must exceed.
        annotations_per_category: The largest number of images to annotate.
        low_order: `mistakes_first`: misclassified images by falling confidence, then correct images by rising
            confidence (`Differs from the paper:`). `low_confidence`: all images by rising confidence, as the
            paper describes it.

    Returns:
        The ids of the images of both lists for every category.
    """
    certainty, predictions = logits.double().softmax(1).max(1)
    high, low = [], []
    for category in range(logits.shape[1]):
        rows = [
            (float(certainty[row]), int(ids[row]), bool(predictions[row] == category))
            for row in (labels == category).nonzero()[:, 0].tolist()
        ]
        confident = sorted((-sure, image) for sure, image, correct in rows if correct and sure > confidence)
        high.append(tuple(image for _, image in confident[:images_per_category]))
        if low_order == "low_confidence":
            order = sorted((sure, image) for sure, image, _ in rows)
            low.append(tuple(image for _, image in order[:annotations_per_category]))
        else:
            ranked = sorted((correct, sure if correct else -sure, image) for sure, image, correct in rows)
            low.append(tuple(image for _, _, image in ranked[:annotations_per_category]))
    return Sifting(tuple(high), tuple(low), confidence, images_per_category)
