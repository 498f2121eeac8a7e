"""Print results for a person: a few tables, the verdict, and how to load the treated network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from torchdoctor.case.outcome import Outcome
from torchdoctor.diagnosis.result import Diagnosis
from torchdoctor.diagnosis.sparsity import sparsity
from torchdoctor.proof.result import Comparison, Gain


def shown(value: float | None, digits: int = 1, sign: bool = False) -> str:
    """Write a number, or a dash where there is none."""
    if value is None or math.isnan(value):
        return "-"
    return f"{value:{'+' if sign else ''}.{digits}f}"


def print_outcome(console: Console, outcome: Outcome) -> None:
    """Print what a verb found, where it lies, and how to use it."""
    if outcome.diagnosis is not None:
        print_diagnosis(console, outcome.diagnosis)
    if outcome.treatment is not None and outcome.treatment.prescription:
        print_prescription(console, outcome.treatment.prescription)
    if outcome.comparison is not None:
        print_comparison(console, outcome.comparison)
        if outcome.diagnosis is not None and outcome.diagnosis.inconclusive:
            console.print("Inconclusive: most categories could not be diagnosed.")
    handed: Any = outcome.record.get("handed_back")
    if handed:
        better = (
            "" if handed["use"] == handed["arm"] else f": {handed['arm']} did not beat both base and control"
        )
        text = f"Use the weights of {handed['use']} ({handed['reason']}{better})"
        console.print(text, highlight=False, soft_wrap=True, markup=False)
    for name in ("validation_accuracy", "weights", "model", "report", "figures", "out"):
        if name in outcome.record:
            value = outcome.record[name]
            text = f"{value:.1f} %" if isinstance(value, float) else str(value)
            console.print(f"{name.replace('_', ' ')}: {text}", highlight=False, soft_wrap=True, markup=False)
    _print_facts(console, outcome.record)
    causes: Any = outcome.record.get("causes") or {}
    if causes:
        text = ", ".join(f"{name} {number}" for name, number in causes.items())
        console.print(f"causes of validation errors: {text}", highlight=False, soft_wrap=True)
    if outcome.loading_code:
        plain = " in plain PyTorch" if "from torchdoctor" not in outcome.loading_code else ""
        console.print(f"\nLoad it{plain}:", markup=False)
        console.print(outcome.loading_code, highlight=False, soft_wrap=True, markup=False)


def _print_facts(console: Console, record: Mapping[str, Any]) -> None:
    """Print how the images were prepared, and which were left out."""
    kept = record.get("preprocessing")
    if kept:
        numbers = "; ".join(
            f"{name} {', '.join(f'{one:.3g}' for one in kept[name])}" for name in ("mean", "std")
        )
        kind = "grey" if len(kept["mean"]) == 1 else "RGB"
        console.print(f"preprocessing: {kept['image_size']} px, {kind}, {numbers}", highlight=False)
    skipped = record.get("skipped_images") or []
    for one in skipped[:3]:
        console.print(f"left out: {one}", highlight=False, soft_wrap=True, markup=False)
    if len(skipped) > 3:
        console.print(f"... and {len(skipped) - 3} more images that do not decode", highlight=False)


def print_diagnosis(console: Console, diagnosis: Diagnosis) -> None:
    """Print the diagnosed layers, the categories, and what could not be diagnosed."""
    table = Table(
        title="Diagnosis",
        title_justify="left",
        caption="correlated: kernels per category; for 90 %: share of the kernels that carries 90 % of the "
        "evidence; agreement: of single images with their category; background: share of the evidence there",
        caption_justify="left",
    )
    columns = (
        "layer", "kernels", "correlated", "for 90 %", "agreement", "delta", "background", "computed by",
    )  # fmt: skip
    for name in columns:
        left = name in ("layer", "computed by")
        table.add_column(name, justify="left" if left else "right", no_wrap=left, overflow="fold")
    for layer in diagnosis.layers:
        counts = layer.correlated.sum(1)[diagnosis.counts > 0]
        known = layer.background_share
        table.add_row(
            layer.name,
            str(layer.correlation.shape[1]),
            f"{counts.min()} to {counts.max()}" if len(counts) else "-",
            share_of(sparsity(layer.correlation)),
            shown(_mean(layer.agreement[len(layer.agreement) // 2]), 2),
            f"{layer.delta:.3g}",
            share_of(known),
            layer.path,
        )
    console.print(table)
    for layer in diagnosis.layers:
        for flag in layer.flags:
            console.print(f"{layer.name}: {flag}", highlight=False, markup=False, soft_wrap=True)
    missing = diagnosis.not_diagnosed
    if missing:
        most = diagnosis.sifting.images_per_category
        names = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        console.print(f"not diagnosed: 0 of {most}: {names}", markup=False, soft_wrap=True)
    print_confusions(console, diagnosis)


def _mean(values: np.ndarray) -> float:
    """Return the mean of what is not NaN; NaN without any."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan


