"""Fit linear classifiers (heads) by cross-validation: each image is predicted by one fitted without it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from torchdoctor.types import Progress, silent

# Half the squared weights of a head, times one of these, are added to its summed loss. The more wrong labels
# and the fewer images there are, the stronger a ridge helps; the strongest are tried first.
RIDGES = (1000.0, 100.0, 10.0, 1.0)
STEPS = 100  # of L-BFGS at most


def folds_of(labels: Int[np.ndarray, " image"], folds: int, seed: int) -> Int[np.ndarray, " image"]:
    """Divide images into folds that have the same shares of every category.

    Args:
        labels: The category of each image.
        folds: The number of folds.
        seed: The seed of the division, which also depends on the order of the images.

    Returns:
        The number of each image's fold, from 0.
    """
    random = np.random.default_rng(seed)
    fold = np.empty(len(labels), dtype=np.int64)
    start = 0
    for category in np.unique(labels).tolist():
        rows = random.permutation(np.flatnonzero(labels == category))
        fold[rows] = (start + np.arange(len(rows))) % folds
        start += len(rows)
    return fold


def standardised(features: Float[Tensor, "image feature"]) -> Float[Tensor, "image feature"]:
    """Shift and scale features to mean 0 and standard deviation 1; a constant one becomes 0.

    Args:
        features: The features of all images.

    Returns:
        The features, scaled.
    """
    centred = features - features.mean(0)
    deviation = centred.square().mean(0).sqrt()
    return centred / torch.where(deviation > 1e-6, deviation, torch.inf)


def crossed_log_probabilities(
    features: Float[Tensor, "image feature"],
    labels: Int[np.ndarray, " image"],
    categories: int,
    *,
    folds: int,
    seed: int,
    device: torch.device,
    ridges: Sequence[float] = RIDGES,
    progress: Progress = silent,
) -> Float[np.ndarray, "image category"]:
    """Return the log-probabilities of logistic regressions, each of images that it was not fitted on.

    Args:
        features: The features of all images (see `standardised`).
        labels: Their categories; each has at least two images in different folds.
        categories: The number of categories.
        folds: How many heads are fitted, each on the images outside of one fold.
        seed: What the folds depend on.
        device: Where the heads are fitted.
        ridges: The strengths of the L2 penalty to choose from, the strongest first. The first head tries one
            after the other until the labels of its held-out images become less probable; all heads use the
            best one.
        progress: Called with ("suspects", heads fitted, heads in all).

    Returns:
        The natural logarithms of the probabilities.
    """
    fold = torch.from_numpy(folds_of(labels, folds, seed))
    truth = torch.from_numpy(labels).to(device)
    place = features.to(device)
    found = torch.empty((len(labels), categories), dtype=torch.float32)
    for number in range(folds):
        held_out = (fold == number).to(device)
        zeros = place.new_zeros((place.shape[1] + 1, categories))
        head, best = Head(zeros[1:], zeros[0]), -float("inf")
        for ridge in ridges:
            head = _fitted(place[~held_out], truth[~held_out], ridge, head)
            judged = head.log_probabilities(place[held_out])
            likelihood = -float(functional.nll_loss(judged, truth[held_out]))
            if likelihood < best:
                break
            best, ridges = likelihood, (ridge,)
            found[held_out.cpu()] = judged.cpu()
        progress("suspects", number + 1, folds)
    return found.double().numpy()


def crossed_mistakes(
    log_probabilities: Float[np.ndarray, "image category"],
    labels: Int[np.ndarray, " image"],
    *,
    folds: int,
    seed: int,
) -> Float[np.ndarray, "image category"]:
    """Return how probable each image's label is as a wrong label, for every possible true category.

    Wrong labels are assumed to be distributed like the labels that differ from the most probable category.
    These are counted in the other folds; 1 is added to the count of every pair of categories.

    Args:
        log_probabilities: The logarithms of the categories' probabilities.
        labels: The categories that the images are labelled as.
        folds: The number of folds.
        seed: What the folds depend on.

    Returns:
        For each image and category, the share (0..1) of the image's label among the wrong labels of that
        category; 0 for the label itself.
    """
    fold, called = folds_of(labels, folds, seed), log_probabilities.argmax(axis=1)
    mistakes = np.empty(log_probabilities.shape)
    for number in range(folds):
        counts = np.ones((mistakes.shape[1], mistakes.shape[1]))
        np.add.at(counts, (called[fold != number], labels[fold != number]), 1.0)
        np.fill_diagonal(counts, 0.0)
        counts /= counts.sum(axis=1, keepdims=True)
        mistakes[fold == number] = counts[:, labels[fold == number]].T
    return mistakes


@dataclass(frozen=True)
class Head:
    """A linear layer.

    Attributes:
        weight: Its weight.
        bias: Its bias.
    """

    weight: Float[Tensor, "feature category"]
    bias: Float[Tensor, " category"]

    def log_probabilities(self, features: Float[Tensor, "image feature"]) -> Float[Tensor, "image category"]:
        """Return the logarithms of the probabilities of the categories.

        Args:
            features: The features of images.

        Returns:
            The natural logarithms.
        """
        return torch.addmm(self.bias, features, self.weight).log_softmax(1)


def _fitted(features: Tensor, labels: Tensor, ridge: float, start: Head) -> Head:
    """Fit a logistic regression with an L2 penalty, starting from a similar head."""
    weight = start.weight.clone().requires_grad_(True)
    bias = start.bias.clone().requires_grad_(True)
    search = torch.optim.LBFGS(
        [weight, bias], max_iter=STEPS, tolerance_grad=1e-5, tolerance_change=1e-7,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def loss() -> Tensor:
        search.zero_grad()
        judged = Head(weight, bias).log_probabilities(features)
        value = functional.nll_loss(judged, labels) + ridge * weight.square().sum() / 2 / len(labels)
        value.backward()
        return value

    with torch.enable_grad():
        search.step(loss)
    return Head(weight.detach(), bias.detach())
