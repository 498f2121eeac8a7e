"""Summarise the evidence of images as statistics of each category and kernel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from torchdoctor.diagnosis.result import QUANTILES, LayerDiagnosis
from torchdoctor.display.counts import count_of
from torchdoctor.evidence.rows import ImageRows

LEVEL = 0.95  # the confidence level of the interval around every mean


LEAST_DRIFT, DRIFT_TIMES_MEDIAN = (
    0.3,
    5.0,
)  # a drift stands out if it is above both limits (see `out_of_step`)
MOST_FLAGGED = 12  # categories or kernels that are named one by one
NO_EVIDENCE, ALIKE = "no evidence at all", "all kernels alike"


def summarise(
    layer: str,
    rows: ImageRows,
    counts: Int[np.ndarray, " category"],
    *,
    theta: float,
    delta: float,
    deviation: float,
    drift: Float[np.ndarray, " kernel"],
    path: str,
) -> LayerDiagnosis:
    """Compute the statistics of a layer for each category (Eq. 3-4).

    Args:
        layer: The name of the layer.
        rows: The evidence of each image, summed over the map.
        counts: The number of images of each category in the diagnosis; 0 means that it is not diagnosed.
        theta: The threshold on relative evidence above which a kernel is correlated (see
            `correlated_kernels`).
        delta: The half-width of the noise that was added to the layer's map, in units of the map.
        deviation: The standard deviation of the layer's map.
        drift: How far each kernel's mean and variance are from the running statistics of the batch-norm
            behind it, in its standard deviations; NaN without a batch-norm.
        path: How the evidence was computed, in words.

    Returns:
        The means, their intervals, quantiles and further statistics; rows of categories that were not
        diagnosed are 0 (shares and agreement NaN).
    """
    values = _by_category(rows, len(counts))
    correlated = correlated_kernels(values["correlation"], theta)
    return LayerDiagnosis(
        name=layer,
        correlated=correlated,
        drift=drift,
        delta=delta,
        standard_deviation=deviation,
        path=path,
        flags=_flags(values["correlation"], correlated, counts, out_of_step(drift)),
        **values,
    )


def _by_category(rows: ImageRows, categories: int) -> dict[str, np.ndarray]:
    """Return the fields of `LayerDiagnosis` that are statistics over the images of a category."""
    kernels = rows.evidence.shape[1]
    mean, variance, activation = (np.zeros((categories, kernels)) for _ in range(3))
    interval = np.zeros((2, categories, kernels))
    quantiles = np.zeros((len(QUANTILES), categories, kernels))
    shares, agreement = np.full(categories, np.nan), np.full((len(QUANTILES), categories), np.nan)
    levels = []
    for category in range(categories):
        members = rows.labels == category
        if not members.any():
            continue
        evidence = rows.evidence[members]
        mean[category] = evidence.mean(0)
        variance[category] = evidence.var(0, ddof=1) if len(evidence) > 1 else 0.0
        interval[:, category] = interval_of(mean[category], variance[category], len(evidence))
        quantiles[:, category] = np.quantile(evidence, QUANTILES, axis=0)
        activation[category] = rows.activation[members].mean(0)
        levels.append(rows.level[members].mean(0))
        if len(evidence) > 1:
            agreement[:, category] = np.quantile(agreement_within(evidence), QUANTILES)
        if np.isfinite(rows.background[members]).any():
            shares[category] = np.nanmean(rows.background[members])
    return {
        "correlation": mean,
        "variance": variance,
        "interval": interval,
        "quantiles": quantiles,
        "activation": activation,
        "level": np.mean(levels, axis=0) if levels else np.zeros(kernels),
        "agreement": agreement,
        "background_share": shares,
    }


def interval_of(
    mean: Float[np.ndarray, " kernel"], variance: Float[np.ndarray, " kernel"], number: int
) -> Float[np.ndarray, "bound kernel"]:
    """Return the 95 % confidence interval of a mean over images (Student's t).

    Args:
        mean: The mean evidence of each kernel.
        variance: Its variance over images (with number - 1 in the denominator).
        number: The number of images.

    Returns:
        The lower and the upper bounds; 0 and infinity for fewer than two images.
    """
    if number < 2:
        return np.stack([np.zeros_like(mean), np.full_like(mean, np.inf)])
    from scipy import stats  # here, because it takes a second to import

    half = stats.t.ppf(0.5 + LEVEL / 2, number - 1) * np.sqrt(variance / number)
    return np.stack([mean - half, mean + half])


def agreement_within(evidence: Float[np.ndarray, "image kernel"]) -> Float[np.ndarray, " image"]:
    """Return how similar each image's evidence is to that of the other images of its category.

    Args:
        evidence: The evidence of two or more images.

    Returns:
        The cosine between each image's evidence and the mean of the others, in 0..1.
    """
    others = (evidence.sum(0) - evidence) / (len(evidence) - 1)
    return cosine(evidence, others)


def cosine(
    first: Float[np.ndarray, "*row kernel"], second: Float[np.ndarray, "*row kernel"]
) -> Float[np.ndarray, "*row"]:
    """Return the cosine of the angle between vectors.

    Args:
        first: The first vector of each pair.
        second: The second vector of each pair.

    Returns:
        The cosines, in -1..1; 0 where a vector of the pair is zero.
    """
    size = np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
    cosines: np.ndarray = np.divide((first * second).sum(-1), size, out=np.zeros_like(size), where=size > 0)
    return cosines


def correlated_kernels(
    correlation: Float[np.ndarray, "category kernel"], theta: float
) -> Bool[np.ndarray, "category kernel"]:
    """Return which kernels are correlated with each category.

    A kernel is correlated with a category if (a - min) / (max - min) >= theta, where a is its mean evidence
    for the category, and min and max are over all kernels of the layer.

    Args:
        correlation: The mean evidence of each category and kernel.
        theta: The threshold, in 0..1.

    Returns:
        True for correlated kernels; a category whose evidence is equal on all kernels has none.
    """
    if correlation.shape[1] == 0:
        return np.zeros(correlation.shape, dtype=bool)
    lowest, highest = correlation.min(1, keepdims=True), correlation.max(1, keepdims=True)
    width = highest - lowest
    relative = (correlation - lowest) / np.where(width > 0, width, 1.0)
    return (relative >= theta) & (width > 0)


def out_of_step(drift: Float[np.ndarray, " kernel"]) -> tuple[int, ...]:
    """Return the kernels whose statistics have changed since training far more than those of the others.

    Args:
        drift: As in `summarise`.

    Returns:
        The numbers of the kernels with a drift above 0.3 and above five times the layer's median; none
        without a batch-norm.
    """
    if np.isnan(drift).any() or not len(drift):
        return ()
    limit = max(LEAST_DRIFT, DRIFT_TIMES_MEDIAN * float(np.median(drift)))
    return tuple(np.flatnonzero(drift > limit).tolist())


def layers_out_of_step(layers: Sequence[LayerDiagnosis]) -> tuple[str, ...]:
    """Return the layers that have kernels whose statistics have changed since training.

    Args:
        layers: The diagnosed layers.

    Returns:
        The names of those with a kernel that is `out_of_step`, in the same order.
    """
    return tuple(layer.name for layer in layers if out_of_step(layer.drift))


def _flags(
    mean: Float[np.ndarray, "category kernel"],
    correlated: Bool[np.ndarray, "category kernel"],
    counts: Int[np.ndarray, " category"],
    changed: Sequence[int],
) -> tuple[str, ...]:
    """Describe what is unusual: categories or kernels without evidence, kernels changed since training."""
    diagnosed = counts > 0
    without = np.flatnonzero(diagnosed & ~correlated.any(1)).tolist()
    silent = [category for category in without if not mean[category].any()]
    alike = [category for category in without if mean[category].any()]
    if len(without) > MOST_FLAGGED:  # of many categories a sentence for each would bury everything else
        flags = [
            f"{count_of(len(members), 'category', 'categories')}: {why}, none correlated"
            for members, why in ((silent, NO_EVIDENCE), (alike, ALIKE))
            if members
        ]
    else:
        flags = [
            f"category {category}: {NO_EVIDENCE if category in silent else ALIKE}, none correlated"
            for category in without
        ]
    dead = int((mean[diagnosed] == 0).all(0).sum()) if diagnosed.any() else 0
    if dead:
        flags.append(
            f"{dead} of {mean.shape[1]} kernels {'carries' if dead == 1 else 'carry'} no evidence for "
            "any category"
        )
    if changed:
        names = ", ".join(map(str, changed[:MOST_FLAGGED])) + (", ..." if len(changed) > MOST_FLAGGED else "")
        flags.append(f"out of step with the batch-norm behind them: kernels {names}")
    return tuple(flags)
