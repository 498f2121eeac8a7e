"""Prepare the errors of a network for a page: how many have each cause, and some of them explained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from torchdoctor.diagnosis.causes_result import MEANINGS, Cause, Causes, ErrorCause
from torchdoctor.diagnosis.explanation_result import Explanation
from torchdoctor.display import overlays
from torchdoctor.report.pictures import Picture, photograph

# What the page calls the numbers behind a cause (`ErrorCause.numbers`).
NUMBER_NAMES = {
    "label_confidence": "confidence in the label",
    "training_accuracy": "training accuracy of the category, %",
    "validation_accuracy": "validation accuracy of the category, %",
    "training_images_of_median": "training images, of the median category's",
    "confused_on_training": "share of training images that either category loses to the other",
    "confused_on_examined": "share of these images that either category loses to the other",
    "sure_and_right": "share of right ones among such sure predictions",
    "taken_for_prediction": "share of the label's training images taken for the prediction",
    "right_if_prepared_otherwise": "right if the image is prepared in another usual way",
    "wrong_labels": "estimated share of wrong labels",
    "label_wrong_by_share": "probability by that share that this label is wrong",
    "log_odds": "log-odds of prediction and label",
    "second_on_label": "log-probability of the label by the second network",
    "confused_back": "share of the prediction's images taken for the label",
    "evidence_on_changed_kernels": "share of evidence on changed kernels",
    "label_before_others": "label wins before other backgrounds",
    "prediction_before_others": "share of other backgrounds before which the prediction stands",
    "background_alone_predicts_it": "background alone gives the prediction",
    "errors_gone_before_others": "share of all errors gone before other backgrounds",
    "backgrounds_decide": "predictions that follow another background, beyond chance",
    "background_gives_category": "right predictions lost to another background's category, beyond chance",
}


@dataclass(frozen=True)
class ExplainedError:
    """A misclassified image with the cause and the explanation of the error.

    Attributes:
        name: The name of the image.
        cause: The cause.
        explanation: The explanation.
        image: The RGB pixels, in 0..1.
    """

    name: str
    cause: ErrorCause
    explanation: Explanation
    image: Float[np.ndarray, "height width 3"]


LEAST_EXPECTED = 0.5  # errors; a cause with a smaller sum of probabilities is not shown


def cause_rows(causes: Causes) -> list[tuple[str, float, float, int, float, str]]:
    """Return the rows of the table of causes.

    Args:
        causes: The causes of all errors.

    Returns:
        For each cause that occurs: its name; the expected number of errors (the sum of its probabilities) and
        its share of all errors (0..1); the number of errors that were given the cause, and the mean
        probability that it is right there (0..1, NaN where it was not given); and what it means.
    """
    total, counts = max(len(causes.errors), 1), causes.counts
    return [
        (cause, number, number / total, counts.get(cause, 0), _how_sure(causes, cause), MEANINGS[cause])
        for cause, number in causes.expected.items()
        if number >= LEAST_EXPECTED or cause in counts
    ]


def _how_sure(causes: Causes, cause: Cause) -> float:
    """Return the mean probability of a cause over the errors that were given it; NaN where none was."""
    sure = [
        error.probabilities[cause]
        for error in causes.errors
        if cause in error.probabilities and error.cause == cause
    ]
    return float(np.mean(sure)) if sure else math.nan


def error_cards(explained: Sequence[ExplainedError]) -> list[dict[str, Any]]:
    """Prepare explained errors for the page.

    Args:
        explained: The errors.

    Returns:
        For each a card with `error`, the error; `pictures`, pairs of a caption and a picture (the image, and
        the image under its evidence); and `numbers`, pairs of a name and a number behind the cause.
    """
    cards = []
    for error in explained:
        evidence = error.explanation.summed_map
        overlaid = overlays.overlay(error.image, evidence, float(np.nan_to_num(evidence).max()))
        pictures: list[tuple[str, Picture]] = [
            ("image", photograph(error.image, None, f"Image {error.name}")),
            (
                f"evidence at {error.explanation.layer}",
                photograph(overlaid, None, f"Evidence in {error.name}"),
            ),
        ]
        numbers = [
            (text, error.cause.numbers[name])
            for name, text in NUMBER_NAMES.items()
            if name in error.cause.numbers and not np.isnan(error.cause.numbers[name])
        ]
        cards.append({"error": error, "pictures": pictures, "numbers": numbers})
    return cards
