"""Collect the images behind the errors, with their summed derivative maps before and after."""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from torchdoctor.case.network_trial import example_of
from torchdoctor.case.outcome import arm_of
from torchdoctor.case.preparation import Case
from torchdoctor.data.loader import Loader
from torchdoctor.evidence.per_image import background_shares_of, clean_evidence, finest, summed_maps
from torchdoctor.images.batches import Batch
from torchdoctor.network.copying import copy_of
from torchdoctor.network.frozen import frozen_eval
from torchdoctor.network.prediction import device_of, dtype_of, predict_logits
from torchdoctor.network.state import load_state
from torchdoctor.network.taps import grids
from torchdoctor.proof.result import Comparison
from torchdoctor.report.example_cards import Example, Kind
from torchdoctor.treatment.result import Treatment
from torchdoctor.verbs.pictures import displayed_pixels, mask_of

MOST_IMAGES = {"repaired": 4, "broken": 2, "still wrong": 2}


def collect_examples(
    case: Case, treatment: Treatment | None, comparison: Comparison | None
) -> tuple[Example, ...]:
    """Return images that the treatment repaired, broke, or left wrong.

    Without a treatment, return errors of the base network.

    "Before" is the base network, "after" the treated network of the first seed.

    Args:
        case: The prepared case.
        treatment: The trained arms; None where nothing was treated.
        comparison: The comparison, which names the test split and the arm; None where nothing was compared.

    Returns:
        At most 4 repaired, 2 broken and 2 still wrong images, with their maps.
    """
    split = comparison.primary if comparison is not None else case.data.primary
    split = (
        split if split in case.data.tests else case.data.primary
    )  # swapped images are drawn with their own backgrounds
    tests = case.data.tests[split]
    treated = copy_of(case.model)
    if treatment is not None:
        load_state(treated, treatment.arm(arm_of(case, comparison), treatment.seeds()[0]).state)
    ids, labels, before = predict_logits(case.model, tests)
    _, _, after = predict_logits(treated, tests)
    kinds = _kinds(ids, labels, before.argmax(1), after.argmax(1))
    if not kinds:
        return ()
    layer = _drawn_layer(case)
    return tuple(
        example
        for batch in tests.select(sorted(kinds))
        for example in _examples(case, split, tests, batch, treated, layer, kinds)
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
        for _, row in sorted(ranked)[: MOST_IMAGES[kind]]:
            chosen[int(ids[row])] = kind
    return chosen


def _drawn_layer(case: Case) -> str:
    """Return the deepest of the case's layers whose map is fine enough to look at."""
    return finest(case.layers, grids(case.model, example_of(case.model, case.data), case.layers))


def _examples(
    case: Case,
    split: str,
    tests: Loader,
    batch: Batch,
    treated: nn.Module,
    layer: str,
    kinds: dict[int, Kind],
) -> list[Example]:
    """Build the examples of a batch."""
    size = (batch.images.shape[2], batch.images.shape[3])
    views = []
    for model in (case.model, treated):
        _, _, logits = predict_logits(model, [batch])
        evidence = case.plan.evidence
        with frozen_eval(model) as frozen:
            inputs = batch.images.to(device_of(model), dtype_of(model))
            maps = clean_evidence(frozen, inputs, None, [layer], evidence)[0][layer]
            grid = grids(model, inputs, [layer])[layer]
        shares = background_shares_of(maps, batch, grid)
        confidence, category = logits.double().softmax(1).max(1)
        views.append((category.tolist(), confidence.tolist(), summed_maps(maps, size, grid), shares))
    names = dict(zip(tests.table.ids.tolist(), tests.table.names, strict=True))
    (before, sure_before, map_before, share_before), (after, sure_after, map_after, share_after) = views
    return [
        Example(
            split=split,
            name=names[image],
            image=displayed_pixels(batch.images[row], case.data.preprocessing),
            mask=_outline(mask_of(batch, row)),
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


def _outline(mask: Tensor | None) -> np.ndarray | None:
    """Return a mask as booleans, True on the object."""
    return None if mask is None else mask[0].cpu().numpy() > 0.5


def _or_none(value: float) -> float | None:
    """Return None for NaN."""
    return None if np.isnan(value) else float(value)
