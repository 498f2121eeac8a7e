"""Explain a prediction: which kernels stand out, and whether silencing them changes the prediction."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from torchdoctor.diagnosis.causal_check import causal_check
from torchdoctor.diagnosis.explanation_result import CausalCheck, Explanation, StandingOut
from torchdoctor.diagnosis.result import Diagnosis, LayerDiagnosis
from torchdoctor.diagnosis.statistics import cosine
from torchdoctor.evidence.measurement import measure
from torchdoctor.evidence.per_image import background_shares_of, clean_evidence, finest, summed_maps
from torchdoctor.images.batches import Batch
from torchdoctor.network.frozen import frozen_eval
from torchdoctor.network.layers import chosen_layers
from torchdoctor.network.outputs import as_logits, unwrap
from torchdoctor.network.prediction import device_of, dtype_of
from torchdoctor.network.taps import grids
from torchdoctor.types import Evidence, InputError

UNUSUAL = 3.0  # standard deviations above the mean of the category's images
LEAST_OF_MEAN = 0.5  # kernels with less evidence, relative to the mean kernel of the layer, do not matter
STRONGEST = 8  # kernels of each layer that are named where there is no diagnosis to compare with


def explain(
    model: nn.Module,
    image: Float[Tensor, "channel height width"],
    diagnosis: Diagnosis | None = None,
    *,
    label: str | None = None,
    mask: Float[Tensor, "1 height width"] | None = None,
    classes: Sequence[str] | None = None,
    layers: Sequence[str] | None = None,
    most: int = 8,
    image_id: int = 0,
    seed: int = 0,
) -> Explanation:
    """Explain what a network predicts for an image.

    Kernels stand out where their evidence for the predicted category is at least 3 standard deviations above
    the category's mean in the diagnosis, and at least half the mean of their layer. Without a diagnosis the
    kernels with the most evidence are named.

    Args:
        model: The network; it is left as it was.
        image: The normalised image.
        diagnosis: The diagnosis of this network; None: no comparison with other images of the category.
        label: The name of the true category, if it is known.
        mask: 1 on the object, 0 on the background.
        classes: The names of the categories; None: those of the diagnosis, else numbers.
        layers: The names of the layers, out of those that were diagnosed; None: all of them.
        most: The largest number of kernels to name.
        image_id: The id of the image, which its noise depends on.
        seed: The seed of the random sets of kernels in the causal check.

    Returns:
        The prediction, the kernels that stand out, and what happens when they are silenced.

    Raises:
        InputError: The label or a layer is unknown, or the names do not fit the logits.

    Example:
        >>> from torchdoctor import explain
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
        >>> explanation = explain(model, torch.randn(3, 8, 8), classes=["cat", "dog"], layers=["0"])
        >>> explanation.layer, explanation.summed_map.shape
        ('0', (8, 8))
    """
    subject = _Subject.of(unwrap(model), image, mask, image_id, diagnosis, classes)
    if label is not None and label not in subject.names:
        known = f"{len(subject.names)} categories: {', '.join(subject.names[:8])}"
        raise InputError(f"label {label!r} is none of the {known}, ...")
    return subject.explanation(label, subject.layers(layers), most, seed)


@dataclass(frozen=True)
class _Subject:
    """An image, the network's output for it, and the diagnosis that it is compared with.

    `batch` holds the image alone, labelled with the predicted category; `pixels` is the image on the
    network's device; `names` are those of the categories.
    """

    model: nn.Module
    batch: Batch
    pixels: Float[Tensor, "1 channel height width"]
    logits: Float[Tensor, " category"]
    names: tuple[str, ...]
    diagnosis: Diagnosis | None

    @classmethod
    def of(
        cls,
        model: nn.Module,
        image: Float[Tensor, "channel height width"],
        mask: Float[Tensor, "1 height width"] | None,
        image_id: int,
        diagnosis: Diagnosis | None,
        classes: Sequence[str] | None,
    ) -> _Subject:
        """Predict the image; InputError where the names do not fit the logits."""
        pixels = image[None].to(device_of(model), dtype_of(model))
        with frozen_eval(model), torch.no_grad():
            logits = as_logits(model(pixels))[0].double().cpu()
        predicted = logits.topk(min(2, len(logits))).indices[:1]
        masks = None if mask is None else mask[None]
        batch = Batch(image[None], predicted, torch.tensor([image_id]), masks)
        return cls(model, batch, pixels, logits, _names(diagnosis, classes, len(logits)), diagnosis)

    @property
    def category(self) -> int:
        """The number of the predicted category."""
        return int(self.batch.labels[0])

    def layers(self, layers: Sequence[str] | None) -> tuple[str, ...]:
        """Return the layers to look at: those that were diagnosed, or some of them."""
        if self.diagnosis is None:
            return chosen_layers(self.model, self.pixels, layers)
        known = tuple(layer.name for layer in self.diagnosis.layers)
        wanted = known if layers is None else chosen_layers(self.model, self.pixels, layers)
        strange = [name for name in wanted if name not in known]
        if strange:
            raise InputError(f"layer {strange[0]!r} was not diagnosed; diagnosed: {', '.join(known)}")
        return wanted

    def explanation(self, label: str | None, layers: Sequence[str], most: int, seed: int) -> Explanation:
        """Put the explanation together."""
        first, second = self.category, int(self.logits.topk(min(2, len(self.logits))).indices[-1])
        confidence = self.logits.softmax(0)
        rows = evidence_rows(self.model, self.batch, self.diagnosis, layers)
        evidence = {layer: rows[layer][0] for layer in layers}
        kernels = self._standing_out(evidence, most)
        layer, summed, share = self._on_the_image(layers)
        usual = math.nan if self.diagnosis is None else self.diagnosis.layer(layer).background_share[first]
        return Explanation(
            label=label,
            prediction=self.names[first],
            runner_up=self.names[second],
            confidence=float(confidence[first]),
            runner_up_confidence=float(confidence[second]),
            label_confidence=None if label is None else float(confidence[self.names.index(label)]),
            kernels=kernels,
            check=self._check(evidence, kernels, seed) if kernels else None,
            alike=self._alike(evidence),
            layer=layer,
            summed_map=summed,
            background_share=None if math.isnan(share) else share,
            usual_background_share=None if math.isnan(usual) else float(usual),
            compared=self.diagnosis is not None,
        )

    def _standing_out(self, evidence: Mapping[str, np.ndarray], most: int) -> tuple[StandingOut, ...]:
        """Return the kernels of all layers that stand out, the most prominent first."""
        kernels = [
            kernel
            for layer, values in evidence.items()
            for kernel in _standing_out(layer, values, self.category, self.diagnosis, self.names)
        ]
        return tuple(sorted(kernels, key=lambda kernel: -kernel.prominence)[:most])

    def _alike(self, evidence: Mapping[str, np.ndarray]) -> dict[str, tuple[float, float, float]]:
        """Return how similar the evidence is to the category's mean, and the range usual for its images."""
        if self.diagnosis is None or self.diagnosis.counts[self.category] == 0:
            return {}
        similar = {}
        for name, values in evidence.items():
            layer = self.diagnosis.layer(name)
            usual = layer.agreement[:, self.category]
            alike = float(cosine(values, layer.correlation[self.category]))
            similar[name] = (alike, float(usual[0]), float(usual[-1]))
        return similar

    def _on_the_image(self, layers: Sequence[str]) -> tuple[str, Float[np.ndarray, "height width"], float]:
        """Return the deepest layer fine enough to look at, its map over the image, its background share."""
        kind: Evidence = "gradient_x_activation" if self.diagnosis is None else self.diagnosis.evidence
        with frozen_eval(self.model) as frozen:
            targets = self.batch.labels.to(self.pixels.device)
            maps = clean_evidence(frozen, self.pixels, targets, layers, kind)[0]
            places = grids(frozen.model, self.pixels, layers)
        layer = finest(layers, places)
        size = (self.pixels.shape[2], self.pixels.shape[3])
        share = float(background_shares_of(maps[layer], self.batch, places[layer])[0])
        return layer, summed_maps(maps[layer], size, places[layer])[0], share

    def _check(
        self, evidence: Mapping[str, np.ndarray], kernels: Sequence[StandingOut], seed: int
    ) -> CausalCheck:
        """Silence the kernels: each is set to its mean over the diagnosed images, else to 0."""
        levels = {
            layer: np.zeros(len(values)) if self.diagnosis is None else self.diagnosis.layer(layer).level
            for layer, values in evidence.items()
        }
        return causal_check(self.model, self.pixels, evidence, kernels, levels, names=self.names, seed=seed)


