"""Fit linear heads crosswise: every image is judged by a head that was fitted without it."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from torchdoctor.types import Progress, silent

RIDGE = 1.0  # half the squared weights of a head, times this, are added to its summed loss
STEPS = 100  # of L-BFGS at most


def folds_of(labels: Int[np.ndarray, " image"], folds: int, seed: int) -> Int[np.ndarray, " image"]:
    """Divide images into folds that have the same shares of every category.

    Args:
        labels: The category of each image.
        folds: The number of folds.
        seed: What the division depends on, with the order of the images.

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
        weight, bias = _fitted(place[~held_out], truth[~held_out], categories)
        scores = torch.addmm(bias, place[held_out], weight)
        found[held_out.cpu()] = scores.log_softmax(1).cpu()
        progress("suspects", number + 1, folds)
    return found.double().numpy()


def _fitted(features: Tensor, labels: Tensor, categories: int) -> tuple[Tensor, Tensor]:
    """Fit a logistic regression with a ridge; return its weight [feature, category] and its bias."""
    weight = torch.zeros((features.shape[1], categories), device=features.device, requires_grad=True)
    bias = torch.zeros(categories, device=features.device, requires_grad=True)
    search = torch.optim.LBFGS(
        [weight, bias], max_iter=STEPS, tolerance_grad=1e-5, tolerance_change=1e-7,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def loss() -> Tensor:
        search.zero_grad()
        scores = torch.addmm(bias, features, weight)
        value = functional.cross_entropy(scores, labels) + RIDGE * weight.square().sum() / 2 / len(labels)
        value.backward()
        return value

    with torch.enable_grad():
        search.step(loss)
    return weight.detach(), bias.detach()
