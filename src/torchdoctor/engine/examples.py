"""Collect the images behind the errors, with their summed derivative maps before and after."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from torchdoctor.data import Loader
from torchdoctor.engine.preparation import Case, example_of
from torchdoctor.evidence import background_shares_of, clean_evidence
from torchdoctor.gradients import map_shapes, measuring
from torchdoctor.report import Example, Kind
from torchdoctor.sifting import device_of, dtype_of, predict_logits
from torchdoctor.types import Batch, Comparison, Treatment

SHOWN = {"repaired": 4, "broken": 2, "still wrong": 2}
LEAST_MAP_SIDE = 7  # coarser maps say little about where the evidence lies


def collect_examples(
    case: Case, treatment: Treatment | None, comparison: Comparison | None
) -> tuple[Example, ...]:
    """Return images that treatment repaired, broke, or left wrong; without a treatment, the base's errors.

    Before is the base, after the treated network of the first seed; the kinds are relative to the base.
    """
    split = comparison.primary if comparison is not None else case.data.primary
    tests = case.data.tests[split]
    treated = copy.deepcopy(case.model)
    if treatment is not None:
        treated.load_state_dict(dict(treatment.arm("treated", treatment.seeds()[0]).state))
    ids, labels, before = predict_logits(case.model, tests)
    _, _, after = predict_logits(treated, tests)
    kinds = _kinds(ids, labels, before.argmax(1), after.argmax(1))
    if not kinds:
        return ()
    layer = _shown_layer(case)
    return tuple(
        one
        for batch in tests.select(sorted(kinds))
        for one in _examples(case, split, tests, batch, treated, layer, kinds)
    )


def _kinds(ids: Tensor, labels: Tensor, before: Tensor, after: Tensor) -> dict[int, Kind]:
    """Choose a few images of each kind, spread over the categories."""
    groups: dict[Kind, Tensor] = {
        "repaired": (before != labels) & (after == labels),
        "broken": (before == labels) & (after != labels),
        "still wrong": (before != labels) & (after != labels),
    }
    chosen: dict[int, Kind] = {}
    for kind, member in groups.items():
        seen: dict[int, int] = {}
        ranked = []
        for row in member.nonzero()[:, 0].tolist():
            label = int(labels[row])
            ranked.append((seen.get(label, 0), row))
            seen[label] = seen.get(label, 0) + 1
        for _, row in sorted(ranked)[: SHOWN[kind]]:
            chosen[int(ids[row])] = kind
    return chosen


def _shown_layer(case: Case) -> str:
    """Return the deepest of the case's layers whose map is fine enough to look at."""
    shapes = map_shapes(case.model, example_of(case.model, case.data), case.layers)
    fine = [name for name in case.layers if min(shapes[name][1:]) >= LEAST_MAP_SIDE]
    return fine[-1] if fine else case.layers[0]


def _examples(
    case: Case,
    split: str,
    tests: Loader,
    batch: Batch,
    treated: nn.Module,
    layer: str,
    kinds: dict[int, Kind],
) -> list[Example]:
    """Build the examples of one batch."""
    size = (batch.images.shape[2], batch.images.shape[3])
    views = []
    for model in (case.model, treated):
        _, _, logits = predict_logits(model, [batch])
        evidence = case.settings.evidence or "gradient"
        with measuring(model):
            inputs = batch.images.to(device_of(model), dtype_of(model))
            maps = clean_evidence(model, inputs, None, [layer], evidence)[0][layer]
        shares = background_shares_of(maps, batch)
        confidence, category = logits.double().softmax(1).max(1)
        views.append((category.tolist(), confidence.tolist(), _on_image(maps, size), shares))
    pixels = _pixels(case, batch)
    masks = _masks(batch)
    names = dict(zip(tests.table.ids.tolist(), tests.table.names, strict=True))
    (before, sure_before, map_before, share_before), (after, sure_after, map_after, share_after) = views
    return [
        Example(
            split=split,
            name=names[image],
            image=pixels[row],
            mask=masks[row],
            label=case.classes[int(batch.labels[row])],
            before=case.classes[before[row]],
            before_confidence=sure_before[row],
            after=case.classes[after[row]],
            after_confidence=sure_after[row],
            map_before=map_before[row],
            map_after=map_after[row],
            background_before=_or_none(share_before[row]),
            background_after=_or_none(share_after[row]),
            kind=kinds[image],
        )
        for row, image in enumerate(batch.ids.tolist())
    ]


def _on_image(maps: Tensor, size: tuple[int, int]) -> np.ndarray:
    """Sum evidence over the kernels and stretch it onto the image: [batch, height, width]."""
    summed = maps.detach().float().sum(1, keepdim=True)
    wide = torch.nn.functional.interpolate(summed, size=size, mode="bilinear", align_corners=False)
    return wide[:, 0].cpu().numpy()


def _pixels(case: Case, batch: Batch) -> np.ndarray:
    """Undo the normalisation: [batch, height, width, 3] in 0..1."""
    preprocessing = case.data.preprocessing
    mean = torch.tensor(preprocessing.mean).view(1, -1, 1, 1)
    std = torch.tensor(preprocessing.std).view(1, -1, 1, 1)
    shown = (batch.images.cpu() * std + mean).clamp(0, 1)
    return shown.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()


def _masks(batch: Batch) -> Sequence[np.ndarray | None]:
    """Return the object of each image as booleans, None where there is no mask."""
    if batch.masks is None:
        return [None] * len(batch.labels)
    shown = batch.annotated if batch.annotated is not None else torch.ones(len(batch.labels)).bool()
    return [
        mask[0].numpy() > 0.5 if known else None
        for mask, known in zip(batch.masks.cpu(), shown.tolist(), strict=True)
    ]


def _or_none(value: float) -> float | None:
    """Return None for NaN."""
    return None if np.isnan(value) else float(value)
