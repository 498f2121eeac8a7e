"""Estimate how many labels are wrong, and how probable it is of each image, from the network's logits.

The network must not have been trained on the images. A confident prediction that contradicts a label is a
sign of a wrong label; how strong a sign follows from how often predictions of that confidence are right.
"After scaling" means: with the logits divided by the estimated temperature. Logarithms are natural.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import expit, log_softmax

TEMPERATURES = np.exp(np.linspace(np.log(0.25), np.log(8.0), 36))
ROUNDS = 60  # of expectation and maximisation; the estimate changes by less than 1e-6 after them
SURE = 6.0  # log-likelihood that a share of wrong labels must gain over none; p < 0.001 for one parameter
# The probability that people reject the label of an error, by the log-odds of prediction and label after
# scaling: a logistic regression on 3,000 errors of three networks on CIFAR-10 (benchmarks/LOG.md).
REJECTED = (-3.844, 0.296)
# The probability that people disagree: by those log-odds, and by the logarithm of the share of the
# prediction's images that are taken for the label. From the same errors.
DISPUTED = (-0.215, 0.164, 0.314)
# The same two probabilities where other networks were asked: by their -log p(label), after scaling. Fitted to
# the errors of one small network on CIFAR-10, with each of three opinions: new heads on the features of a
# network with published weights, a fine-tuned network, and the mean of both (benchmarks/LOG.md).
REJECTED_BY_SECOND = (-4.322, 0.774)
DISPUTED_BY_SECOND = (-1.515, 0.629)
# Where -log p(label) is above 4, people reject 15 to 20 % of the labels, however far above: what exceeds 4
# counts a twentieth, and what exceeds 12 nothing.
TELLS_UP_TO, BEYOND, MOST = 4.0, 0.05, 12.0


@dataclass(frozen=True)
class LabelDoubts:
    """What the logits of images say about their labels.

    Attributes:
        temperature: What logits are divided by so that probabilities are as often right as they say.
        share: The estimated share of wrong labels, 0 where none is proven.
        wrong: The probability that each image's label is wrong, given its logits and the share.
        log_odds: log p(most probable category) - log p(label) of each image, after scaling.
    """

    temperature: float
    share: float
    wrong: Float[np.ndarray, " image"]
    log_odds: Float[np.ndarray, " image"]


def label_doubts(
    logits: Float[np.ndarray, "image category"],
    labels: Int[np.ndarray, " image"],
    believed: Bool[np.ndarray, " image"] | None = None,
    mistaken: Float[np.ndarray, "image category"] | None = None,
) -> LabelDoubts:
    """Estimate the share of wrong labels together with the temperature of the logits.

    The model: an image's true category k has the probability p_k, the softmax of the logits over a
    temperature T; with probability `share` its label is another category, each as likely unless `mistaken`
    says otherwise. Both are the values that make the labels most probable. The share is 0 unless it explains
    the labels better beyond chance; the temperature is then the best one without wrong labels.

    Args:
        logits: The logits of images that the network was not trained on.
        labels: Their labels.
        believed: The images to estimate from; the labels of others are taken to be right. None: all images.
        mistaken: The probability that a wrong label is the image's label, if this were its true category; 0
            for the label itself. None: each other category is as likely.

    Returns:
        The estimates, and the probability that each label is wrong: 0 for images that are not believed.
    """
    if believed is None or not believed.any():
        believed = np.ones(len(labels), dtype=bool)
    telling, told = logits[believed], labels[believed]
    error = None if mistaken is None else mistaken[believed]
    best = (-np.inf, 1.0, 0.0)
    plain = (-np.inf, 1.0)
    for temperature in TEMPERATURES.tolist():
        right, slip = _explained(telling, told, temperature, error)
        share = _share(right, slip)
        best = max(best, (_likelihood(right, slip, share), temperature, share))
        plain = max(plain, (_likelihood(right, slip, 0.0), temperature))
    temperature, share = best[1], best[2]
    if best[0] - plain[0] < SURE:
        temperature, share = plain[1], 0.0
    logarithms = log_softmax(logits / temperature, axis=1)
    of_label = logarithms[np.arange(len(labels)), labels]
    return LabelDoubts(
        temperature,
        share,
        _wrong(*_explained(logits, labels, temperature, mistaken), share) * believed,
        logarithms.max(axis=1) - of_label,
    )


def _explained(
    logits: Float[np.ndarray, "image category"],
    labels: Int[np.ndarray, " image"],
    temperature: float,
    mistaken: Float[np.ndarray, "image category"] | None,
) -> tuple[Float[np.ndarray, " image"], Float[np.ndarray, " image"]]:
    """Return how probable each label is if no label is wrong, and if each is."""
    logarithms = log_softmax(logits / temperature, axis=1)
    right = np.exp(logarithms[np.arange(len(labels)), labels])
    if mistaken is None:
        return right, (1 - right) / max(logits.shape[1] - 1, 1)
    return right, (np.exp(logarithms) * mistaken).sum(axis=1)


def _wrong(
    right: Float[np.ndarray, " image"], slip: Float[np.ndarray, " image"], share: float
) -> Float[np.ndarray, " image"]:
    """Return the probability that labels are wrong by Bayes' rule."""
    by_noise = share * slip
    return by_noise / np.maximum((1 - share) * right + by_noise, 1e-300)


def _share(right: Float[np.ndarray, " image"], slip: Float[np.ndarray, " image"]) -> float:
    """Return the most probable share of wrong labels, by expectation and maximisation."""
    share = 0.1
    for _ in range(ROUNDS):
        share = float(_wrong(right, slip, share).mean())
    return share


def _likelihood(right: Float[np.ndarray, " image"], slip: Float[np.ndarray, " image"], share: float) -> float:
    """Return the log-likelihood of the labels."""
    return float(np.log(np.maximum((1 - share) * right + share * slip, 1e-300)).sum())


def probability_wrong(wrong: float, log_odds: float, second: float = math.nan) -> float:
    """Return the probability that people would reject the label of an error.

    Args:
        wrong: The probability that follows from the estimated share of wrong labels (`LabelDoubts.wrong`).
        log_odds: log p(prediction) - log p(label), after scaling.
        second: log p(label) by other networks, after scaling; NaN without any.

    Returns:
        The probability that the label is wrong: one of that share, or one of the few in every data set.
    """
    if math.isnan(second):
        usual = float(expit(REJECTED[0] + REJECTED[1] * np.clip(log_odds, -8, 8)))
    else:
        usual = _by_second(REJECTED_BY_SECOND, second)
    return 1 - (1 - wrong) * (1 - usual)


def _by_second(weights: tuple[float, float], second: float) -> float:
    """Return a probability that depends on log p(label) by other networks."""
    doubt = min(-second, TELLS_UP_TO) + BEYOND * max(min(-second, MOST) - TELLS_UP_TO, 0.0)
    return float(expit(weights[0] + weights[1] * doubt))


def probability_disputed(log_odds: float, confused_back: float, second: float = math.nan) -> float:
    """Return the probability that people disagree about an image that the network got wrong.

    Args:
        log_odds: log p(prediction) - log p(label), after scaling.
        confused_back: The share (0..1) of the predicted category's images that are taken for the label.
        second: log p(label) by other networks, after scaling; NaN without any.

    Returns:
        The probability that fewer than nine people in ten give the label.
    """
    if not math.isnan(second):
        return _by_second(DISPUTED_BY_SECOND, second)
    score = (
        DISPUTED[0] + DISPUTED[1] * np.clip(log_odds, -8, 8) + DISPUTED[2] * np.log(max(confused_back, 1e-4))
    )
    return float(expit(score))
