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
from torchdoctor.display.counts import count_of
from torchdoctor.proof.result import Comparison
from torchdoctor.proof.split_result import Gain
from torchdoctor.treatment.next_steps import NextStep, sentences


def number_text(value: float | None, digits: int = 1, sign: bool = False) -> str:
    """Write a number, or a dash where there is none.

    Args:
        value: The number; None or NaN where it is not known.
        digits: How many digits stand behind the decimal point.
        sign: Whether positive numbers get a plus.

    Returns:
        The text, such as "93.1", "+0.4" or "-".
    """
    if value is None or math.isnan(value):
        return "-"
    return f"{value:{'+' if sign else ''}.{digits}f}"


def print_outcome(console: Console, outcome: Outcome) -> None:
    """Print what a command measured, where it was written, and how to load the network.

    Args:
        console: Where to print.
        outcome: What the command ended with.
    """
    if outcome.diagnosis is not None:
        print_diagnosis(console, outcome.diagnosis)
    if outcome.treatment is not None and outcome.treatment.prescription:
        print_prescription(console, outcome.treatment.prescription)
    if outcome.comparison is not None:
        print_comparison(console, outcome.comparison)
        if outcome.diagnosis is not None and outcome.diagnosis.inconclusive:
            console.print("Inconclusive: most categories could not be diagnosed.")
    _print_handed_back(console, outcome.record.get("handed_back"))
    for name in ("validation_accuracy", "weights", "model", "report", "figures", "out"):
        if name in outcome.record:
            value = outcome.record[name]
            text = f"{value:.1f} %" if isinstance(value, float) else str(value)
            console.print(f"{name.replace('_', ' ')}: {text}", highlight=False, soft_wrap=True, markup=False)
    _print_preparation(console, outcome.record)
    others: Any = outcome.record.get("second_opinion") or {}
    for name, accuracy in others.items():
        text = f"second opinion: {name}, {accuracy:.1f} % of the validation images right"
        console.print(text, highlight=False, soft_wrap=True, markup=False)
    causes: Any = outcome.record.get("causes") or {}
    if causes:
        text = ", ".join(f"{name} {number}" for name, number in causes.items())
        console.print(f"causes of validation errors: {text}", highlight=False, soft_wrap=True)
    _print_suspects(console, outcome.record.get("suspects"))
    _print_steps(console, outcome.record.get("next_steps"))
    if outcome.loading_code:
        plain = " in plain PyTorch" if "from torchdoctor" not in outcome.loading_code else ""
        console.print(f"\nLoad it{plain}:", markup=False)
        console.print(outcome.loading_code, highlight=False, soft_wrap=True, markup=False)


def _print_steps(console: Console, steps: Any) -> None:
    """Print what to do next."""
    if steps:
        console.print("\nWhat to do next:", markup=False)
        for line in sentences([NextStep(**step) for step in steps]):
            console.print(line, highlight=False, soft_wrap=True, markup=False)


def _print_suspects(console: Console, suspects: Any) -> None:
    """Print how many training labels look wrong, how many of them are, and where they are listed."""
    if suspects and suspects["listed"]:
        text = (
            f"labels to look at: {suspects['listed']} of {suspects['images']:,} training images, of which "
            f"{100 * suspects['expected']:.0f} % are expected to be wrong: {suspects['list']}"
        )
        console.print(text, highlight=False, soft_wrap=True, markup=False)


def _print_handed_back(console: Console, choice: Any) -> None:
    """Print whose weights a search recommends, and why."""
    if not choice:
        return
    use, arm = choice["use"], choice["arm"]
    hint = "" if use == arm else f": {arm} did not beat both base and control by more than a standard error"
    mean = ", the mean over its seeds" if (choice.get("soup") or {}).get("used") else ""
    text = f"Use the weights of {use}{mean} ({choice['reason']}{hint})"
    console.print(text, highlight=False, soft_wrap=True, markup=False)


def _print_preparation(console: Console, record: Mapping[str, Any]) -> None:
    """Print how the images were prepared, and remarks that were not said before the run began."""
    preprocessing = record.get("preprocessing")
    if preprocessing:
        numbers = "; ".join(
            f"{name} {', '.join(f'{value:.3g}' for value in preprocessing[name])}" for name in ("mean", "std")
        )
        kind = "grey" if len(preprocessing["mean"]) == 1 else "RGB"
        console.print(f"preprocessing: {preprocessing['image_size']} px, {kind}, {numbers}", highlight=False)
    for remark in record.get("remarks") or []:
        console.print(remark, highlight=False, soft_wrap=True, markup=False)