def evidence_rows(
    model: nn.Module, batch: Batch, diagnosis: Diagnosis | None, layers: Sequence[str]
) -> dict[str, Float[np.ndarray, "image kernel"]]:
    """Measure the evidence for each image's label in the same way as the diagnosis did.

    Args:
        model: The network; it is left as it was.
        batch: The images.
        diagnosis: The diagnosis, which says the kind of evidence and the noise; None: gradient x activation
            without noise.
        layers: The names of the layers.

    Returns:
        The evidence of each kernel by layer, summed over the map; rows in the order of the batch.
    """
    kind: Evidence = "gradient_x_activation" if diagnosis is None else diagnosis.evidence
    deltas = {name: 0.0 if diagnosis is None else diagnosis.layer(name).delta for name in layers}
    rows, _ = measure(
        model, [batch], batch.ids.tolist(), deltas, evidence=kind,
        draws=0 if diagnosis is None else diagnosis.draws, seed=0 if diagnosis is None else diagnosis.seed,
    )  # fmt: skip
    back = np.argsort(np.argsort(batch.ids.cpu().numpy(), kind="stable"), kind="stable")
    return {layer: rows[layer].evidence[back] for layer in layers}


def unusual(
    evidence: Float[np.ndarray, "*image kernel"], layer: LayerDiagnosis, category: Int[np.ndarray, "*image"]
) -> Float[np.ndarray, "*image kernel"]:
    """Return how many standard deviations each kernel's evidence is above the category's mean.

    Args:
        evidence: The evidence of each image.
        layer: The diagnosis of the layer.
        category: The number of each image's category.

    Returns:
        The deviations. A standard deviation below a thousandth of the category's largest mean is replaced by
        that value.
    """
    mean = layer.correlation[category]
    floor = 1e-3 * mean.max(-1, keepdims=True) + np.finfo(float).tiny
    deviations: np.ndarray = (evidence - mean) / np.sqrt(layer.variance[category] + floor**2)
    return deviations


