"""The result of a diagnosis: which images were sifted, and what Eq. 2-4 say about each layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from torchdoctor.types import Evidence

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Sifting:
    """Which training images speak for a category and which are to be annotated.

    `high[c]` are the ids of up to T images of category c, most confident first, all classified
    correctly; `low[c]` are the ids to annotate, most confident mistakes first.
    """

    high: tuple[tuple[int, ...], ...]
    low: tuple[tuple[int, ...], ...]
    confidence: float
    images_per_category: int


@dataclass(frozen=True)
class LayerDiagnosis:
    """What Eq. 2-4 say about one layer. Rows of categories that were not diagnosed are zero.

    `correlation` is the mean over images, `interval` its 95 % bounds, `quantiles` those of single images.
    `activation` is the mean absolute map, `level` the mean map over all diagnosed categories, what a
    silenced kernel is set to. `agreement` holds the quantiles of how alike an image's evidence is to the
    mean of its category's other images (cosine, 0..1). `background_share[c]` is the share of the evidence
    that lies on the background. `drift` is how far each kernel's statistics over the images are from
    those that the batch-norm behind it remembers, in its standard deviations: large where something has
    changed since training. All are NaN where there is nothing to compare. `path` says how the evidence
    was computed.
    """

    name: str
    correlation: Float[np.ndarray, "category kernel"]
    variance: Float[np.ndarray, "category kernel"]
    interval: Float[np.ndarray, "bound category kernel"]
    quantiles: Float[np.ndarray, "quantile category kernel"]
    activation: Float[np.ndarray, "category kernel"]
    level: Float[np.ndarray, " kernel"]
    correlated: Bool[np.ndarray, "category kernel"]
    agreement: Float[np.ndarray, "quantile category"]
    background_share: Float[np.ndarray, " category"]
    drift: Float[np.ndarray, " kernel"]
    delta: float
    standard_deviation: float
    path: str
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Diagnosis:
    """The frozen result of `diagnose`: correlations per layer, and how the classifier does per category.

    `counts[c]` is the number of images behind category c's row: 0 means not diagnosed.
    `confusion[i, j]` counts images of category i that were called j.
    """

    classes: tuple[str, ...]
    layers: tuple[LayerDiagnosis, ...]
    sifting: Sifting
    counts: Int[np.ndarray, " category"]
    confusion: Int[np.ndarray, "category category"]
    evidence: Evidence
    draws: int | Literal["exact"]
    theta: float
    seed: int
    model_sha256: str

    def layer(self, name: str) -> LayerDiagnosis:
        """Return the layer called `name`; KeyError lists the diagnosed ones."""
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(f"{name!r} was not diagnosed; diagnosed: {', '.join(one.name for one in self.layers)}")

    @property
    def accuracy(self) -> Float[np.ndarray, " category"]:
        """Per-category accuracy over the diagnosed images, in percent; NaN for a category without images."""
        totals = self.confusion.sum(axis=1)
        with np.errstate(invalid="ignore"):
            return np.where(totals > 0, 100.0 * np.diag(self.confusion) / np.maximum(totals, 1), np.nan)

    @property
    def not_diagnosed(self) -> tuple[str, ...]:
        """Names of the categories without a single confident correct image."""
        return tuple(
            name for name, count in zip(self.classes, self.counts.tolist(), strict=True) if count == 0
        )

    @property
    def inconclusive(self) -> bool:
        """Whether more than half of the categories could not be diagnosed."""
        return 2 * len(self.not_diagnosed) > len(self.classes)