def print_diagnosis(console: Console, diagnosis: Diagnosis) -> None:
    """Print the diagnosed layers, the weakest categories, and those that could not be diagnosed.

    Args:
        console: Where to print.
        diagnosis: The diagnosis.
    """
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
        table.add_row(
            layer.name,
            str(layer.correlation.shape[1]),
            f"{counts.min()} to {counts.max()}" if len(counts) else "-",
            share_of(sparsity(layer.correlation)),
            number_text(_mean(layer.agreement[len(layer.agreement) // 2]), 2),
            f"{layer.delta:.3g}",
            share_of(layer.background_share),
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
    """Return the mean of some shares as text.

    Args:
        values: Shares in 0..1, NaN where a share is not known.

    Returns:
        The mean in percent, such as "12 %", or "-" where no share is known.
    """
    mean = _mean(values)
    return "-" if math.isnan(mean) else f"{100 * mean:.0f} %"


def print_confusions(console: Console, diagnosis: Diagnosis, most: int = 5) -> None:
    """Print the least accurate categories and what they are taken for, on the training images.

    Args:
        console: Where to print.
        diagnosis: The diagnosis.
        most: How many categories are printed at most.
    """
    errors = diagnosis.confusion.copy()
    np.fill_diagonal(errors, 0)
    worst = np.argsort(diagnosis.accuracy, kind="stable")[:most].tolist()  # NaN comes last
    table = Table(title="Weakest categories (training images)", title_justify="left")
    for name in ("category", "accuracy", "most often taken for"):
        table.add_column(name, justify="right" if name == "accuracy" else "left")
    for category in worst:
        other = int(errors[category].argmax())
        number = errors[category, other]
        taken_for = f"{diagnosis.classes[other]} ({number})" if number else "-"
        table.add_row(
            diagnosis.classes[category], number_text(float(diagnosis.accuracy[category])), taken_for
        )
    console.print(table, markup=False)


def print_prescription(console: Console, prescription: Sequence[Mapping[str, Any]]) -> None:
    """Print the constraints with their weights, and how many parameters each of them changes.

    Args:
        console: Where to print.
        prescription: A record of each constraint, as `Treatment.prescription` holds it.
    """
    table = Table(title="Prescription", title_justify="left")
    for name in ("constraint", "layers", "evidence", "scale", "weight", "parameters reached"):
        table.add_column(name)
    for constraint in prescription:
        reached = f"{constraint['parameters_reached']} of {constraint['parameters_trainable']}"
        table.add_row(
            str(constraint["constraint"]),
            "\n".join(constraint["layers"]),
            str(constraint["evidence"]),
            str(constraint["scale"]),
            f"{constraint['weight']:.3g} ({constraint['weight_chosen']})",
            reached,
        )
    console.print(table)


def print_comparison(console: Console, comparison: Comparison) -> None:
    """Print the comparison as a table with a line for each split and arm, and the verdict.

    Args:
        console: Where to print.
        comparison: The comparison.
    """
    many = any(len(split.arms) > 1 for split in comparison.splits.values())
    title = f"Comparison: accuracy in percent, mean of {count_of(len(comparison.seeds), 'seed')}"
    table = Table(title=title, title_justify="left")
    p_value = "p (Holm)" if many else "p"
    columns = ("split", "arm", "accuracy", "gain", "95 % interval", p_value, "worst category", "ECE")
    for name in (*columns, "verdict"):
        table.add_column(name, justify="left" if name in ("split", "arm", "verdict") else "right")
    for name, split in comparison.splits.items():
        for place, (arm, accuracies) in enumerate(split.accuracy.items()):
            result = split.arms.get(arm)
            table.add_row(
                (f"{name} *" if name == comparison.primary else name) if place == 0 else "",
                arm,
                number_text(sum(accuracies) / len(accuracies)),
                *(_against_control(result.gain) if result else ("", "", "")),
                number_text(split.worst_category[arm]),
                number_text(split.calibration_error.get(arm, math.nan)),
                result.verdict if result else "",
                end_section=place == len(split.accuracy) - 1,
            )
    console.print(table, markup=False)
    for name, split in comparison.splits.items():
        shares = {arm: share for arm, share in split.background_share.items() if share is not None}
        if "base" in shares:
            text = ", ".join(f"{arm} {100 * value:.0f} %" for arm, value in shares.items())
            console.print(f"evidence on the background, {name}: {text}", highlight=False, markup=False)
        fixed, lost = len(split.first.repaired), len(split.first.broken)
        text = f"{name}, {comparison.arm}: {count_of(fixed, 'image')} repaired, {lost} newly broken"
        if not math.isnan(split.between_controls):
            text += f" (two controls that differ in their seed: {split.between_controls:.0f} each way)"
        console.print(text, highlight=False, markup=False)
    verdict = f"Verdict on {comparison.arm}: {comparison.verdict} ({comparison.reason})"
    console.print(verdict, highlight=False, markup=False)


def _against_control(gain: Gain) -> tuple[str, str, str]:
    """Return a gain, its interval and its p-value as text."""
    p_value = gain.p_value if math.isnan(gain.p_adjusted) else gain.p_adjusted
    interval = f"{number_text(gain.low, sign=True)} to {number_text(gain.high, sign=True)}"
    return number_text(gain.mean, sign=True), interval, f"{p_value:.2g}"


def print_predictions(console: Console, predictions: Sequence[Mapping[str, Any]]) -> None:
    """Print a line for each image.

    Args:
        console: Where to print.
        predictions: What `torchdoctor.verbs.predict` returns.
    """
    table = Table()
    for name in ("image", "category", "confidence", "runner-up", "confidence"):
        table.add_column(name, justify="right" if name == "confidence" else "left")
    for prediction in predictions:
        table.add_row(
            prediction["image"],
            prediction["category"],
            number_text(prediction["confidence"], 3),
            prediction["runner_up"] or "-",
            number_text(prediction["runner_up_confidence"], 3),
        )
    console.print(table, markup=False)


def print_plan(console: Console, plan: Mapping[str, Any], indent: str = "") -> None:
    """Print what a command would do (`--dry-run`).

    Args:
        console: Where to print.
        plan: What would run, by name; the values of nested mappings are printed below their name.
        indent: What stands before each line.
    """
    for name, value in plan.items():
        if isinstance(value, Mapping):
            console.print(f"{indent}{name}:", highlight=False)
            print_plan(console, value, indent + "  ")
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
            console.print(f"{indent}{name}: {text}", highlight=False, markup=False, soft_wrap=True)
