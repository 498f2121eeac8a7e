"""Explain one prediction: which kernels stand out, and whether silencing them changes the outcome."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from torchdoctor.diagnosis.explanation_result import CausalCheck, Explanation, StandingOut
from torchdoctor.diagnosis.result import Diagnosis, LayerDiagnosis
from torchdoctor.diagnosis.silencing import random_sets, silenced_logits
from torchdoctor.diagnosis.statistics import cosine
from torchdoctor.evidence.measurement import measure
from torchdoctor.evidence.per_image import background_shares_of, clean_evidence, finest, summed_maps
from torchdoctor.images.batches import Batch
from torchdoctor.network.frozen import frozen_eval
from torchdoctor.network.layers import chosen_layers
from torchdoctor.network.outputs import as_logits, unwrap
from torchdoctor.network.prediction import device_of, dtype_of
from torchdoctor.randomness import key
from torchdoctor.types import Evidence, InputError

UNUSUAL = 3.0  # standard deviations of the category's images
LEAST_OF_MEAN = 0.5  # of the evidence of the layer's kernels: less does not matter, however unusual
RANDOM_SETS = 19  # a named set that beats them all does so by chance once in twenty


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
    """Explain what a network says about one image, as it takes it (normalised); nothing is changed.

    Kernels stand out where their evidence for the prediction lies 3 standard deviations above the mean
    of the predicted category in `diagnosis`, and is at least half the mean of their layer; the `most`
    unusual are named. Without a diagnosis those with the most evidence in their layer are named, and
    nothing can be said about what is usual.
    `mask` is 1 on the object. `image_id` keys the noise. InputError for an unknown label or layer.
    """
    model = unwrap(model)
    batch = Batch(
        image[None],
        torch.zeros(1, dtype=torch.int64),
        torch.tensor([image_id]),
        None if mask is None else mask[None],
    )
    pixels = batch.images.to(device_of(model), dtype_of(model))
    with frozen_eval(model), torch.no_grad():
        logits = as_logits(model(pixels))[0].double().cpu()
    names = _names(diagnosis, classes, len(logits))
    if label is not None and label not in names:
        raise InputError(
            f"label {label!r} is none of the {len(names)} categories: {', '.join(names[:8])}, ..."
        )
    best = [int(one) for one in logits.topk(min(2, len(logits))).indices]
    sure = logits.softmax(0)
    layers = _layers_of(model, pixels, diagnosis, layers)
    batch = Batch(batch.images, torch.tensor(best[:1]), batch.ids, batch.masks)
    rows = evidence_rows(model, batch, diagnosis, layers)
    found = [
        one for layer in layers for one in _standing_out(layer, rows[layer][0], best[0], diagnosis, names)
    ]
    kernels = tuple(sorted(found, key=lambda one: -one.prominence)[:most])
    shown, summed, share = _on_the_image(model, batch, diagnosis, layers)
    known = None if diagnosis is None else diagnosis.layer(shown).background_share[best[0]]
    return Explanation(
        label=label,
        prediction=names[best[0]],
        runner_up=names[best[-1]],
        confidence=float(sure[best[0]]),
        runner_up_confidence=float(sure[best[-1]]),
        label_confidence=None if label is None else float(sure[names.index(label)]),
        kernels=kernels,
        check=_check(model, pixels, rows, kernels, diagnosis, names, seed) if kernels else None,
        alike={layer: _alike(rows[layer][0], best[0], diagnosis.layer(layer)) for layer in layers}
        if diagnosis is not None and diagnosis.counts[best[0]] > 0
        else {},
        layer=shown,
        summed_map=summed,
        background_share=None if math.isnan(share) else share,
        usual_background_share=None if known is None or math.isnan(known) else float(known),
        compared=diagnosis is not None,
    )


def evidence_rows(
    model: nn.Module, batch: Batch, diagnosis: Diagnosis | None, layers: Sequence[str]
) -> dict[str, Float[np.ndarray, "image kernel"]]:
    """Return each image's evidence for its label, by layer, measured as the diagnosis was.

    Rows are in the order of the batch. Without a diagnosis: gradient x activation, no noise.
    """
    kind: Evidence = "gradient_x_activation" if diagnosis is None else diagnosis.evidence
    deltas = {one: 0.0 if diagnosis is None else diagnosis.layer(one).delta for one in layers}
    rows, _ = measure(
        model, [batch], batch.ids.tolist(), deltas, evidence=kind,
        draws=0 if diagnosis is None else diagnosis.draws, seed=0 if diagnosis is None else diagnosis.seed,
    )  # fmt: skip
    back = np.argsort(np.argsort(batch.ids.cpu().numpy(), kind="stable"), kind="stable")
    return {layer: rows[layer].evidence[back] for layer in layers}


def unusual(
    evidence: Float[np.ndarray, "*image kernel"], layer: LayerDiagnosis, category: Int[np.ndarray, "*image"]
) -> Float[np.ndarray, "*image kernel"]:
    """Return how many standard deviations each kernel's evidence lies above the category's mean.

    Spreads below a thousandth of the category's largest mean count as that much.
    """
    mean = layer.correlation[category]
    floor = 1e-3 * mean.max(-1, keepdims=True) + np.finfo(float).tiny
    found: np.ndarray = (evidence - mean) / np.sqrt(layer.variance[category] + floor**2)
    return found


def _names(diagnosis: Diagnosis | None, classes: Sequence[str] | None, number: int) -> tuple[str, ...]:
    """Return the names of the categories; InputError where they do not fit the logits."""
    given = classes if classes is not None else None if diagnosis is None else diagnosis.classes
    names = tuple(map(str, range(number))) if given is None else tuple(given)
    if len(names) != number:
        raise InputError(f"{len(names)} category names for {number} logits: one name each is expected")
    return names


def _layers_of(
    model: nn.Module, pixels: Tensor, diagnosis: Diagnosis | None, layers: Sequence[str] | None
) -> tuple[str, ...]:
    """Return the layers to look at: those that were diagnosed, or some of them."""
    if diagnosis is None:
        return chosen_layers(model, pixels, layers)
    known = tuple(one.name for one in diagnosis.layers)
    wanted = known if layers is None else chosen_layers(model, pixels, layers)
    strange = [one for one in wanted if one not in known]
    if strange:
        raise InputError(f"layer {strange[0]!r} was not diagnosed; diagnosed: {', '.join(known)}")
    return wanted


def _standing_out(
    layer: str, evidence: np.ndarray, category: int, diagnosis: Diagnosis | None, names: Sequence[str]
) -> list[StandingOut]:
    """List the kernels of one layer that stand out; without a diagnosis the strongest."""
    relative = evidence / max(float(evidence.mean()), np.finfo(float).tiny)
    if diagnosis is None or diagnosis.counts[category] == 0:
        strongest = [k for k in np.argsort(-evidence, kind="stable")[:8].tolist() if evidence[k] > 0]
        return [
            StandingOut(layer, k, float(evidence[k]), None, None, float(relative[k]), ()) for k in strongest
        ]
    found = diagnosis.layer(layer)
    deviations = unusual(evidence, found, np.array(category))
    return [
        StandingOut(
            layer,
            kernel,
            float(evidence[kernel]),
            float(found.correlation[category, kernel]),
            float(deviations[kernel]),
            float(relative[kernel]),
            owners(found, kernel, names),
        )
        for kernel in np.flatnonzero((deviations >= UNUSUAL) & (relative >= LEAST_OF_MEAN)).tolist()
    ]


def owners(layer: LayerDiagnosis, kernel: int, names: Sequence[str]) -> tuple[str, ...]:
    """Return the categories that a kernel is correlated with, the strongest first."""
    order = np.argsort(-layer.correlation[:, kernel], kind="stable")
    return tuple(names[one] for one in order.tolist() if layer.correlated[one, kernel])


def _alike(evidence: np.ndarray, category: int, layer: LayerDiagnosis) -> tuple[float, float, float]:
    """Return how alike the evidence is to the category's mean, and the range usual for its images."""
    usual = layer.agreement[:, category]
    return float(cosine(evidence, layer.correlation[category])), float(usual[0]), float(usual[-1])