def _names(diagnosis: Diagnosis | None, classes: Sequence[str] | None, number: int) -> tuple[str, ...]:
    """Return the names of the categories; InputError where they do not fit the logits."""
    if classes is None and diagnosis is not None:
        classes = diagnosis.classes
    names = tuple(map(str, range(number))) if classes is None else tuple(classes)
    if len(names) != number:
        raise InputError(f"{len(names)} category names for {number} logits: one name each is expected")
    return names


def _standing_out(
    layer: str, evidence: np.ndarray, category: int, diagnosis: Diagnosis | None, names: Sequence[str]
) -> list[StandingOut]:
    """List the kernels of a layer that stand out; without a diagnosis the strongest."""
    relative = evidence / max(float(evidence.mean()), np.finfo(float).tiny)
    if diagnosis is None or diagnosis.counts[category] == 0:
        order = np.argsort(-evidence, kind="stable")[:STRONGEST].tolist()
        strongest = [kernel for kernel in order if evidence[kernel] > 0]
        return [
            StandingOut(layer, kernel, float(evidence[kernel]), None, None, float(relative[kernel]), ())
            for kernel in strongest
        ]
    diagnosed = diagnosis.layer(layer)
    deviations = unusual(evidence, diagnosed, np.array(category))
    return [
        StandingOut(
            layer,
            kernel,
            float(evidence[kernel]),
            float(diagnosed.correlation[category, kernel]),
            float(deviations[kernel]),
            float(relative[kernel]),
            owners(diagnosed, kernel, names),
        )
        for kernel in np.flatnonzero((deviations >= UNUSUAL) & (relative >= LEAST_OF_MEAN)).tolist()
    ]


def owners(layer: LayerDiagnosis, kernel: int, names: Sequence[str]) -> tuple[str, ...]:
    """Return the categories that a kernel is correlated with.

    Args:
        layer: The diagnosis of the kernel's layer.
        kernel: The number of the kernel.
        names: The names of the categories.

    Returns:
        Their names, in falling order of the kernel's mean evidence.
    """
    order = np.argsort(-layer.correlation[:, kernel], kind="stable")
    return tuple(names[category] for category in order.tolist() if layer.correlated[category, kernel])
