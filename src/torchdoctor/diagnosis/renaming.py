"""Find out whether a network knows the categories, but numbers them in another order than the labels do."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Num
from scipy.optimize import linear_sum_assignment

EXCHANGED = 0.25  # share of the images that must come right by numbering the categories otherwise, to say so


@dataclass(frozen=True)
class Renaming:
    """The order in which a network numbers the categories, by its predictions.

    Attributes:
        right: Which images are classified correctly: as the labels are numbered, or in another order where
            far more predictions are right in that (see `renamed`).
        taken_for: The number that the network gives each category in that other order; None where the order
            of the labels is kept.
        seen: True for categories with an image that is given this number; of no meaning without `taken_for`.
    """

    right: Bool[np.ndarray, " image"]
    taken_for: Int[np.ndarray, " category"] | None
    seen: Bool[np.ndarray, " category"]

    def pairs(self, classes: tuple[str, ...], most: int) -> list[str]:
        """Say which categories are taken for which others.

        Args:
            classes: The names of the categories, as the data numbers them.
            most: How many to name.

        Returns:
            One clause for each category that is taken for another.
        """
        if self.taken_for is None:
            return []
        moved = [
            f"{classes[label]} is taken for {classes[other]}"
            for label, other in enumerate(self.taken_for.tolist())
            if label != other and self.seen[label]
        ]
        return moved[:most] + ([f"and {len(moved) - most} more"] if len(moved) > most else [])

    def order(self, classes: tuple[str, ...]) -> tuple[str, ...]:
        """Return the names of the categories in the order of the network's logits.

        Args:
            classes: The names of the categories, as the data numbers them.

        Returns:
            The names; none where some category's place is not known.
        """
        if self.taken_for is None or not self.seen.all():
            return ()
        return tuple(classes[label] for label in np.argsort(self.taken_for).tolist())


def renamed(
    labels: Int[np.ndarray, " image"], predicted: Int[np.ndarray, " image"], categories: int
) -> Renaming:
    """Find the order of the categories in which predictions are right, if it is not that of the labels.

    The order is learned on half the images of each category and tried on the rest, and the other way round.
    On the images that it was learned on, some order would make even random predictions look right.

    Args:
        labels: The category of each image, as the data numbers them.
        predicted: The category that the network gives it.
        categories: The number of categories.

    Returns:
        The order, and which images are right in it, if these are more by at least `EXCHANGED` of all images
        than in the order of the labels; else which images are right in the order of the labels.
    """
    right = np.asarray(labels == predicted)
    counted = _counts(labels, predicted, categories)
    taken_for = _assigned(counted)
    seen = counted[np.arange(categories), taken_for] > 0
    otherwise = np.zeros(len(labels), dtype=bool)
    first = _first_half(labels)
    for half in (first, ~first):
        learned = _assigned(_counts(labels[half], predicted[half], categories))
        otherwise[~half] = learned[labels[~half]] == predicted[~half]
    if len(labels) and otherwise.mean() >= right.mean() + EXCHANGED:
        return Renaming(otherwise, taken_for, seen)
    return Renaming(right, None, seen)


def other_order(
    shares: Float[np.ndarray, "label given"], known: Bool[np.ndarray, " label"]
) -> Int[np.ndarray, " label"] | None:
    """Find the order of the categories that explains a confusion matrix of many images.

    Args:
        shares: The share of each category's images that is given each number.
        known: Which categories have images.

    Returns:
        The number that each category is given, if the share of right images is then higher by at least
        `EXCHANGED`, on average over the categories; else None.
    """
    rows = np.flatnonzero(known)
    taken_for = _assigned(shares)
    gained = shares[rows, taken_for[rows]] - shares[rows, rows]
    return taken_for if len(rows) and gained.mean() >= EXCHANGED else None


def _first_half(labels: Int[np.ndarray, " image"]) -> Bool[np.ndarray, " image"]:
    """Return every other image of each category."""
    by_category = np.argsort(labels, kind="stable")
    ordered = labels[by_category]
    first = np.zeros(len(labels), dtype=bool)
    first[by_category] = (np.arange(len(labels)) - np.searchsorted(ordered, ordered)) % 2 == 0
    return first


def _counts(labels: np.ndarray, predicted: np.ndarray, categories: int) -> Int[np.ndarray, "label given"]:
    """Count the images of each category by the number they are given."""
    counts = np.zeros((categories, categories), dtype=np.int64)
    np.add.at(counts, (labels, predicted), 1)
    return counts


def _assigned(counts: Num[np.ndarray, "label given"]) -> Int[np.ndarray, " label"]:
    """Return the number for each category that explains most images, one to one; its own where it can be."""
    # The small summand prefers a category's own number where others explain no more.
    return np.asarray(linear_sum_assignment(-(counts + 1e-9 * np.eye(len(counts))))[1])
