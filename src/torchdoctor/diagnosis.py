"""Accumulate how strongly every category depends on every kernel (Eq. 2-4), and where its evidence lies."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from torchdoctor.gradients import (
    evidence_of,
    map_shapes,
    measuring,
    noisy_tail,
    pick,
    run_tapped,
    score_gradients,
)
from torchdoctor.layers import default_layers
from torchdoctor.masks import background_mask
from torchdoctor.networks import unwrap
from torchdoctor.noise import uniform_noise
from torchdoctor.sifting import LowOrder, device_of, dtype_of, only, predict_logits, sift
from torchdoctor.types import (
    QUANTILES,
    Batch,
    Diagnosis,
    Evidence,
    Images,
    InputError,
    LayerDiagnosis,
    check_choice,
)

Progress = Callable[[str, int, int], None]
MOST_NOISE = 1 << 24  # floats of noise in one tail pass: 64 MiB, and a few times that behind it


def silent(_stage: str, _done: int, _total: int) -> None:
    """Report nothing."""


@dataclass
class _Rows:
    """Per-image sums of one layer, gathered in any order."""

    ids: list[int]
    labels: list[int]
    evidence: list[np.ndarray]
    activation: list[np.ndarray]
    background: list[float]


def diagnose(
    model: nn.Module,
    images: Images,
    *,
    layers: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    evidence: Evidence = "gradient",
    draws: int = 10,
    delta: float | None = None,
    theta: float = 0.2,
    images_per_category: int = 100,
    confidence: float = 0.9,
    annotations_per_category: int = 20,
    low_order: LowOrder = "mistakes_first",
    seed: int = 0,
    progress: Progress = silent,
) -> Diagnosis:
    """Diagnose a trained classifier on its training images; the network is left as it was.

    For every category c and kernel k of every layer (Eq. 4): the mean over the T sifted images and J
    draws of the sum over space of abs(d y_c / d(m_k + sigma)), sigma uniform in [-delta, delta] at one
    layer at a time. `delta` is in units of the map; by default 0.1 x the layer's standard deviation
    over the sifted images. `layers`: by default the last convolution and two earlier ones. `draws=0`
    means sigma = 0 (Eq. 3). A kernel is correlated with c where
    (a - min) / (max - min) >= theta. InputError for layers or images that cannot be used.
    """
    model = unwrap(model)
    check_choice("evidence", evidence, Evidence)
    _check_settings(draws, delta, theta, images_per_category)
    if layers is None:
        layers = default_layers(model, _example(model, images))
    if classes is None:
        classes = getattr(images, "classes", None)
    ids, labels, logits = predict_logits(model, images)
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
    shapes = map_shapes(model, _example(model, images), layers)
    counts = np.array([len(category) for category in sifting.high], dtype=np.int64)
    found, path = [], "none"
    for number, layer in enumerate(layers):
        deviation = _standard_deviation(model, images, layer, chosen)
        width = delta if delta is not None else 0.1 * deviation
        rows, path = _layer_rows(model, images, layer, chosen, evidence, draws, width, seed)
        found.append(
            _summarise(layer, shapes[layer][0], rows, counts, width if draws else 0.0, deviation, theta)
        )
        progress("diagnose", number + 1, len(layers))
    return Diagnosis(
        classes=names,
        layers=tuple(found),
        sifting=sifting,
        counts=counts,
        confusion=confusion,
        evidence=evidence,
        draws=draws,
        theta=theta,
        seed=seed,
        path=path,
        model_sha256=state_sha256(model),
    )


def _example(model: nn.Module, images: Images) -> Tensor:
    """Return the first batch where the network lies; InputError when there is none."""
    for batch in images:
        return batch.images.to(device_of(model), dtype_of(model))
    raise InputError("there are no images: the source yielded no batch; check the data and its split")


def _check_settings(draws: int, delta: float | None, theta: float, images_per_category: int) -> None:
    """Refuse settings outside their range."""
    if draws < 0:
        raise InputError(f"draws is {draws}; expected 0 (no noise) or a positive number of draws")
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
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _standard_deviation(model: nn.Module, images: Images, layer: str, ids: Iterable[int]) -> float:
    """Return the standard deviation of all values of the layer's maps over these images."""
    moments: dict[int, tuple[int, float, float]] = {}
    device, dtype = device_of(model), dtype_of(model)
    stored: list[Tensor] = []

    def tap(output: Tensor) -> Tensor:
        stored.append(output)
        return output.clone()

    with measuring(model), torch.no_grad():
        for batch in only(images, ids):
            run_tapped(model, batch.images.to(device, dtype), {layer: tap})
            values = stored.pop().double().flatten(1)
            for image, total, square in zip(
                batch.ids.tolist(), values.sum(1).tolist(), values.square().sum(1).tolist(), strict=True
            ):
                moments[image] = (values.shape[1], total, square)
    number = sum(moments[image][0] for image in sorted(moments))
    if number == 0:
        return 0.0
    mean = math.fsum(one[1] for one in moments.values()) / number
    return math.sqrt(max(math.fsum(one[2] for one in moments.values()) / number - mean * mean, 0.0))


