"""Prepare the errors of a network for a page: how many of each cause, and some of them explained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from torchdoctor.diagnosis.causes import MEANINGS, Causes, ErrorCause
from torchdoctor.diagnosis.explanation import Explanation
from torchdoctor.report import plots as figures
from torchdoctor.report.pictures import Picture, photograph

SHOWN_NUMBERS = {
    "label_confidence": "confidence in the label",
    "training_accuracy": "training accuracy of the category, %",
    "validation_accuracy": "validation accuracy of the category, %",
    "training_images_of_median": "training images, of the median category's",
    "confused_on_training": "share of training images that either category loses to the other",
    "sure_and_right": "share of right ones among such sure predictions",
    "evidence_on_changed_kernels": "share of evidence on changed kernels",
    "label_before_others": "label wins before other backgrounds",
    "prediction_before_others": "share of other backgrounds before which the prediction stands",
    "background_alone_predicts_it": "background alone gives the prediction",
    "errors_gone_before_others": "share of all errors gone before other backgrounds",
}


@dataclass(frozen=True)
class ExplainedError:
    """An error with its cause, its explanation and its pixels in 0..1."""

    name: str
    cause: ErrorCause
    explanation: Explanation
    image: Float[np.ndarray, "height width 3"]


def cause_rows(causes: Causes) -> list[tuple[str, int, float, str]]:
    """Return each cause that was found: its name, the errors, their share, and what it means."""
    total = max(len(causes.errors), 1)
    return [(cause, number, number / total, MEANINGS[cause]) for cause, number in causes.counts.items()]


def error_cards(explained: Sequence[ExplainedError]) -> list[dict[str, Any]]:
    """Return the explained errors with their pictures, sentences and the numbers behind the cause."""
    cards = []
    for one in explained:
        summed = one.explanation.summed_map
        over = figures.overlay(one.image, summed, float(np.nan_to_num(summed).max()))
        pictures: list[tuple[str, Picture]] = [
            ("image", photograph(one.image, None, f"Image {one.name}")),
            (f"evidence at {one.explanation.layer}", photograph(over, None, f"Evidence in {one.name}")),
        ]
        numbers = [
            (text, one.cause.numbers[name])
            for name, text in SHOWN_NUMBERS.items()
            if name in one.cause.numbers and not np.isnan(one.cause.numbers[name])
        ]
        cards.append({"of": one, "pictures": pictures, "numbers": numbers})
    return cards