def share_of(values: np.ndarray) -> str:
    """Return the mean of shares in percent, or a dash."""
    mean = _mean(values)
    return "-" if math.isnan(mean) else f"{100 * mean:.0f} %"


def print_confusions(console: Console, diagnosis: Diagnosis, most: int = 5) -> None:
    """Print the worst categories and what they are taken for, on the training images."""
    off = diagnosis.confusion.copy()
    for category in range(len(off)):
        off[category, category] = 0
    worst = sorted(range(len(off)), key=lambda one: (_orderly(diagnosis.accuracy[one]), one))[:most]
    table = Table(title="Weakest categories (training images)", title_justify="left")
    for name in ("category", "accuracy", "most often taken for"):
        table.add_column(name, justify="right" if name == "accuracy" else "left")
    for one in worst:
        other = int(off[one].argmax())
        taken = f"{diagnosis.classes[other]} ({off[one, other]})" if off[one, other] else "-"
        table.add_row(diagnosis.classes[one], shown(float(diagnosis.accuracy[one])), taken)
    console.print(table, markup=False)


def _orderly(value: Any) -> float:
    """Put NaN last."""
    return math.inf if math.isnan(value) else float(value)


def print_prescription(console: Console, prescription: Sequence[Mapping[str, Any]]) -> None:
    """Print the constraints with their weights and what they reach."""
    table = Table(title="Prescription", title_justify="left")
    for name in ("constraint", "layers", "evidence", "scale", "weight", "parameters reached"):
        table.add_column(name)
    for one in prescription:
        reached = f"{one['parameters_reached']} of {one['parameters_trainable']}"
        table.add_row(
            str(one["constraint"]),
            "\n".join(one["layers"]),
            str(one["evidence"]),
            str(one["scale"]),
            f"{one['weight']:.3g} ({one['weight_chosen']})",
            reached,
        )
    console.print(table)


def print_comparison(console: Console, comparison: Comparison) -> None:
    """Print the comparison table, one line per split and arm, and the verdict."""
    many = any(len(split.arms) > 1 for split in comparison.splits.values())
    title = f"Comparison: accuracy in percent, mean of {len(comparison.seeds)} seed(s)"
    table = Table(title=title, title_justify="left")
    p_value = "p (Holm)" if many else "p"
    columns = ("split", "arm", "accuracy", "gain", "95 % interval", p_value, "worst category", "ECE")
    for name in (*columns, "verdict"):
        table.add_column(name, justify="left" if name in ("split", "arm", "verdict") else "right")
    for name, split in comparison.splits.items():
        for place, (arm, seen) in enumerate(split.accuracy.items()):
            found = split.arms.get(arm)
            table.add_row(
                (f"{name} *" if name == comparison.primary else name) if place == 0 else "",
                arm,
                shown(sum(seen) / len(seen)),
                *(_against_control(found.gain) if found else ("", "", "")),
                shown(split.worst_category[arm]),
                shown(split.calibration_error.get(arm, math.nan)),
                found.verdict if found else "",
                end_section=place == len(split.accuracy) - 1,
            )
    console.print(table, markup=False)
    for name, split in comparison.splits.items():
        shares = {arm: one for arm, one in split.background_share.items() if one is not None}
        if "base" in shares:
            text = ", ".join(f"{arm} {100 * value:.0f} %" for arm, value in shares.items())
            console.print(f"evidence on the background, {name}: {text}", highlight=False, markup=False)
        fixed, lost = len(split.first.repaired), len(split.first.broken)
        text = f"{name}, {comparison.arm}: {fixed} images repaired, {lost} newly broken"
        console.print(text, highlight=False, markup=False)
    verdict = f"Verdict on {comparison.arm}: {comparison.verdict} ({comparison.reason})"
    console.print(verdict, highlight=False, markup=False)


def _against_control(gain: Gain) -> tuple[str, str, str]:
    """Return a gain, its interval and its p-value as text."""
    p_value = gain.p_value if math.isnan(gain.p_adjusted) else gain.p_adjusted
    interval = f"{shown(gain.low, sign=True)} to {shown(gain.high, sign=True)}"
    return shown(gain.mean, sign=True), interval, f"{p_value:.2g}"


def print_predictions(console: Console, found: Sequence[Mapping[str, Any]]) -> None:
    """Print one line per image."""
    table = Table()
    for name in ("image", "category", "confidence", "runner-up", "confidence"):
        table.add_column(name, justify="right" if name == "confidence" else "left")
    for one in found:
        table.add_row(
            one["image"],
            one["category"],
            shown(one["confidence"], 3),
            one["runner_up"] or "-",
            shown(one["runner_up_confidence"], 3),
        )
    console.print(table, markup=False)


def print_plan(console: Console, plan: Mapping[str, Any], indent: str = "") -> None:
    """Print what would run."""
    for name, value in plan.items():
        if isinstance(value, Mapping):
            console.print(f"{indent}{name}:", highlight=False)
            print_plan(console, value, indent + "  ")
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
            console.print(f"{indent}{name}: {text}", highlight=False, markup=False, soft_wrap=True)
