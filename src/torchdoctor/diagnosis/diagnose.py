"""Accumulate how strongly every category depends on every kernel (Eq. 2-4), and where its evidence lies."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
from torch import nn

from torchdoctor.diagnosis.result import Diagnosis
from torchdoctor.diagnosis.sifting import LowOrder, sift
from torchdoctor.diagnosis.statistics import summarise
from torchdoctor.evidence.measurement import Parts, Survey, first_images, measure, tensor_bytes
from torchdoctor.evidence.per_image import Draws
from torchdoctor.images.batches import Images
from torchdoctor.network.hooks import map_shapes
from torchdoctor.network.layers import chosen_layers, norms_behind
from torchdoctor.network.outputs import unwrap
from torchdoctor.network.prediction import predict_logits
from torchdoctor.types import Evidence, InputError, Progress, check_choice, silent


def diagnose(
    model: nn.Module,
    images: Images,
    *,
    layers: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    evidence: Evidence = "gradient",
    draws: Draws = 10,
    delta: float | None = None,
    theta: float = 0.2,
    images_per_category: int = 100,
    confidence: float = 0.9,
    annotations_per_category: int = 20,
    low_order: LowOrder = "mistakes_first",
    seed: int = 0,
    parts: Parts | None = None,
    progress: Progress = silent,
) -> Diagnosis:
    """Diagnose a trained classifier on its training images; the network is left as it was.

    For every category c and kernel k of every layer (Eq. 4): the mean over the T sifted images and J
    draws of the sum over space of abs(d y_c / d(m_k + sigma)), sigma uniform in [-delta, delta] at one
    layer at a time. `delta` is in units of the map; by default 0.1 x the layer's standard deviation
    over the sifted images. `layers`: names, patterns (`layer3.*`), `all`, `last:3`; by default the last
    convolution and two earlier ones. `draws=0` means sigma = 0 (Eq. 3): all layers then cost one gradient
    call; `"exact"` is the limit of many draws, for layers with a closed form. A kernel is correlated with
    c where (a - min) / (max - min) >= theta. What was computed is kept in `parts` as it comes: given
    again, an interrupted diagnosis goes on there. InputError for layers or images that cannot be used.
    """
    model = unwrap(model)
    check_choice("evidence", evidence, Evidence)
    _check_settings(draws, delta, theta, images_per_category)
    example = first_images(model, images)
    layers = tuple(map_shapes(model, example, chosen_layers(model, example, layers)))  # first to last
    if classes is None:
        classes = getattr(images, "classes", None)
    sha256 = state_sha256(model)
    found = Survey(model, layers, parts, sha256)
    ids, labels, logits = predict_logits(model, images, found)
    names = tuple(classes) if classes is not None else tuple(map(str, range(logits.shape[1])))
    if len(names) != logits.shape[1]:
        raise InputError(f"{len(names)} class names for {logits.shape[1]} logits: one name each is expected")
    confusion = np.zeros((len(names), len(names)), dtype=np.int64)
    np.add.at(confusion, (labels.numpy(), logits.argmax(1).numpy()), 1)
    sifting = sift(
        ids,
        labels,
        logits,
        images_per_category=images_per_category,
        confidence=confidence,
        annotations_per_category=annotations_per_category,
        low_order=low_order,
    )
    chosen = [image for category in sifting.high for image in category]
    counts = np.array([len(category) for category in sifting.high], dtype=np.int64)
    deviations = found.deviations(ids.tolist(), chosen)
    drifts = found.drifts(norms_behind(model, example, layers))
    deltas = {one: (0.1 * deviations[one] if delta is None else delta) if draws else 0.0 for one in layers}
    rows, paths = measure(
        model, images, chosen, deltas,
        draws=draws, evidence=evidence, seed=seed, parts=parts, sha256=sha256, progress=progress,
    )  # fmt: skip
    return Diagnosis(
        classes=names,
        layers=tuple(
            summarise(
                one, rows[one], counts,
                theta=theta, delta=deltas[one], deviation=deviations[one], drift=drifts[one],
                path=paths[one],
            )
            for one in layers
        ),
        sifting=sifting,
        counts=counts,
        confusion=confusion,
        evidence=evidence,
        draws=draws,
        theta=theta,
        seed=seed,
        model_sha256=sha256,
    )  # fmt: skip


def _check_settings(draws: Draws, delta: float | None, theta: float, images_per_category: int) -> None:
    """Refuse settings outside their range."""
    if draws != "exact" and (not isinstance(draws, int) or draws < 0):
        raise InputError(f"draws is {draws!r}; expected 0 (no noise), a number of draws, or 'exact'")
    if delta is not None and not (math.isfinite(delta) and delta >= 0):
        raise InputError(f"delta is {delta}; expected a finite number >= 0, in units of the layer's map")
    if not 0 <= theta <= 1:
        raise InputError(f"theta is {theta}; expected a number between 0 and 1")
    if images_per_category < 1:
        raise InputError(f"images_per_category is {images_per_category}; expected at least 1")


def state_sha256(model: nn.Module) -> str:
    """Return the sha256 of all parameters and buffers: names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()
