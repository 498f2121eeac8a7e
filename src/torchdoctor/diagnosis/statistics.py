"""Keep what single images say as sums per kernel, merge such rows in any order, and summarise them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats

from torchdoctor.diagnosis.result import QUANTILES, LayerDiagnosis
from torchdoctor.evidence.rows import ImageRows

LEVEL = 0.95  # of the interval around every a[c, k]


LEAST_DRIFT, DRIFT_TIMES_MEDIAN = 0.3, 5.0


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
    """Turn rows into statistics per category: Eq. 3-4, their spread, and how alike the images are."""
    kernels, categories = rows.evidence.shape[1], len(counts)
    mean, variance, activation = (np.zeros((categories, kernels)) for _ in range(3))
    interval = np.zeros((2, categories, kernels))
    quantiles = np.zeros((len(QUANTILES), categories, kernels))
    shares, agreement = np.full(categories, np.nan), np.full((len(QUANTILES), categories), np.nan)
    levels = []
    for category in range(categories):
        mine = rows.labels == category
        if not mine.any():
            continue
        evidence = rows.evidence[mine]
        mean[category] = evidence.mean(0)
        variance[category] = evidence.var(0, ddof=1) if len(evidence) > 1 else 0.0
        interval[:, category] = interval_of(mean[category], variance[category], len(evidence))
        quantiles[:, category] = np.quantile(evidence, QUANTILES, axis=0)
        activation[category] = rows.activation[mine].mean(0)
        levels.append(rows.level[mine].mean(0))
        if len(evidence) > 1:
            agreement[:, category] = np.quantile(agreement_within(evidence), QUANTILES)
        if np.isfinite(rows.background[mine]).any():
            shares[category] = np.nanmean(rows.background[mine])
    related = correlated_kernels(mean, theta)
    return LayerDiagnosis(
        name=layer,
        correlation=mean,
        variance=variance,
        interval=interval,
        quantiles=quantiles,
        activation=activation,
        level=np.mean(levels, axis=0) if levels else np.zeros(kernels),
        correlated=related,
        agreement=agreement,
        background_share=shares,
        drift=drift,
        delta=delta,
        standard_deviation=deviation,
        path=path,
        flags=_flags(mean, related, counts, out_of_step(drift)),
    )


def interval_of(
    mean: Float[np.ndarray, " kernel"], variance: Float[np.ndarray, " kernel"], number: int
) -> Float[np.ndarray, "bound kernel"]:
    """Return the bounds of the mean's 95 % interval over images (Student's t); infinite for one image."""
    if number < 2:
        return np.stack([np.zeros_like(mean), np.full_like(mean, np.inf)])
    half = stats.t.ppf(0.5 + LEVEL / 2, number - 1) * np.sqrt(variance / number)
    return np.stack([mean - half, mean + half])


def agreement_within(evidence: Float[np.ndarray, "image kernel"]) -> Float[np.ndarray, " image"]:
    """Return how alike each image's evidence is to the mean of the others: the cosine of the two, 0..1."""
    others = (evidence.sum(0) - evidence) / (len(evidence) - 1)
    return cosine(evidence, others)


def cosine(
    some: Float[np.ndarray, "*row kernel"], other: Float[np.ndarray, "*row kernel"]
) -> Float[np.ndarray, "*row"]:
    """Return the cosine of the angle between vectors, 0 where one of them is zero."""
    size = np.linalg.norm(some, axis=-1) * np.linalg.norm(other, axis=-1)
    found: np.ndarray = np.divide((some * other).sum(-1), size, out=np.zeros_like(size), where=size > 0)
    return found


def correlated_kernels(
    correlation: Float[np.ndarray, "category kernel"], theta: float
) -> Bool[np.ndarray, "category kernel"]:
    """Return which kernels are correlated with each category: (a - min) / (max - min) >= theta.

    A row whose values are all alike has none.
    """
    if correlation.shape[1] == 0:
        return np.zeros(correlation.shape, dtype=bool)
    lowest, highest = correlation.min(1, keepdims=True), correlation.max(1, keepdims=True)
    width = highest - lowest
    relative = (correlation - lowest) / np.where(width > 0, width, 1.0)
    return (relative >= theta) & (width > 0)


def sparsity(
    correlation: Float[np.ndarray, "category kernel"], evidence_share: float = 0.9
) -> Float[np.ndarray, " category"]:
    """Return the least share of a layer's kernels that carries `evidence_share` of a category's evidence.

    Small means that few kernels speak for the category (the paper's first discovery); NaN for a category
    without evidence.
    """
    falling = -np.sort(-correlation, axis=1)
    total = falling.sum(1, keepdims=True)
    reached = np.cumsum(falling, axis=1) >= evidence_share * total * (1 - 1e-12)
    needed = reached.argmax(1) + 1.0
    return np.where(total[:, 0] > 0, needed / correlation.shape[1], np.nan)


def out_of_step(drift: Float[np.ndarray, " kernel"]) -> tuple[int, ...]:
    """Return the kernels whose drift stands out in their layer: above 0.3 and five times the median."""
    if np.isnan(drift).any() or not len(drift):
        return ()
    limit = max(LEAST_DRIFT, DRIFT_TIMES_MEDIAN * float(np.median(drift)))
    return tuple(np.flatnonzero(drift > limit).tolist())


def _flags(
    mean: Float[np.ndarray, "category kernel"],
    related: Bool[np.ndarray, "category kernel"],
    counts: Int[np.ndarray, " category"],
    changed: Sequence[int],
) -> tuple[str, ...]:
    """Say what is odd: rows without evidence or contrast, kernels that are dead or changed since training."""
    diagnosed = counts > 0
    flags = [
        f"category {category}: {'no evidence at all' if not mean[category].any() else 'all kernels alike'}, "
        "none correlated"
        for category in np.flatnonzero(diagnosed & ~related.any(1)).tolist()
    ]
    dead = int((mean[diagnosed] == 0).all(0).sum()) if diagnosed.any() else 0
    if dead:
        flags.append(f"{dead} of {mean.shape[1]} kernels carry no evidence for any category")
    if changed:
        names = ", ".join(map(str, changed[:12])) + (", ..." if len(changed) > 12 else "")
        flags.append(f"out of step with the batch-norm behind them: kernels {names}")
    return tuple(flags)
