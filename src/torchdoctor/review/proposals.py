"""Propose masks: where a network looks in an image, and the place there that may be the object."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from torchdoctor.case.network_trial import example_of
from torchdoctor.case.preparation import Case
from torchdoctor.evidence.per_image import clean_evidence, finest, summed_maps
from torchdoctor.images.batches import Batch
from torchdoctor.network.frozen import frozen_eval
from torchdoctor.network.prediction import device_of, dtype_of
from torchdoctor.network.taps import map_shapes
from torchdoctor.types import Evidence

REMARKABLE = 99.0  # percentile of the map that counts as its highest value: single places may stick out
SHARE_OF_HIGHEST = 0.5  # from which a place belongs to the proposed mask


def layer_to_look_at(case: Case) -> str:
    """Return the deepest diagnosed layer that is fine enough to look at.

    Args:
        case: The prepared case.

    Returns:
        The name of the layer.
    """
    shapes = map_shapes(case.model, example_of(case.model, case.data), case.layers)
    return finest(case.layers, {name: shape[1:] for name, shape in shapes.items()})


def evidence_maps(
    case: Case, batch: Batch, layer: str, kind: Evidence | None = None
) -> Float[np.ndarray, "batch height width"]:
    """Return where the evidence for the predicted categories lies.

    Args:
        case: The prepared case.
        batch: The images.
        layer: The name of the layer.
        kind: The kind of evidence.

    Returns:
        A map for each image on the square that the network sees, 0 to 1 (the highest value); 0 everywhere
        without evidence.
    """
    with frozen_eval(case.model) as frozen:
        pixels = batch.images.to(device_of(case.model), dtype_of(case.model))
        evidence = clean_evidence(frozen, pixels, None, [layer], kind or case.plan.evidence)[0]
    height, width = batch.images.shape[2:]
    return scaled(summed_maps(evidence[layer], (height, width)))


def scaled(summed: Float[np.ndarray, "batch height width"]) -> Float[np.ndarray, "batch height width"]:
    """Scale maps so that 1 is their highest value, single places aside.

    Args:
        summed: A map for each image; no value is below 0.

    Returns:
        The maps, 0 to 1.
    """
    summed = summed.astype(np.float32)
    highest = np.percentile(summed, REMARKABLE, axis=(1, 2), keepdims=True).astype(np.float32)
    return (summed / np.where(highest > 0, highest, np.inf)).clip(0, 1)


def proposed_mask(evidence: Float[np.ndarray, "height width"]) -> Bool[np.ndarray, "height width"]:
    """Propose a mask: the largest connected place where the evidence is high, without holes.

    Args:
        evidence: Where the evidence in an image lies, 0 to 1.

    Returns:
        True where the object may be; nowhere without evidence.
    """
    return largest_place(evidence >= SHARE_OF_HIGHEST)


def largest_place(high: Bool[np.ndarray, "height width"]) -> Bool[np.ndarray, "height width"]:
    """Return the largest connected part of an area, its holes filled.

    Args:
        high: The area.

    Returns:
        The part; empty where the area is.
    """
    parts, number = ndimage.label(high)
    if number == 0:
        return high
    largest = 1 + int(np.argmax(np.bincount(parts.ravel())[1:]))
    filled: np.ndarray = ndimage.binary_fill_holes(parts == largest)
    return filled
