"""Set a diagnosis beside that of a healthy network: which kernels changed, and which categories lost."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from torchdoctor.diagnosis.result import Diagnosis, LayerDiagnosis
from torchdoctor.types import InputError


@dataclass(frozen=True)
class Contrast:
    """How one layer differs from the reference.

    `kernels` are ordered by `scores`, the most changed first; `categories` by `lost`, accuracy points
    lost against the reference on the diagnosed images, the greatest loss first.
    """

    layer: str
    kernels: tuple[int, ...]
    scores: Float[np.ndarray, " kernel"]
    categories: tuple[int, ...]
    lost: Float[np.ndarray, " category"]


def contrast(diagnosis: Diagnosis, reference: Diagnosis, layer: str) -> Contrast:
    """Rank kernels and categories by how far they are from a healthy network's diagnosis.

    A kernel's score is its shift in evidence, in units of the spread over images, averaged over the
    categories that both diagnosed, plus its relative shift in activation. InputError where the two are
    not of the same categories, evidence or layer.
    """
    if diagnosis.classes != reference.classes or diagnosis.evidence != reference.evidence:
        raise InputError(
            f"the diagnoses do not match: {len(diagnosis.classes)} categories by {diagnosis.evidence} "
            f"against {len(reference.classes)} by {reference.evidence}; expected the same"
        )
    try:
        mine, healthy = diagnosis.layer(layer), reference.layer(layer)
    except KeyError as error:
        raise InputError(str(error.args[0])) from error
    both = (diagnosis.counts > 0) & (reference.counts > 0)
    scores = kernel_shifts(mine, healthy, both)
    lost = np.nan_to_num(reference.accuracy - diagnosis.accuracy, nan=0.0)
    return Contrast(
        layer,
        tuple(np.argsort(-scores, kind="stable").tolist()),
        scores,
        tuple(np.argsort(-lost, kind="stable").tolist()),
        lost,
    )


def kernel_shifts(
    mine: LayerDiagnosis, healthy: LayerDiagnosis, categories: np.ndarray
) -> Float[np.ndarray, " kernel"]:
    """Return each kernel's standardised shift, averaged over the given categories; 0 without any."""
    if not categories.any():
        return np.zeros(mine.correlation.shape[1])
    spread = np.sqrt((mine.variance + healthy.variance) / 2)
    floor = 1e-3 * np.abs(healthy.correlation).max() + np.finfo(float).tiny
    evidence = np.abs(mine.correlation - healthy.correlation) / (spread + floor)
    size = np.abs(healthy.activation) + 1e-3 * np.abs(healthy.activation).max() + np.finfo(float).tiny
    activation = np.abs(mine.activation - healthy.activation) / size
    return (evidence + activation)[categories].mean(0)
