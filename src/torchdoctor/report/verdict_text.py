"""Say the outcome of a run in a headline and a few sentences."""

from __future__ import annotations

import math

import numpy as np

from torchdoctor.diagnosis.result import Diagnosis
from torchdoctor.display.counts import count_of
from torchdoctor.proof.result import Comparison
from torchdoctor.proof.split_result import SplitComparison
from torchdoctor.report.number_text import number, signed


def headline(diagnosis: Diagnosis, comparison: Comparison | None, *, treated: bool = False) -> str:
    """Say the outcome in a single sentence.

    Args:
        diagnosis: The diagnosis of the base network.
        comparison: The comparison of the treated networks with it; None if there is none yet.
        treated: Whether the network was treated.

    Returns:
        The sentence. With a comparison it is the verdict with the gain in percentage points; without, the
        accuracy of the base network.
    """
    if diagnosis.inconclusive:
        return "Inconclusive: too little to diagnose"
    if comparison is None:
        totals = diagnosis.confusion.sum()
        right = 100.0 * np.trace(diagnosis.confusion) / totals if totals else math.nan
        state = "Treated, not yet compared" if treated else "Diagnosed, not yet treated"
        return f"{state}: {number(right)} % of {totals:,} images classified correctly"
    name, split = decisive_split(comparison)
    verdict = {
        "helped": "The treatment helped",
        "harmed": "The treatment did harm",
        "no evidence": "No evidence that the treatment helped",
    }[comparison.verdict]
    gain = split.first.gain
    interval = f"95 % interval {signed(gain.low)} to {signed(gain.high)}"
    harmed = [
        f"but {other} is harmed: {signed(one.first.gain.mean)} points"
        for other, one in comparison.splits.items()
        if other != name and one.first.verdict == "harmed"
    ]
    return "; ".join([f"{verdict}: {signed(gain.mean)} points on {name} ({interval})", *harmed])


def decisive_split(comparison: Comparison) -> tuple[str, SplitComparison]:
    """Return the test split that the verdict rests on.

    Args:
        comparison: The comparison.

    Returns:
        The name and the comparison of the primary split. If the verdict is harm and that split was not
        harmed, those of the split with the greatest loss.
    """
    name = comparison.primary
    if comparison.verdict == "harmed" and comparison.splits[name].first.verdict != "harmed":
        name = min(comparison.splits, key=lambda split: comparison.splits[split].first.gain.high)
    return name, comparison.splits[name]


def explanation(diagnosis: Diagnosis, comparison: Comparison | None, *, treated: bool = False) -> list[str]:
    """Say in a few sentences what was compared and what the verdict rests on.

    Args:
        diagnosis: The diagnosis of the base network.
        comparison: The comparison of the treated networks with it; None if there is none yet.
        treated: Whether the network was treated.

    Returns:
        The sentences, or short paragraphs.
    """
    sentences = []
    if diagnosis.inconclusive:
        sentences.append(
            f"{len(diagnosis.not_diagnosed)} of {len(diagnosis.classes)} categories have no image that is "
            f"classified correctly with a confidence of at least {diagnosis.sifting.confidence:g}. With more "
            "than half of them missing, a treatment would rest on guesses. Train longer, or ask for less "
            "confidence."
        )
    if comparison is None and treated:
        return [
            *sentences,
            "The network was treated beside a control, and neither was tested yet: whether the treatment "
            "helped is not known. Compare the run to find out; the accuracy above is of the base network.",
        ]
    if comparison is None:
        return sentences or [
            "This page shows what the network relies on and where it errs. Nothing was trained."
        ]
    seeds = count_of(len(comparison.seeds), "seed")
    sentences.append(
        f"All arms began from the same weights and got the same further training of {comparison.steps:,} "
        f"steps on the same images, with {seeds}: the control with the loss alone, {comparison.arm} with its "
        "remedy. A gain is an arm minus the control, so what further training alone brings does not count."
    )
    return [*sentences, f"Decided by: {comparison.reason.rstrip('.')}."]
