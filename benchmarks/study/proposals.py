"""Ask how well the masks that a review proposes fit the objects, and whether another rule would do better.

    [TORCHDOCTOR_DATA=ROOT] python -m benchmarks.study.proposals --cache FOLDER
        [--data scenes tiny_imagenet20] [--networks residual lite0] [--images 400]
        [--out benchmarks/results/proposals.jsonl]

A small residual network is trained on 1,000 images at most of `scenes`, and of ten categories of
Tiny-ImageNet; the last layer of a published EfficientNet-Lite0 is fitted to the same images. For training
images, drawn at random, each rule turns the map of evidence into a mask. Printed is the mean IoU
(intersection over union) with the object: its mask in `scenes`, its box in Tiny-ImageNet. A mask that fits
well fills a part of its box, so the IoU of the boxes around both is printed too. `whole image` and `centre`
(a square of half the image's area in the middle) look at no evidence. Training images that the network gets
wrong are what a review asks about first, so the IoU on these stands beside that on all.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from safetensors.torch import load_file, save_file
from scipy import ndimage

from benchmarks.study import json_lines
from benchmarks.study.photo_networks import KINDS
from torchdoctor import load_data
from torchdoctor.case.preparation import Case, case_of
from torchdoctor.case.settings import Settings
from torchdoctor.evidence.per_image import summed_maps
from torchdoctor.images.batches import Batch
from torchdoctor.network.frozen import frozen_eval
from torchdoctor.network.gradients import pick, score_gradients
from torchdoctor.network.prediction import predict_logits
from torchdoctor.network.taps import keep_in, run_tapped
from torchdoctor.review.proposals import evidence_maps, largest_place, layer_to_look_at, proposed_mask, scaled

LIMIT, CATEGORIES, SIDE = 100, 10, 64
EPOCHS = {"residual": 10, "lite0": 100}  # of the latter: rounds for its last layer
Map = Float[np.ndarray, "height width"]
Mask = Bool[np.ndarray, "height width"]
Rule = Callable[[Map], Mask]


def above(share: float, smoothing: float, evidence: Map) -> Mask:
    """Return the largest place above a share of the highest value, after smoothing by a share of the side."""
    smooth = ndimage.gaussian_filter(evidence, smoothing * len(evidence)) if smoothing else evidence
    return largest_place(smooth >= share * max(float(smooth.max()), 1e-6))


def otsu(smoothing: float, evidence: Map) -> Mask:
    """Return the largest place above the threshold that parts the values best in two groups (Otsu)."""
    smooth = ndimage.gaussian_filter(evidence, smoothing * len(evidence)) if smoothing else evidence
    counts, edges = np.histogram(smooth, 256)
    middles = (edges[1:] + edges[:-1]) / 2
    below = counts.cumsum()
    beyond = counts.sum() - below
    sums = (counts * middles).cumsum()
    means = sums / below.clip(1), (sums[-1] - sums) / beyond.clip(1)
    return largest_place(smooth > edges[1:][(below * beyond * (means[0] - means[1]) ** 2).argmax()])


def highest(share: float, evidence: Map) -> Mask:
    """Return the largest place among a share of the pixels, those with the highest values."""
    return largest_place(evidence > np.quantile(evidence, 1 - share))


def box_of(mask: Mask) -> Mask:
    """Return the box around a mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = np.zeros_like(mask)
    if len(rows):
        box[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    return box


def whole(evidence: Map) -> Mask:
    """Return the whole image."""
    return np.ones(evidence.shape, bool)


def centre(evidence: Map) -> Mask:
    """Return a square of half the image's area in its middle."""
    side = len(evidence)
    edge = round(side * (1 - 0.5**0.5) / 2)
    mask = np.zeros(evidence.shape, bool)
    mask[edge : side - edge, edge : side - edge] = True
    return mask


RULES: Mapping[str, Rule] = {
    "as proposed": proposed_mask,
    **{f"above {share:g}": partial(above, share, 0.0) for share in (0.2, 0.3, 0.4, 0.5, 0.6)},
    **{f"smooth, above {share:g}": partial(above, share, 0.05) for share in (0.3, 0.4, 0.5, 0.6)},
    "otsu": partial(otsu, 0.0),
    "smooth, otsu": partial(otsu, 0.05),
    **{f"highest {share:.0%}": partial(highest, share) for share in (0.15, 0.3, 0.5)},
    "whole image": whole,
    "centre": centre,
}


def trained(name: str, kind: str, cache: Path) -> Case:
    """Return a data set with a network that was trained on it, from the cache where it is there."""
    spec = name if name == "scenes" else f"parquet:{os.environ['TORCHDOCTOR_DATA']}/{name}"
    classes = None if name == "scenes" else CATEGORIES
    data = load_data(spec, limit=LIMIT, classes=classes, image_size=KINDS[kind].size or SIDE)
    torch.manual_seed(0)
    model = KINDS[kind].build(len(data.classes))
    file = cache / f"proposals-{kind}-{name}.safetensors"
    if file.is_file():
        model.load_state_dict(load_file(file))
    else:
        KINDS[kind].train(model, data.train, lambda batch: batch, EPOCHS[kind], 0)
        save_file(model.state_dict(), file)
    settings = Settings(data=spec, primary=data.primary, layers=tuple(KINDS[kind].layers), device="cpu")
    return case_of(settings, "diagnose", model.eval(), data, name=kind)


def overlap(mask: Mask, wanted: Mask) -> float:
    """Return the intersection over the union of two masks."""
    return float((mask & wanted).sum() / (mask | wanted).sum())


def grad_cam_maps(case: Case, batch: Batch, layer: str) -> Float[np.ndarray, "batch height width"]:
    """Return Grad-CAM's maps of the predicted categories."""
    maps: dict[str, torch.Tensor] = {}
    with frozen_eval(case.model) as frozen, torch.enable_grad():
        logits = run_tapped(frozen.model, batch.images, {layer: keep_in(maps, layer)})
        slopes = score_gradients([pick(logits, logits.argmax(1))], maps)[0][layer]
    weighted = (slopes.mean((2, 3), keepdim=True) * maps[layer].detach()).sum(1, keepdim=True).clamp(min=0)
    return scaled(summed_maps(weighted, (batch.images.shape[2], batch.images.shape[3])))


EVIDENCE: Mapping[str, Callable[[Case, Batch, str], np.ndarray]] = {
    "gradient": partial(evidence_maps, kind="gradient"),
    "gradient x activation": partial(evidence_maps, kind="gradient_x_activation"),
    "Grad-CAM": grad_cam_maps,
}


def measured(case: Case, images: int) -> Iterator[dict[str, object]]:
    """Yield a line for each kind of evidence and rule."""
    table = case.data.train.table
    chosen = np.sort(np.random.default_rng(0).permutation(table.ids[table.has_mask])[:images])
    batches: list[Batch] = list(case.data.train.select(chosen))
    wanted = np.concatenate([np.asarray(batch.masks)[:, 0] > 0.5 for batch in batches])
    _, labels, logits = predict_logits(case.model, batches)
    wrong = np.asarray(logits.argmax(1) != labels)
    layer = layer_to_look_at(case)
    for kind, maps_of in EVIDENCE.items():
        maps = np.concatenate([maps_of(case, batch, layer) for batch in batches])
        for name, rule in RULES.items():
            masks = [rule(one) for one in maps]
            found = np.array([overlap(mask, right) for mask, right in zip(masks, wanted, strict=True)])
            boxes = [overlap(box_of(mask), box_of(right)) for mask, right in zip(masks, wanted, strict=True)]
            yield {
                "evidence": kind, "layer": layer, "rule": name, "iou": round(float(found.mean()), 3),
                "iou of boxes": round(float(np.mean(boxes)), 3),
                "iou where wrong": round(float(found[wrong].mean()), 3) if wrong.any() else None,
                "0.5 or more": round(float(np.mean(found >= 0.5)), 3), "images": len(found),
                "wrong images": int(wrong.sum()), "object share": round(float(wanted.mean()), 3),
            }  # fmt: skip


def main() -> None:
    """Measure and print a line for each data set, network, evidence and rule."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--data", nargs="+", default=["scenes", "tiny_imagenet20"])
    parser.add_argument("--networks", nargs="+", default=["residual", "lite0"], choices=list(KINDS))
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--out", type=Path, help="JSON lines are added to this file")
    given = parser.parse_args()
    given.cache.mkdir(parents=True, exist_ok=True)
    if "tiny_imagenet20" in given.data and "TORCHDOCTOR_DATA" not in os.environ:
        parser.error("tiny_imagenet20 is read from the folder that TORCHDOCTOR_DATA names")
    for name in given.data:
        for kind in given.networks:
            for line in measured(trained(name, kind, given.cache), given.images):
                json_lines.write({"data": name, "network": kind, **line}, given.out)


if __name__ == "__main__":
    main()