def _on_the_image(
    model: nn.Module, batch: Batch, diagnosis: Diagnosis | None, layers: Sequence[str]
) -> tuple[str, Float[np.ndarray, "height width"], float]:
    """Return the deepest layer fine enough to look at, its summed map on the image, its background share."""
    kind: Evidence = "gradient_x_activation" if diagnosis is None else diagnosis.evidence
    device = device_of(model)
    with frozen_eval(model) as frozen:
        pixels, targets = batch.images.to(device, dtype_of(model)), batch.labels.to(device)
        maps = clean_evidence(frozen, pixels, targets, layers, kind)[0]
    shown = finest(layers, {one: (maps[one].shape[2], maps[one].shape[3]) for one in layers})
    size = (batch.images.shape[2], batch.images.shape[3])
    return shown, summed_maps(maps[shown], size)[0], float(background_shares_of(maps[shown], batch)[0])


def _check(
    model: nn.Module,
    pixels: Tensor,
    rows: Mapping[str, Float[np.ndarray, "image kernel"]],
    kernels: Sequence[StandingOut],
    diagnosis: Diagnosis | None,
    names: Sequence[str],
    seed: int,
) -> CausalCheck:
    """Silence the kernels, and random sets of others with as good a chance, and predict again."""
    chosen: dict[str, Tensor] = {}
    levels: dict[str, Tensor] = {}
    for layer in dict.fromkeys(one.layer for one in kernels):
        evidence = torch.from_numpy(rows[layer][0].copy())
        named = torch.tensor([one.kernel for one in kernels if one.layer == layer])
        mine = torch.zeros(len(evidence), dtype=torch.bool).index_fill_(0, named, value=True)
        others = random_sets(
            evidence.where(~mine, 0.0), len(named), RANDOM_SETS, key("silence", seed, layer) % (1 << 63)
        )
        none = torch.zeros(1, len(evidence), dtype=torch.bool)
        chosen[layer] = torch.cat([none, mine[None], others])
        level = np.zeros(len(evidence)) if diagnosis is None else diagnosis.layer(layer).level
        levels[layer] = torch.from_numpy(level)
    logits = silenced_logits(model, pixels.expand(2 + RANDOM_SETS, -1, -1, -1), chosen, levels).double().cpu()
    first = int(logits[0].argmax())
    drops = lead(logits, first)[0] - lead(logits, first)
    after = int(logits[1].argmax())
    return CausalCheck(
        prediction=names[after],
        confidence=float(logits[1].softmax(0)[after]),
        drop=float(drops[1]),
        random_drop=float(drops[2:].max()),
        agrees=after != first and bool(drops[1] > drops[2:].max()),
    )


def lead(logits: Float[Tensor, "batch category"], category: int) -> Float[Tensor, " batch"]:
    """Return how far one category's logit is above the highest other one."""
    others = logits.clone()
    others[:, category] = -math.inf
    return logits[:, category] - others.max(1).values
