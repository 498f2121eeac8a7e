"""Invent diagnoses, comparisons and examples from a seed, for the tests of figures and reports."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from torchdoctor.diagnosis.causes_result import Cause, Causes, ErrorCause
from torchdoctor.diagnosis.explanation_result import CausalCheck, Explanation, StandingOut
from torchdoctor.diagnosis.result import QUANTILES, Diagnosis, LayerDiagnosis
from torchdoctor.diagnosis.robustness_result import Robustness
from torchdoctor.diagnosis.sifting import Sifting
from torchdoctor.diagnosis.suspects_result import Suspect, Suspects
from torchdoctor.proof.result import Comparison
from torchdoctor.proof.split_result import ArmComparison, Gain, SplitComparison
from torchdoctor.report.error_cards import ExplainedError
from torchdoctor.report.example_cards import Example
from torchdoctor.report.suspect_cards import ShownSuspect
from torchdoctor.types import Verdict

CLASSES = ("airplane", "bird", "boat", "cat", "deer", "dog", "frog", "truck")


def fake_layer(
    categories: int, name: str, kernels: int, generator: np.random.Generator, empty: tuple[int, ...]
) -> LayerDiagnosis:
    """Return a layer in which each category relies on kernels of its own; rows in `empty` are zero."""
    correlation = generator.gamma(1.2, 0.08, (categories, kernels))
    owner = generator.integers(0, categories, kernels)
    correlation[owner, np.arange(kernels)] += generator.gamma(2.0, 0.3, kernels)
    correlation[list(empty)] = 0
    top = correlation.max(axis=1, keepdims=True)
    background = generator.uniform(0.2, 0.6, categories)
    background[list(empty)] = np.nan
    return LayerDiagnosis(
        name=name,
        correlation=correlation,
        variance=0.1 * correlation,
        interval=np.stack([0.8 * correlation, 1.2 * correlation]),
        quantiles=np.stack([correlation] * len(QUANTILES)),
        activation=correlation,
        level=correlation.mean(axis=0),
        correlated=(correlation >= 0.5 * top) & (top > 0),
        agreement=np.stack([np.full(categories, value) for value in (0.5, 0.6, 0.7, 0.8, 0.9)]),
        background_share=background,
        drift=np.full(kernels, 0.03),
        path="vmap",
        delta=0.031,
        standard_deviation=0.012,
        flags=("flat: hardly any kernel stands out",) if name == "layer1.conv2" else (),
    )


def fake_diagnosis(
    classes: tuple[str, ...] = CLASSES,
    empty: tuple[int, ...] = (),
    layers: tuple[tuple[str, int], ...] = (("layer3.conv2", 128), ("layer2.conv2", 96), ("layer1.conv2", 64)),
    seed: int = 0,
) -> Diagnosis:
    """Return a diagnosis of a mediocre classifier; the categories in `empty` were not diagnosed."""
    generator = np.random.default_rng(seed)
    categories = len(classes)
    confusion = generator.poisson(3.0, (categories, categories))
    confusion[np.diag_indices(categories)] += generator.integers(60, 170, categories)
    confusion[3 % categories, 5 % categories] += 41
    counts = generator.integers(20, 60, categories)
    counts[list(empty)] = 0
    return Diagnosis(
        classes=classes,
        layers=tuple(fake_layer(categories, name, size, generator, empty) for name, size in layers),
        sifting=Sifting(tuple((1, 2) for _ in classes), tuple((3,) for _ in classes), 0.9, 60),
        counts=counts,
        confusion=confusion,
        evidence="gradient",
        draws=8,
        theta=0.5,
        seed=seed,
        model_sha256="3f" * 32,
    )


def fake_split(
    gain: float, verdict: Verdict, categories: int, generator: np.random.Generator, base: float = 71.0
) -> SplitComparison:
    """Return a split on which treated beats control by `gain` points."""
    control = base + 3.0 + generator.normal(0, 0.5, 5)
    treated = control + gain + generator.normal(0, 0.5, 5)
    per_base = np.clip(base + generator.normal(0, 9, categories), 0, 100)
    gains = gain + generator.normal(0, 5, categories)
    width = 0.1 * abs(gain) + 1.2
    return SplitComparison(
        accuracy={"base": (base,), "control": tuple(control), "treated": tuple(treated)},
        per_category={
            "base": tuple(per_base),
            "control": tuple(per_base + 3),
            "treated": tuple(np.clip(per_base + 3 + gains, 0, 100)),
        },
        background_share={"base": 0.52, "control": 0.5, "treated": 0.18},
        arms={
            "treated": ArmComparison(
                gain=Gain(
                    gain, gain - width, gain + width, 0.0004 if verdict != "no evidence" else 0.41, "seeds",
                    detectable=1.5 * width,
                ),
                gain_per_category=tuple(gains),
                verdict=verdict,
                repaired=tuple(range(83)),
                broken=tuple(range(100, 119)),
                mcnemar=(0.001, 0.002, 0.2),
            )
        },
        images=1600,
        calibration_error={"base": 9.1, "control": 8.8, "treated": 4.2},
    )  # fmt: skip


def with_first(split: SplitComparison, **changes: object) -> SplitComparison:
    """Return the split with changes to what is said of its first arm."""
    name = next(iter(split.arms))
    return replace(split, arms={**split.arms, name: replace(split.first, **changes)})


def with_more_arms(comparison: Comparison, names: tuple[str, ...]) -> Comparison:
    """Return the comparison with further arms, each as good as the control."""
    splits = {}
    for name, split in comparison.splits.items():
        own = dict.fromkeys(
            names, replace(split.first, verdict="no evidence", gain=Gain(0.1, -1.0, 1.2, 0.6, "-", 1.0, 1.5))
        )
        splits[name] = replace(
            split,
            accuracy={**split.accuracy, **dict.fromkeys(names, split.accuracy["control"])},
            per_category={**split.per_category, **dict.fromkeys(names, split.per_category["control"])},
            background_share={**split.background_share, **dict.fromkeys(names, 0.5)},
            arms={**split.arms, **own},
        )
    return replace(comparison, splits=splits)


def fake_comparison(
    gain: float = 12.4, verdict: Verdict = "helped", classes: tuple[str, ...] = CLASSES, seed: int = 1
) -> Comparison:
    """Return a comparison on three splits, the primary one of which is called "shifted"."""
    generator = np.random.default_rng(seed)
    same = fake_split(-0.2, "no evidence", len(classes), generator, base=88.0)
    splits = {
        "shifted": fake_split(gain, verdict, len(classes), generator),
        "same": replace(same, background_share={"base": None, "treated": None}),
        "noise": fake_split(1.1, "no evidence", len(classes), generator, base=64.0),
    }
    return Comparison(
        classes=classes,
        splits=splits,
        primary="shifted",
        verdict=verdict,
        reason=f"{gain:+.1f} points on shifted",
        max_loss=1.0,
        seeds=(0, 1, 2, 3, 4),
        seconds={"control": (41.0, 40.2, 40.9, 41.1, 40.6), "treated": (63.0, 62.1, 64.0, 63.3, 62.8)},
        steps=200,
    )


def fake_example(kind: str, number: int, size: int = 64, name: str = "", label: str = "cat") -> Example:
    """Return an image of a bright disc on a textured background; the evidence moves from corner to disc."""
    generator = np.random.default_rng(number)
    rows, columns = np.mgrid[0:size, 0:size] / size
    centre = generator.uniform(0.35, 0.65, 2)
    inside = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < 0.06
    wave = 0.5 + 0.3 * np.sin(rows * generator.uniform(8, 30)) * np.cos(columns * generator.uniform(8, 30))
    image = wave[..., None] * generator.uniform(0.4, 1.0, 3)
    image[inside] = generator.uniform(0.3, 1.0, 3) * (0.8 + 0.2 * wave[inside, None])
    corner = np.exp(-((rows - 0.12) ** 2 + (columns - 0.85) ** 2) / 0.02) * 0.004
    disc = np.exp(-((rows - centre[0]) ** 2 + (columns - centre[1]) ** 2) / 0.03) * 0.003
    grain = generator.uniform(0, 0.0005, (size, size))
    after = label if kind in ("repaired", "annotated") else "dog"
    return Example(
        split="shifted",
        name=name or f"{label}-{number:05d}.png",
        image=np.clip(image, 0, 1),
        mask=inside if number % 3 else None,
        label=label,
        before=label if kind == "broken" else "dog",
        before_confidence=0.93,
        after=after,
        after_confidence=0.81,
        map_before=corner + 0.2 * disc + grain,
        map_after=0.15 * corner + disc + grain,
        background_before=0.61 if number % 3 else None,
        background_after=0.14 if number % 3 else None,
        kind=kind,  # type: ignore[arg-type]
    )


def fake_causes(classes: tuple[str, ...] = CLASSES) -> Causes:
    """Return errors of several causes, with the numbers they were decided by."""
    kinds: tuple[Cause, ...] = ("background", "unknown", "label looks wrong", "background")
    errors = tuple(
        ErrorCause(
            number,
            classes[number % 4],
            classes[number % 4 + 1],
            0.9,
            kind,
            {"unknown": 1.0} if kind == "unknown" else {kind: 0.75, "unknown": 0.25},
            {"label_confidence": 0.05},
        )
        for number, kind in enumerate(kinds)
    )
    return Causes(errors, 200, 98.0)


def fake_suspects(classes: tuple[str, ...] = CLASSES, number: int = 4) -> Suspects:
    """Return training images whose labels look wrong."""
    suspects = tuple(
        Suspect(place, classes[place % 4], classes[place % 4 + 1], 0.95 - 0.1 * place, (70, 71), (80,))
        for place in range(number)
    )
    return Suspects(suspects, 1200, 0.04 if number else 0.0, 1000 / 11, ("Not looked at: fox.",))


def fake_shown(suspects: Suspects, name: str = "") -> list[ShownSuspect]:
    """Return the suspects as a report shows them; the last has no image of its label beside it."""
    image = np.random.default_rng(0).random((32, 32, 3))
    shown = [
        ShownSuspect(name or f"train-{one.id}.png", one, image, {one.label: image, one.proposed: image})
        for one in suspects.suspects
    ]
    return [*shown[:-1], *(replace(last, beside={last.suspect.proposed: image}) for last in shown[-1:])]


def fake_explanation(label: str, prediction: str, because: bool = True, size: int = 32) -> Explanation:
    """Return an explanation with two kernels, which decide or do not."""
    kernels = (
        StandingOut("layer3.conv2", 17, 2.5, 0.4, 6.1, 9.0, (prediction, label)),
        StandingOut("layer3.conv2", 3, 1.5, 0.6, 3.3, 5.0, ()),
    )
    summed = np.linspace(0, 1, size * size).reshape(size, size)
    return Explanation(
        label=label, prediction=prediction, runner_up=label, confidence=0.8, runner_up_confidence=0.15,
        label_confidence=0.15, kernels=kernels,
        check=CausalCheck(label if because else prediction, 0.6, 4.2, 1.1, because),
        alike={"layer3.conv2": (0.7, 0.8, 0.95)}, layer="layer3.conv2", summed_map=summed,
        background_share=0.7, usual_background_share=0.4,
    )  # fmt: skip


def fake_explained(name: str = "cat-1.png", label: str = "cat", prediction: str = "dog") -> ExplainedError:
    """Return an explained error."""
    cause = ErrorCause(
        1, label, prediction, 0.8, "background", {"background": 1.0}, {"label_before_others": 1.0, "x": 2.0}
    )
    image = np.random.default_rng(0).random((32, 32, 3))
    return ExplainedError(name, cause, fake_explanation(label, prediction), image)


def fake_robustness(ranges: tuple[float, ...] = (0.0, 0.1, 0.3, 1.0), repeats: int = 3) -> Robustness:
    """Return noise curves in which adversarial images come back before normal ones are lost."""
    fall = np.linspace(100, 60, len(ranges))[:, None] + np.linspace(-3, 0, repeats)
    rise = np.linspace(0, 35, len(ranges))[:, None] + np.linspace(0, 2, repeats)
    return Robustness(
        ranges=ranges, normal=fall, restored=rise, fooled=100 - rise,
        layers=("conv1", "layer3.conv2", "conv1"), units="absolute", images=100, tried=120,
        attack_success=83.3, epsilon=8 / 255, seed=0,
    )  # fmt: skip