def _layer_rows(
    model: nn.Module,
    images: Images,
    layer: str,
    ids: Sequence[int],
    evidence: Evidence,
    draws: int,
    delta: float,
    seed: int,
) -> tuple[_Rows, str]:
    """Gather every sifted image's evidence per kernel at one layer."""
    rows, path = _Rows([], [], [], [], []), "none"
    device, dtype = device_of(model), dtype_of(model)
    with measuring(model):
        for batch in only(images, ids):
            pixels, targets = batch.images.to(device, dtype), batch.labels.to(device)
            found, activation, path = image_evidence(
                model, pixels, targets, batch.ids.to(device), layer, evidence, draws, delta, seed
            )
            rows.ids += batch.ids.tolist()
            rows.labels += batch.labels.tolist()
            rows.evidence += list(found.sum((-2, -1)).double().cpu().numpy())
            rows.activation += list(activation.double().cpu().numpy())
            rows.background += background_shares_of(found, batch).tolist()
    return rows, path


def image_evidence(
    model: nn.Module,
    pixels: Float[Tensor, "batch channel height width"],
    targets: Tensor,
    ids: Tensor,
    layer: str,
    evidence: Evidence,
    draws: int,
    delta: float,
    seed: int,
) -> tuple[Float[Tensor, "batch kernel map_height map_width"], Float[Tensor, "batch kernel"], str]:
    """Return each image's evidence map averaged over the draws (Eq. 4), its mean absolute map, and the path.

    The caller holds the network in `measuring`. Draws are taken in chunks that bound the memory.
    """
    shape = map_shapes(model, pixels, [layer])[layer]
    dtype = pixels.dtype
    total, activation, path = None, None, "none"
    at_once = max(1, MOST_NOISE // (len(pixels) * math.prod(shape)))
    for start in range(0, max(draws, 1), at_once):
        if draws == 0:
            noise = torch.zeros(1, len(pixels), *shape, dtype=dtype, device=pixels.device)
        else:
            chunk = range(start, min(start + at_once, draws))
            noise = delta * uniform_noise(ids, chunk, shape, seed=seed, layer=layer, dtype=dtype)
        tail = noisy_tail(model, pixels, layer, noise)
        gradient = score_gradients([pick(tail.logits, targets)], {layer: tail.noise})[0][layer]
        part = evidence_of(gradient, tail.maps, evidence).detach().sum(0)
        total = part if total is None else total + part
        if activation is None:
            clean = tail.maps.detach()[0] - noise.detach()[0]
            activation = clean.abs().mean((-2, -1))
        path = tail.path
    assert total is not None and activation is not None
    return total / max(draws, 1), activation, path


def background_shares_of(
    evidence: Float[Tensor, "batch kernel map_height map_width"], batch: Batch
) -> Float[np.ndarray, " batch"]:
    """Return the share of each image's evidence on the background; NaN where no mask or no evidence is."""
    shares = np.full(len(evidence), np.nan)
    if batch.masks is None:
        return shares
    per_place = evidence.sum(1, keepdim=True)
    background = background_mask(batch.masks.to(per_place), (per_place.shape[2], per_place.shape[3]))
    total = per_place.sum((1, 2, 3))
    on_background = (per_place * background).sum((1, 2, 3))
    known = total > 0
    if batch.annotated is not None:
        known &= batch.annotated.to(known.device)
    found = (on_background / total.where(total > 0, torch.ones_like(total))).double().cpu().numpy()
    return np.where(known.cpu().numpy(), found, shares)


def _summarise(
    layer: str,
    kernels: int,
    rows: _Rows,
    counts: np.ndarray,
    delta: float,
    deviation: float,
    theta: float,
) -> LayerDiagnosis:
    """Turn per-image sums into statistics per category, in the order of the ids: order changes no bit."""
    order = np.argsort(np.array(rows.ids, dtype=np.int64), kind="stable")
    labels = np.array(rows.labels, dtype=np.int64)[order]
    evidence = np.array(rows.evidence, dtype=np.float64).reshape(-1, kernels)[order]
    activation = np.array(rows.activation, dtype=np.float64).reshape(-1, kernels)[order]
    background = np.array(rows.background, dtype=np.float64)[order]
    mean, variance, spread = (np.zeros((len(counts), kernels)) for _ in range(3))
    quantiles = np.zeros((len(QUANTILES), len(counts), kernels))
    shares = np.full(len(counts), np.nan)
    for category in range(len(counts)):
        mine = labels == category
        if not mine.any():
            continue
        mean[category] = evidence[mine].mean(0)
        variance[category] = evidence[mine].var(0, ddof=1) if mine.sum() > 1 else 0.0
        quantiles[:, category] = np.quantile(evidence[mine], QUANTILES, axis=0)
        spread[category] = activation[mine].mean(0)
        if np.isfinite(background[mine]).any():
            shares[category] = np.nanmean(background[mine])
    related = correlated_kernels(mean, theta)
    flags = [
        f"category {category}: all kernels alike, none correlated"
        for category in np.flatnonzero((counts > 0) & ~related.any(1)).tolist()
    ]
    return LayerDiagnosis(
        layer, mean, variance, quantiles, spread, related, shares, delta, deviation, tuple(flags)
    )


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
