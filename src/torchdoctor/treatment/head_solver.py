"""Solve for the weights of a last layer on cached features: weighted cross-entropy, to convergence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import minimize
from scipy.special import log_softmax

from torchdoctor.treatment.heads import Head

MOST_ITERATIONS = 1000
# The search ends where no slope is larger, or the loss falls by a smaller share.
SLOPE, PROGRESS = 1e-7, 1e-13


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
    categories = len(start.bias)
    problem = Problem((inputs - mean) / spread, np.eye(categories)[labels] * weights[:, None], l1, l2)
    solved = problem.solved(Head(start.weight * spread, start.bias + start.weight @ mean))
    own = solved.weight / spread
    return Head(own, solved.bias - own @ mean)


@dataclass(frozen=True)
class Problem:
    """A weighted cross-entropy with its penalties, as a function of the weights of a layer.

    Attributes:
        inputs: The standardised features.
        targets: For each image its weight in the column of its category, 0 elsewhere.
        l1: The strength of the penalty on absolute weights.
        l2: That of the penalty on squared weights.
    """

    inputs: Float[np.ndarray, "image feature"]
    targets: Float[np.ndarray, "image category"]
    l1: float
    l2: float

    def solved(self, start: Head) -> Head:
        """Find the minimum by L-BFGS.

        The libraries of NumPy and SciPy get one thread each: the matrices are small, and where two processes
        shared two cores, their threads waited for each other five times as long as they computed.

        With a penalty on absolute weights W is the difference of two parts, neither below 0: |W| is then
        their sum, which has a derivative.

        Args:
            start: Where the search begins.

        Returns:
            The layer at the minimum.
        """
        from threadpoolctl import threadpool_limits  # here: nothing else needs it

        with threadpool_limits(limits=1, user_api="blas"):
            return self._solved(start)

    def _solved(self, start: Head) -> Head:
        """Find the minimum, with as many threads as there are."""
        options = {"maxiter": MOST_ITERATIONS, "maxfun": 2 * MOST_ITERATIONS, "gtol": SLOPE, "ftol": PROGRESS}
        flat, size = start.weight.ravel(), start.weight.size
        if not self.l1:
            first = np.concatenate([flat, start.bias])
            return self._head(minimize(self._loss, first, jac=True, method="L-BFGS-B", options=options).x)
        first = np.concatenate([np.maximum(flat, 0), np.maximum(-flat, 0), start.bias])
        bounds = [(0, None)] * (2 * size) + [(None, None)] * len(start.bias)
        found = minimize(
            self._loss_in_parts, first, jac=True, method="L-BFGS-B", bounds=bounds, options=options
        ).x
        return self._head(np.concatenate([found[:size] - found[size : 2 * size], found[2 * size :]]))

    def _head(self, values: Float[np.ndarray, " value"]) -> Head:
        """Return the layer that a vector of all its weights stands for."""
        categories = self.targets.shape[1]
        return Head(values[:-categories].reshape(categories, -1), values[-categories:])

    def _loss(self, values: Float[np.ndarray, " value"]) -> tuple[float, Float[np.ndarray, " value"]]:
        """Return the loss with the penalty on squared weights, and its gradient."""
        head = self._head(values)
        logarithms = log_softmax(head.logits(self.inputs), axis=1)
        loss = -float((self.targets * logarithms).sum()) + 0.5 * self.l2 * float((head.weight**2).sum())
        slope = np.exp(logarithms) * self.targets.sum(1, keepdims=True) - self.targets
        by_weight = slope.T @ self.inputs + self.l2 * head.weight
        return loss, np.concatenate([by_weight.ravel(), slope.sum(0)])

    def _loss_in_parts(
        self, values: Float[np.ndarray, " value"]
    ) -> tuple[float, Float[np.ndarray, " value"]]:
        """Return the loss with both penalties, and its gradient, by the two parts and the bias."""
        size = (len(values) - self.targets.shape[1]) // 2
        above, below, bias = np.split(values, [size, 2 * size])
        loss, slope = self._loss(np.concatenate([above - below, bias]))
        by_weight, by_bias = slope[:size], slope[size:]
        penalised = loss + self.l1 * float(above.sum() + below.sum())
        return penalised, np.concatenate([by_weight + self.l1, self.l1 - by_weight, by_bias])
