"""Choose the images that speak for a category, and those that a person should annotate."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor

from torchdoctor.diagnosis.result import Sifting

LowOrder = Literal["mistakes_first", "low_confidence"]


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
    """Sift each category's most confident correct images (high) and those to be annotated (low).

    high: correct, confidence above `confidence`, at most `images_per_category` (the paper's T), most
    confident first. low: `Differs from the paper:` mistakes first, the most confident before the
    others, then right ones by rising confidence; the paper's words, lowest confidence first, are
    `low_order="low_confidence"`. Ties are broken by id.
    """
    certainty, predictions = logits.double().softmax(1).max(1)
    high, low = [], []
    for category in range(logits.shape[1]):
        rows = [
            (float(certainty[row]), int(ids[row]), bool(predictions[row] == category))
            for row in (labels == category).nonzero()[:, 0].tolist()
        ]
        right = sorted((-sure, image) for sure, image, correct in rows if correct and sure > confidence)
        high.append(tuple(image for _, image in right[:images_per_category]))
        if low_order == "low_confidence":
            order = sorted((sure, image) for sure, image, _ in rows)
            low.append(tuple(image for _, image in order[:annotations_per_category]))
        else:
            ranked = sorted((correct, sure if correct else -sure, image) for sure, image, correct in rows)
            low.append(tuple(image for _, _, image in ranked[:annotations_per_category]))
    return Sifting(tuple(high), tuple(low), confidence, images_per_category)
