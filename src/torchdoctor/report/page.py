"""Render one page that says whether the treatment helped, what was wrong, and how to run it again.

The page stands alone: no script, nothing loaded from elsewhere, names of files and categories only as text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float

from torchdoctor.diagnosis.causes import Causes
from torchdoctor.diagnosis.result import Diagnosis
from torchdoctor.diagnosis.robustness import Robustness
from torchdoctor.diagnosis.statistics import sparsity
from torchdoctor.proof.result import Comparison, SplitComparison
from torchdoctor.report import plots as figures
from torchdoctor.report.error_cards import ExplainedError, cause_rows, error_cards
from torchdoctor.report.pictures import MOST_CATEGORIES, MOST_LAYERS, Picture, drawn_figures, photograph, ramp

Kind = Literal["repaired", "broken", "still wrong", "annotated"]
KINDS: Mapping[Kind, str] = {
    "repaired": "wrong before, right after the treatment",
    "broken": "right before, wrong after the treatment",
    "still wrong": "wrong before and after",
    "annotated": "the object was marked, so the background is known",
}
MOST_EXAMPLES = 36


@dataclass(frozen=True)
class Example:
    """One image with what the base network and the treated one say and where their evidence lies.

    `image` is in 0..1; `mask` is True on the object; the maps are summed absolute derivatives, never
    negative; confidences and background shares are in 0..1.
    """

    split: str
    name: str
    image: Float[np.ndarray, "height width 3"]
    mask: Bool[np.ndarray, "height width"] | None
    label: str
    before: str
    before_confidence: float
    after: str
    after_confidence: float
    map_before: Float[np.ndarray, "height width"]
    map_after: Float[np.ndarray, "height width"]
    background_before: float | None
    background_after: float | None
    kind: Kind

    @property
    def maximum(self) -> float:
        """The top of the one scale on which both maps are drawn."""
        return max(float(np.nan_to_num(one).max()) for one in (self.map_before, self.map_after))


def render_report(
    *,
    title: str,
    diagnosis: Diagnosis,
    comparison: Comparison | None,
    examples: Sequence[Example],
    prescription: Sequence[Mapping[str, object]],
    settings: Mapping[str, object],
    environment: Mapping[str, object],
    command: str,
    loading_code: str,
    notes: Sequence[str],
    causes: Causes | None = None,
    explained: Sequence[ExplainedError] = (),
    robustness: Robustness | None = None,
    trials: Mapping[str, Any] | None = None,
    arm: str = "treated",
) -> str:
    """Return the whole report as one HTML page; without a comparison it reports the diagnosis alone.

    The causes of errors, some of them explained, the noise curves, and the trials by which the validation
    split chose a remedy are shown where they are given. `arm` names the network beside the base.
    At most 36 examples and the heat maps of the last 16 layers are shown, so that the page can be mailed.
    """
    treated = comparison is not None or bool(prescription)
    from jinja2 import Environment, StrictUndefined

    template = resources.files("torchdoctor.report").joinpath("page.html.jinja").read_text(encoding="utf-8")
    surroundings = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    surroundings.filters.update(number=number, signed=signed, share=share, value=plain_value)
    page = surroundings.from_string(template).render(
        title=title,
        diagnosis=diagnosis,
        comparison=comparison,
        trials=trials,
        tone=comparison.verdict if comparison and not diagnosis.inconclusive else "no evidence",
        headline=headline(diagnosis, comparison, treated=bool(prescription)),
        explanation=explanation(diagnosis, comparison, treated=bool(prescription)),
        cards=_cards(diagnosis, comparison),
        pictures=drawn_figures(diagnosis, comparison, MOST_LAYERS, robustness),
        causes=causes,
        cause_rows=cause_rows(causes) if causes else [],
        error_cards=error_cards(explained),
        robustness=robustness,
        agreement={one.name: _mean(one.agreement[len(one.agreement) // 2]) for one in diagnosis.layers},
        sparsity={one.name: _mean(sparsity(one.correlation)) for one in diagnosis.layers},
        layers_left_out=max(0, len(diagnosis.layers) - MOST_LAYERS),
        arm=arm,
        examples=_examples(examples[:MOST_EXAMPLES], arm if treated else None),
        examples_left_out=max(0, len(examples) - MOST_EXAMPLES),
        ramp=ramp(),
        categories=_categories(diagnosis),
        most_categories=MOST_CATEGORIES,
        confusions=_confusions(diagnosis),
        prescription=prescription,
        prescribed=list(dict.fromkeys(key for row in prescription for key in row)),
        settings="\n".join(_lines(settings)),
        environment=environment,
        command=command,
        loading_code=loading_code,
        notes=notes,
        treated=treated,
    )
    return page.strip().encode("utf-8", "replace").decode("utf-8")


def headline(diagnosis: Diagnosis, comparison: Comparison | None, *, treated: bool = False) -> str:
    """Say the outcome in one plain sentence."""
    if diagnosis.inconclusive:
        return "Inconclusive: too little to diagnose"
    if comparison is None:
        totals = diagnosis.confusion.sum()
        right = 100.0 * np.trace(diagnosis.confusion) / totals if totals else math.nan
        state = "Treated, not yet compared" if treated else "Diagnosed, not yet treated"
        return f"{state}: {number(right)} % of {totals:,} images classified correctly"
    name, split = decisive_split(comparison)
    said = {
        "helped": "The treatment helped",
        "harmed": "The treatment did harm",
        "no evidence": "No evidence that the treatment helped",
    }[comparison.verdict]
    gain = split.first.gain
    interval = f"95 % interval {signed(gain.low)} to {signed(gain.high)}"
    return f"{said}: {signed(gain.mean)} points on {name} ({interval})"


def decisive_split(comparison: Comparison) -> tuple[str, SplitComparison]:
    """Return the split the verdict rests on: the primary one, or the one whose loss did the harm."""
    name = comparison.primary
    if comparison.verdict == "harmed" and comparison.splits[name].first.verdict != "harmed":
        name = min(comparison.splits, key=lambda one: comparison.splits[one].first.gain.mean)
    return name, comparison.splits[name]


def explanation(diagnosis: Diagnosis, comparison: Comparison | None, *, treated: bool = False) -> list[str]:
    """Say in a few sentences what was compared and what the outcome rests on."""
    said = []
    if diagnosis.inconclusive:
        said.append(
            f"{len(diagnosis.not_diagnosed)} of {len(diagnosis.classes)} categories have no image that is "
            f"classified correctly with a confidence of at least {diagnosis.sifting.confidence:g}. With more "
            "than half of them missing, a treatment would rest on guesses. Train longer, or ask for less "
            "confidence."
        )
    if comparison is None and treated:
        return [
            *said,
            "The network was treated beside a control, and neither was tested yet: whether the treatment "
            "helped is not known. Compare the run to find out; the accuracy above is of the base network.",
        ]
    if comparison is None:
        return said or ["This page shows what the network relies on and where it errs. Nothing was trained."]
    seeds = "one seed" if len(comparison.seeds) == 1 else f"{len(comparison.seeds)} seeds"
    said.append(
        f"All arms began from the same weights and got the same further training of {comparison.steps:,} "
        f"steps on the same images, with {seeds}: the control with the loss alone, {comparison.arm} with its "
        "remedy. A gain is an arm minus the control, so what further training alone brings does not count."
    )
    return [*said, f"Decided by: {comparison.reason.rstrip('.')}."]


def number(value: float | None, digits: int = 1) -> str:
    """Return a number with `digits` decimals and a true minus; "-" for None and NaN."""
    if value is None or math.isnan(value):
        return "-"
    return ("∞" if math.isinf(value) else f"{abs(value):,.{digits}f}").join(["−" if value < 0 else "", ""])


def signed(value: float | None, digits: int = 1) -> str:
    """Return a number that always shows its sign; "-" for None and NaN."""
    shown = number(value, digits)
    return shown if shown[0] in "-−" else f"+{shown}"


def share(value: float | None) -> str:
    """Return a share of 0..1 in percent; "-" for None and NaN."""
    return "-" if value is None or math.isnan(value) else f"{100 * value:.0f} %"


def plain_value(value: object) -> str:
    """Return a setting as short text: floats with 4 digits, lists by commas, None and NaN as "-"."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(plain_value(one) for one in value) or "-"
    return str(value)


