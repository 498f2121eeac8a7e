"""Solve for the weights of a last layer on cached features: weighted cross-entropy, to convergence."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import minimize
from scipy.special import log_softmax

from torchdoctor.treatment.heads import Head

MOST_ITERATIONS = 1000
SLOPE, PROGRESS = (
    1e-7,
    1e-13,
)  # the search ends where no slope is larger, or the loss falls by a smaller share


def balancing_weights(groups: Int[np.ndarray, " image"]) -> Float[np.ndarray, " image"]:
    """Weigh images so that every group counts the same.

    Args:
        groups: The number of each image's group.

    Returns:
        A weight for each image; their sum is 1.
    """
    _, place, counts = np.unique(groups, return_inverse=True, return_counts=True)
    return 1.0 / (len(counts) * counts[place])


def solve_head(
    inputs: Float[np.ndarray, "image feature"],
    labels: Int[np.ndarray, " image"],
    weights: Float[np.ndarray, " image"],
    start: Head,
    *,
    l1: float = 0.0,
    l2: float = 0.0,
) -> Head:
    """Find the last layer that minimises the weighted cross-entropy, by L-BFGS from the present one.

    The loss is `sum_i weights_i CE_i + l1 |W|_1 + l2 / 2 |W|_2^2`, where W are the weights by features
    that are standardised: mean 0, standard deviation 1. The bias is not penalised.

    Args:
        inputs: The features of each image.
        labels: The label of each image.
        weights: What each image counts; their sum is 1.
        start: Where the search begins; it also says how many categories there are.
        l1: The strength of the penalty on absolute weights, which makes most of them 0.
        l2: The strength of the penalty on squared weights.

    Returns:
        The layer, for the features as they were given.
    """
    mean, spread = inputs.mean(0), inputs.std(0)
    spread = np.where(spread > 1e-8, spread, 1.0)
    scaled = (inputs - mean) / spread
    shape = start.weight.shape
    onehot = np.eye(shape[0])[labels] * weights[:, None]

    def split(values: Float[np.ndarray, " value"]) -> Head:
        return Head(values[: -shape[0]].reshape(shape), values[-shape[0] :])

    def smooth(head: Head) -> tuple[float, Float[np.ndarray, "category feature"], Float[np.ndarray, " c"]]:
        logarithms = log_softmax(head.logits(scaled), axis=1)
        loss = -float((onehot * logarithms).sum()) + 0.5 * l2 * float((head.weight**2).sum())
        slope = np.exp(logarithms) * weights[:, None] - onehot
        return loss, slope.T @ scaled + l2 * head.weight, slope.sum(0)

    def plain(values: Float[np.ndarray, " value"]) -> tuple[float, Float[np.ndarray, " value"]]:
        loss, by_weight, by_bias = smooth(split(values))
        return loss, np.concatenate([by_weight.ravel(), by_bias])

    def parted(values: Float[np.ndarray, " value"]) -> tuple[float, Float[np.ndarray, " value"]]:
        # W is the difference of two parts, neither below 0: then |W| is their sum and has a derivative.
        above, below, bias = np.split(values, [start.weight.size, 2 * start.weight.size])
        loss, by_weight, by_bias = smooth(split(np.concatenate([above - below, bias])))
        penalised = loss + l1 * float(above.sum() + below.sum())
        return penalised, np.concatenate([by_weight.ravel() + l1, l1 - by_weight.ravel(), by_bias])

    weight = start.weight * spread
    bias = start.bias + start.weight @ mean
    options = {"maxiter": MOST_ITERATIONS, "maxfun": 2 * MOST_ITERATIONS, "gtol": SLOPE, "ftol": PROGRESS}
    if l1:
        first = np.concatenate([np.maximum(weight, 0).ravel(), np.maximum(-weight, 0).ravel(), bias])
        bounds = [(0, None)] * (2 * weight.size) + [(None, None)] * len(bias)
        found = minimize(parted, first, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
        above, below, bias = np.split(found, [weight.size, 2 * weight.size])
        solved = split(np.concatenate([above - below, bias]))
    else:
        first = np.concatenate([weight.ravel(), bias])
        solved = split(minimize(plain, first, jac=True, method="L-BFGS-B", options=options).x)
    own = solved.weight / spread
    return Head(own, solved.bias - own @ mean)
