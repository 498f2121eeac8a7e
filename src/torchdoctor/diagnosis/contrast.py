"""Compare a diagnosis with that of a healthy network: changed kernels, and lost accuracy by category."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from torchdoctor.diagnosis.result import Diagnosis, LayerDiagnosis
from torchdoctor.types import InputError


@dataclass(frozen=True)
class Contrast:
    """How a layer differs from that of the healthy network.

    Attributes:
        layer: The name of the layer.
        kernels: The numbers of all kernels, the most changed first.
        scores: How much each kernel changed (see `contrast`), by its number.
        categories: The numbers of all categories, the greatest loss of accuracy first.
        lost: The accuracy on the diagnosed images that each category lost, in percentage points.
    """

    layer: str
    kernels: tuple[int, ...]
    scores: Float[np.ndarray, " kernel"]
    categories: tuple[int, ...]
    lost: Float[np.ndarray, " category"]


def contrast(diagnosis: Diagnosis, reference: Diagnosis, layer: str) -> Contrast:
    """Rank the kernels of a layer and the categories by how far they are from a healthy network.

    Args:
        diagnosis: The diagnosis of the network that may be damaged.
        reference: The diagnosis of the healthy network, with the same layer and kind of evidence.
        layer: The name of the layer.

    Returns:
        The ranking. The score of a kernel is the shift of its mean evidence in standard deviations over
        images, plus the relative shift of its mean activation, averaged over the categories that both
        diagnoses hold.

    Raises:
        InputError: The diagnoses differ in their categories or kind of evidence, or lack the layer.
    """
    if diagnosis.classes != reference.classes or diagnosis.evidence != reference.evidence:
        raise InputError(
            f"the diagnoses do not match: {len(diagnosis.classes)} categories by {diagnosis.evidence} "
            f"against {len(reference.classes)} by {reference.evidence}; expected the same"
        )
    try:
        examined, healthy = diagnosis.layer(layer), reference.layer(layer)
    except KeyError as error:
        raise InputError(str(error.args[0])) from error
    both = (diagnosis.counts > 0) & (reference.counts > 0)
    scores = kernel_shifts(examined, healthy, both)
    lost = np.nan_to_num(reference.accuracy - diagnosis.accuracy, nan=0.0)
    return Contrast(
        layer,
        tuple(np.argsort(-scores, kind="stable").tolist()),
        scores,
        tuple(np.argsort(-lost, kind="stable").tolist()),
        lost,
    )


def kernel_shifts(
    examined: LayerDiagnosis, healthy: LayerDiagnosis, categories: np.ndarray
) -> Float[np.ndarray, " kernel"]:
    """Return how far each kernel of a layer is from the healthy network.

    Args:
        examined: The diagnosis of the layer of the network that may be damaged.
        healthy: The diagnosis of the layer of the healthy network.
        categories: True for each category to average over.

    Returns:
        The scores, as `contrast` describes them; 0 without any category.
    """
    if not categories.any():
        return np.zeros(examined.correlation.shape[1])
    spread = np.sqrt((examined.variance + healthy.variance) / 2)
    floor = 1e-3 * np.abs(healthy.correlation).max() + np.finfo(float).tiny
    evidence = np.abs(examined.correlation - healthy.correlation) / (spread + floor)
    size = np.abs(healthy.activation) + 1e-3 * np.abs(healthy.activation).max() + np.finfo(float).tiny
    activation = np.abs(examined.activation - healthy.activation) / size
    return (evidence + activation)[categories].mean(0)