def _lines(settings: Mapping[str, object], indent: str = "") -> Iterable[str]:
    """Yield nested settings the way YAML writes them."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield f"{indent}{key}:"
            yield from _lines(value, indent + "  ")
        elif isinstance(value, (list, tuple)):
            yield f"{indent}{key}: [{', '.join(str(one) for one in value)}]"
        else:
            yield f"{indent}{key}: {value}"


def _cards(diagnosis: Diagnosis, comparison: Comparison | None) -> list[tuple[str, str, str]]:
    """Return the key numbers: name, value and a remark each."""
    layers, all_categories = diagnosis.layers, len(diagnosis.classes)
    known = f"{all_categories - len(diagnosis.not_diagnosed)} of {all_categories}"
    places = "in one layer" if len(layers) == 1 else f"in {len(layers)} layers"
    if comparison is None:
        kernels = sum(int(one.correlated.any(axis=0).sum()) for one in layers)
        total = sum(one.correlated.shape[1] for one in layers)
        outside = share(_mean(np.array([one.background_share for one in layers], dtype=float)))
        return [
            ("categories diagnosed", known, f"from {diagnosis.counts.sum():,} images"),
            ("correlated kernels", f"{kernels:,} of {total:,}", places),
            ("background evidence", outside, "mean of categories and layers"),
        ]
    name, split = decisive_split(comparison)
    arms, first = ("base", "control", comparison.arm), split.first
    base, control, treated = (
        number(_mean(np.array(split.accuracy.get(arm, ()), dtype=float))) for arm in arms
    )
    before, beside, after = (share(split.background_share.get(arm)) for arm in arms)
    return [
        ("gain over control", signed(first.gain.mean), f"points on {name}"),
        ("accuracy, %", f"{base} → {treated}", f"control {control}"),
        ("background evidence", f"{before} → {after}", f"control {beside}"),
        ("images repaired", f"{len(first.repaired):,}", f"{len(first.broken):,} broken, of {split.images:,}"),
        ("categories diagnosed", known, places),
    ]


def _mean(values: Float[np.ndarray, " *any"]) -> float:
    """Return the mean of what is not NaN; NaN if nothing is left."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan


