"""Write what follows a diagnosis: the causes of errors, pictures, noise curves."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from torchdoctor.case.preparation import Case
from torchdoctor.data.arrangement import larger_images
from torchdoctor.diagnosis.causes import find_causes
from torchdoctor.diagnosis.causes_result import Causes, some_of
from torchdoctor.diagnosis.explanation import explain
from torchdoctor.diagnosis.result import Diagnosis
from torchdoctor.diagnosis.robustness_result import Robustness
from torchdoctor.display.overlays import overlays
from torchdoctor.evidence.per_image import clean_evidence, summed_maps
from torchdoctor.network.frozen import frozen_eval
from torchdoctor.network.prediction import device_of, dtype_of
from torchdoctor.network.taps import token_grids
from torchdoctor.report.error_cards import ExplainedError
from torchdoctor.report.pictures import MOST_CATEGORIES, MOST_LAYERS
from torchdoctor.treatment.annotated_share import USUAL, share_against_backgrounds
from torchdoctor.types import Progress
from torchdoctor.verbs.pictures import displayed_pixels, mask_of, write_figure

EXPLAINED = 6  # errors that a report explains
OVERLAID = 6  # images of the overlay picture


def causes_stage(case: Case, folder: Path, diagnosis: Diagnosis, progress: Progress) -> Causes:
    """Find the cause of each validation error and write `causes.json`.

    Args:
        case: The prepared case.
        folder: The run's folder.
        diagnosis: The diagnosis of the case's network.
        progress: Called with stage, done, of how many.

    Returns:
        The causes; without validation images there are none, and the accuracy is NaN.
    """
    causes = Causes((), 0, math.nan)
    if len(case.data.validation):
        causes = find_causes(
            case.model, case.data.validation, diagnosis, larger=larger_images(case.data.validation),
            second=case.second, seed=case.plan.seed, progress=progress, processes=case.processes,
        )  # fmt: skip
    causes.save(folder, names=_names(case))
    return causes


def _names(case: Case) -> dict[int, str]:
    """Return the names of the validation images by id."""
    table = case.data.validation.table
    return dict(zip(table.ids.tolist(), table.names, strict=True))


def with_more_annotated(case: Case, causes: Causes) -> Case:
    """Draw more images with masks into each batch where backgrounds mislead and few images have masks.

    Args:
        case: The prepared case.
        causes: The causes of the errors.

    Returns:
        The case with a share of its own and a note that says so; as it was, unless `background` is the cause
        that is given most often (`unknown` aside), and no share was asked for.
    """
    main = next((cause for cause in causes.counts if cause != "unknown"), None)
    if case.plan.annotated_per_batch != "auto" or main != "background":
        return case
    table = case.data.train.table
    most = case.plan.most_masks or len(table.labels)
    used = int(np.bincount(table.labels[table.has_mask]).clip(max=most).sum())
    share = share_against_backgrounds(used, len(table.labels))
    if not used or share <= USUAL:
        return case
    note = (
        f"backgrounds mislead the network, and {used:,} of {len(table.labels):,} training images have masks: "
        f"if an arm uses masks, {100 * share:.0f} % of each batch are drawn from these in all arms; where "
        "backgrounds fit the category the control may lose by that, so compare with the base as well"
    )
    return replace(case, plan=case.plan.but(annotated_per_batch=share), notes=(*case.notes, note))


def figures_stage(case: Case, folder: Path, diagnosis: Diagnosis) -> None:
    """Write the pictures of a diagnosis, each as PNG and SVG.

    Args:
        case: The prepared case.
        folder: Where the pictures go.
        diagnosis: The diagnosis of the case's network. Of many categories, the least accurate are drawn.
    """
    fewer = diagnosis.least_accurate(MOST_CATEGORIES)
    for layer in fewer.layers[-MOST_LAYERS:]:
        write_figure(folder, f"kernels-{layer.name}", fewer.correlation_figure(layer.name))
    write_figure(folder, "sparsity", diagnosis.sparsity_figure())
    write_figure(folder, "confusion", diagnosis.confusion_figure())
    chosen = [images[0] for images in diagnosis.sifting.high if images][:OVERLAID]
    if chosen:
        write_figure(folder, "overlays", _overlays(case, chosen))


def _overlays(case: Case, ids: list[int]) -> Any:
    """Draw the summed derivative maps of some training images at the last layers."""
    layers = case.layers[-4:]
    images, maps = [], []
    for batch in case.data.train.select(ids):
        with frozen_eval(case.model) as frozen:
            pixels = batch.images.to(device_of(case.model), dtype_of(case.model))
            kind = case.plan.evidence
            evidence = clean_evidence(frozen, pixels, batch.labels.to(pixels.device), layers, kind)[0]
            places = token_grids(case.model, pixels, layers)
        size = (batch.images.shape[2], batch.images.shape[3])
        summed = {layer: summed_maps(evidence[layer], size, places.get(layer)) for layer in layers}
        for row, label in enumerate(batch.labels.tolist()):
            images.append((case.classes[label], displayed_pixels(batch.images[row], case.data.preprocessing)))
            maps.append([(layer, summed[layer][row]) for layer in layers])
    return overlays(images, maps)


def write_robustness(folder: Path, robustness: Robustness) -> None:
    """Write `robustness.json` and a picture of the noise curves.

    Args:
        folder: The run's folder; the picture goes into its folder `figures`.
        robustness: The noise curves.
    """
    robustness.save(folder)
    write_figure(folder / "figures", "noise-curves", robustness.figure())


def explained_errors(case: Case, diagnosis: Diagnosis, causes: Causes) -> list[ExplainedError]:
    """Explain at most 6 validation errors, of every cause in turn.

    Args:
        case: The prepared case.
        diagnosis: The diagnosis of the case's network.
        causes: The causes of its validation errors.

    Returns:
        The errors with their explanations, for the report.
    """
    chosen = {error.id: error for error in some_of(causes, EXPLAINED)}
    names, explained = _names(case), []
    if not chosen:
        return []
    for batch in case.data.validation.select(list(chosen)):
        for row, image in enumerate(batch.ids.tolist()):
            explanation = explain(
                case.model, batch.images[row], diagnosis, label=chosen[image].label, image_id=image,
                mask=mask_of(batch, row), classes=case.classes, seed=case.plan.seed,
            )  # fmt: skip
            pixels = displayed_pixels(batch.images[row], case.data.preprocessing)
            explained.append(ExplainedError(names[image], chosen[image], explanation, pixels))
    return explained
