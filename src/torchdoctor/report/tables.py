"""Prepare the key numbers and the tables of categories and confusions of a page."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from torchdoctor.diagnosis.result import Diagnosis
from torchdoctor.proof.result import Comparison
from torchdoctor.report.number_text import mean_of_known, number, share, signed
from torchdoctor.report.verdict_text import decisive_split


def key_numbers(diagnosis: Diagnosis, comparison: Comparison | None) -> list[tuple[str, str, str]]:
    """Return the numbers at the top of the page.

    Args:
        diagnosis: The diagnosis of the base network.
        comparison: The comparison of the treated networks with it; None if there is none yet.

    Returns:
        For each number its name, its value and a remark.
    """
    layers, all_categories = diagnosis.layers, len(diagnosis.classes)
    diagnosed = f"{all_categories - len(diagnosis.not_diagnosed)} of {all_categories}"
    places = "in one layer" if len(layers) == 1 else f"in {len(layers)} layers"
    if comparison is None:
        kernels = sum(int(layer.correlated.any(axis=0).sum()) for layer in layers)
        total = sum(layer.correlated.shape[1] for layer in layers)
        background = np.array([layer.background_share for layer in layers], dtype=float)
        return [
            ("categories diagnosed", diagnosed, f"from {diagnosis.counts.sum():,} images"),
            ("correlated kernels", f"{kernels:,} of {total:,}", places),
            ("background evidence", share(mean_of_known(background)), "mean of categories and layers"),
        ]
    name, split = decisive_split(comparison)
    arms, first = ("base", "control", comparison.arm), split.first
    base, control, treated = (
        number(mean_of_known(np.array(split.accuracy.get(arm, ()), dtype=float))) for arm in arms
    )
    share_base, share_control, share_treated = (share(split.background_share.get(arm)) for arm in arms)
    known = not math.isnan(split.between_controls)
    by_seed = f"; by the seed alone {split.between_controls:,.0f} each way" if known else ""
    return [
        ("gain over control", signed(first.gain.mean), f"points on {name}"),
        ("accuracy, %", f"{base} → {treated}", f"control {control}"),
        ("background evidence", f"{share_base} → {share_treated}", f"control {share_control}"),
        (
            "images repaired",
            f"{len(first.repaired):,}",
            f"{len(first.broken):,} broken, of {split.images:,}{by_seed}",
        ),
        ("categories diagnosed", diagnosed, places),
    ]


def category_rows(diagnosis: Diagnosis) -> list[dict[str, Any]]:
    """Describe each category for the table of categories.

    Args:
        diagnosis: The diagnosis.

    Returns:
        For each category, the least accurate first: `name`; `accuracy` in percent; `images`, the number of
        its images; `behind`, the number of images behind its diagnosis; `background`, the mean share (0..1)
        of evidence on the background over the layers; `rival`, the category it is most often mistaken for.
    """
    layer_shares = [layer.background_share for layer in diagnosis.layers]
    shares = np.stack(layer_shares) if layer_shares else None
    rows = []
    for category, name in enumerate(diagnosis.classes):
        mistakes = diagnosis.confusion[category].copy()
        mistakes[category] = 0
        rival = int(mistakes.argmax())
        rows.append(
            {
                "name": name,
                "accuracy": float(diagnosis.accuracy[category]),
                "images": int(diagnosis.confusion[category].sum()),
                "behind": int(diagnosis.counts[category]),
                "background": math.nan if shares is None else mean_of_known(shares[:, category]),
                "rival": diagnosis.classes[rival] if mistakes[rival] else "-",
            }
        )
    return sorted(rows, key=lambda row: math.inf if math.isnan(row["accuracy"]) else row["accuracy"])


def confusion_rows(diagnosis: Diagnosis, most: int = 8) -> list[tuple[int, str, str, float]]:
    """List the most frequent confusions of two categories.

    Args:
        diagnosis: The diagnosis.
        most: How many confusions to list at most.

    Returns:
        For each confusion, the most frequent first: the number of images, their category, the predicted
        category, and the share (0..1) of the category's images.
    """
    wrong = diagnosis.confusion - np.diag(np.diag(diagnosis.confusion))
    order = np.argsort(-wrong, axis=None, kind="stable")[:most].tolist()
    cells = [divmod(cell, len(diagnosis.classes)) for cell in order]
    return [
        (
            int(wrong[category, predicted]),
            diagnosis.classes[category],
            diagnosis.classes[predicted],
            wrong[category, predicted] / diagnosis.confusion[category].sum(),
        )
        for category, predicted in cells
        if wrong[category, predicted] > 0
    ]