def _categories(diagnosis: Diagnosis) -> list[dict[str, Any]]:
    """Describe each category, the least accurate first."""
    shares = np.stack([one.background_share for one in diagnosis.layers]) if diagnosis.layers else None
    found = []
    for row, name in enumerate(diagnosis.classes):
        called = diagnosis.confusion[row].copy()
        called[row] = 0
        rival = int(called.argmax())
        found.append(
            {
                "name": name,
                "accuracy": float(diagnosis.accuracy[row]),
                "images": int(diagnosis.confusion[row].sum()),
                "behind": int(diagnosis.counts[row]),
                "background": math.nan if shares is None else _mean(shares[:, row]),
                "rival": diagnosis.classes[rival] if called[rival] else "-",
            }
        )
    return sorted(found, key=lambda one: math.inf if math.isnan(one["accuracy"]) else one["accuracy"])


def _confusions(diagnosis: Diagnosis, most: int = 8) -> list[tuple[int, str, str, float]]:
    """List the most frequent mistakes: images, category, what it is called, share of the category."""
    wrong = diagnosis.confusion - np.diag(np.diag(diagnosis.confusion))
    order = np.argsort(-wrong, axis=None, kind="stable")[:most].tolist()
    cells = [divmod(one, len(diagnosis.classes)) for one in order]
    return [
        (
            int(wrong[i, j]),
            diagnosis.classes[i],
            diagnosis.classes[j],
            wrong[i, j] / diagnosis.confusion[i].sum(),
        )
        for i, j in cells
        if wrong[i, j] > 0
    ]


def _examples(examples: Sequence[Example], arm: str | None) -> list[tuple[Kind, str, list[dict[str, Any]]]]:
    """Group the examples by kind and draw their images, both maps of a pair on one scale."""
    groups = []
    for kind, meaning in KINDS.items():
        members = [one for one in examples if one.kind == kind]
        shown = [{"of": one, "pictures": _triple(one, arm)} for one in members]
        if shown:
            groups.append((kind, meaning, shown))
    return groups


def _triple(example: Example, arm: str | None) -> list[tuple[str, Picture]]:
    """Draw the image, the base network's map and, where there is one, the arm's."""
    maps = [("base", example.map_before)] + ([(arm, example.map_after)] if arm else [])
    drawn = [("image", photograph(example.image, example.mask, f"Image {example.name}"))]
    for network, summed in maps:
        pixels = figures.overlay(example.image, summed, example.maximum)
        words = f"Evidence of the {network} network in {example.name}"
        drawn.append((network, photograph(pixels, example.mask, words)))
    return drawn
