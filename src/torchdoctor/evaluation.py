"""Compare base, control and treated on the same test images, and say what the difference can bear."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats
from torch import Tensor, nn

from torchdoctor.evidence import background_shares_of, clean_evidence
from torchdoctor.gradients import measuring
from torchdoctor.networks import unwrap
from torchdoctor.sifting import device_of, dtype_of, predict_logits
from torchdoctor.types import (
    Comparison,
    Evidence,
    Gain,
    Images,
    InputError,
    Progress,
    SplitComparison,
    Treatment,
    Verdict,
    silent,
)

ARMS = ("base", "control", "treated")


def compare(
    model: nn.Module,
    treatment: Treatment,
    tests: Mapping[str, Images],
    *,
    primary: str | None = None,
    classes: Sequence[str] | None = None,
    layers: Sequence[str] | None = None,
    evidence: Evidence = "gradient_x_activation",
    max_loss: float = 5.0,
    seed: int = 0,
    progress: Progress = silent,
) -> Comparison:
    """Compare the treated arms with their controls and with the base on every test split.

    `model` holds the base weights and is left as it was. The gain is treated minus control, in
    percentage points. The verdict is that of the `primary` split (default: the first), but `harmed` if
    another split loses more than `max_loss` points. `layers` are where the background share of the
    evidence is measured: by default those that were treated. InputError for an unknown primary split, or
    without arms.
    """
    model = unwrap(model)
    if not tests:
        raise InputError("there is no test split to compare on")
    primary = primary if primary is not None else next(iter(tests))
    if primary not in tests:
        raise InputError(f"primary split {primary!r} is not there; the data has: {', '.join(tests)}")
    seeds = treatment.seeds()
    if not seeds:
        raise InputError("the treatment has no arms: nothing to compare")
    own, splits, done = copy.deepcopy(model), {}, 0
    total = len(tests) * (1 + 2 * len(seeds))
    names: tuple[str, ...] = tuple(classes or getattr(tests[primary], "classes", None) or ())
    if layers is None:
        layers = _treated_layers(treatment)
    for split, images in tests.items():
        right: dict[str, list[np.ndarray]] = {arm: [] for arm in ARMS}
        shares: dict[str, list[float]] = {arm: [] for arm in ARMS}
        for arm, state in _states(model, treatment):
            own.load_state_dict(dict(state))
            ids, labels, logits = predict_logits(own, images)
            right[arm].append((logits.argmax(1) == labels).numpy())
            shares[arm].append(background_share(own, images, layers, evidence))
            names = names or tuple(map(str, range(logits.shape[1])))
            done += 1
            progress("compare", done, total)
        splits[split] = compare_split(right, labels.numpy(), ids.numpy(), len(names), shares, key_seed=seed)
    verdict, reason = overall_verdict(splits, primary, max_loss)
    return Comparison(
        classes=names,
        splits=splits,
        primary=primary,
        verdict=verdict,
        reason=reason,
        max_loss=max_loss,
        seeds=seeds,
        seconds={
            name: tuple(treatment.arm(name, one).seconds for one in seeds) for name in ("control", "treated")
        },
        steps=treatment.arms[0].steps,
    )


def _treated_layers(treatment: Treatment) -> list[str]:
    """Return the layers that any constraint was on, in their order."""
    found = [one["layers"] for one in treatment.prescription]
    return list(dict.fromkeys(layer for some in found if isinstance(some, list) for layer in some))


def _states(model: nn.Module, treatment: Treatment) -> list[tuple[str, Mapping[str, Tensor]]]:
    """List the base's weights, then every arm's, control before treated, in the order of the seeds."""
    base = {name: value.detach().clone() for name, value in model.state_dict().items()}
    arms: list[tuple[str, Mapping[str, Tensor]]] = [("base", base)]
    for name in ("control", "treated"):
        arms += [(name, treatment.arm(name, seed).state) for seed in treatment.seeds()]
    return arms


def background_share(
    model: nn.Module, images: Images, layers: Sequence[str], evidence: Evidence = "gradient_x_activation"
) -> float:
    """Return the mean share of the prediction's evidence on the background, without noise.

    Averaged over annotated images and layers; NaN where no layer or no mask is given.
    """
    shares: list[np.ndarray] = []
    if not layers:
        return math.nan
    for batch in images:
        if batch.masks is None:
            continue
        pixels = batch.images.to(device_of(model), dtype_of(model))
        with measuring(model):
            maps = clean_evidence(model, pixels, None, layers, evidence)[0]
        shares += [background_shares_of(one, batch) for one in maps.values()]
    values = np.concatenate(shares) if shares else np.zeros(0)
    return float(np.nanmean(values)) if np.isfinite(values).any() else math.nan


def compare_split(
    right: Mapping[str, Sequence[Bool[np.ndarray, " image"]]],
    labels: Int[np.ndarray, " image"],
    ids: Int[np.ndarray, " image"],
    categories: int,
    shares: Mapping[str, Sequence[float]] | None = None,
    *,
    key_seed: int = 0,
) -> SplitComparison:
    """Compare on one split from who was right: per arm one row of booleans per seed (base: one row)."""
    control, treated = np.stack(right["control"]), np.stack(right["treated"])
    gain = paired_gain(control, treated, seed=key_seed)
    difference = (treated.astype(float) - control.astype(float)).mean(0)
    by_control, by_treated = control.mean(0), treated.mean(0)
    per_category = {
        arm: tuple(_per_category(np.stack(rows).mean(0), labels, categories)) for arm, rows in right.items()
    }
    mean_shares = {arm: float(np.mean(values)) for arm, values in (shares or {}).items() if values}
    return SplitComparison(
        accuracy={arm: tuple(100.0 * float(row.mean()) for row in rows) for arm, rows in right.items()},
        per_category=per_category,
        background_share={
            arm: None if math.isnan(mean_shares.get(arm, math.nan)) else mean_shares[arm] for arm in ARMS
        },
        gain=gain,
        gain_per_category=tuple(_per_category(difference, labels, categories)),
        verdict=verdict_of(gain),
        repaired=tuple(ids[(by_treated > 0.5) & (by_control < 0.5)].tolist()),
        broken=tuple(ids[(by_treated < 0.5) & (by_control > 0.5)].tolist()),
        images=len(labels),
    )


def _per_category(values: np.ndarray, labels: np.ndarray, categories: int) -> list[float]:
    """Return 100 x the mean value of each category; NaN for a category without test images."""
    return [
        100.0 * float(values[labels == category].mean()) if (labels == category).any() else math.nan
        for category in range(categories)
    ]


def paired_gain(
    control: Bool[np.ndarray, "seed image"],
    treated: Bool[np.ndarray, "seed image"],
    *,
    level: float = 0.95,
    flips: int = 10_000,
    seed: int = 0,
) -> Gain:
    """Return treated minus control in percentage points, paired by seed and image.

    The squared error is the variance of the seeds' means over the number of seeds plus that of the
    images' means over the number of images (the residual is counted in both: the interval errs on the
    wide side), with a t quantile on seeds - 1 degrees of freedom; with one seed, images only. p-value:
    random sign flips of each image's seed-averaged difference; for one seed McNemar's exact test.
    """
    difference = treated.astype(float) - control.astype(float)
    seeds, images = difference.shape
    mean, by_image = float(difference.mean()), difference.mean(0)
    image_part = float(by_image.var(ddof=1)) / images if images > 1 else math.nan
    if seeds == 1:
        better, worse = int((difference > 0).sum()), int((difference < 0).sum())
        p_value = float(stats.binomtest(better, better + worse).pvalue) if better + worse else 1.0
        width = float(stats.t.ppf(0.5 + level / 2, max(images - 1, 1))) * math.sqrt(image_part)
        source = "images only (one seed)"
    else:
        seed_part = float(difference.mean(1).var(ddof=1)) / seeds
        width = float(stats.t.ppf(0.5 + level / 2, seeds - 1)) * math.sqrt(image_part + seed_part)
        p_value, source = _sign_flips(by_image, flips, seed), f"images and {seeds} seeds"
    if math.isnan(width):
        width = math.inf
    return Gain(100 * mean, 100 * (mean - width), 100 * (mean + width), p_value, source)


def _sign_flips(values: Float[np.ndarray, " image"], flips: int, seed: int) -> float:
    """Return the two-sided p-value of the mean under random signs; the sample counts itself."""
    moving = values[values != 0]
    if len(moving) == 0:
        return 1.0
    generator = np.random.default_rng([seed, 0x51F])
    observed, hits, chunk = abs(float(moving.sum())), 0, max(1, (1 << 22) // len(moving))
    for start in range(0, flips, chunk):
        signs = generator.integers(0, 2, size=(min(chunk, flips - start), len(moving)), dtype=np.int8) * 2 - 1
        hits += int((np.abs(signs @ moving) >= observed - 1e-9).sum())
    return (1 + hits) / (1 + flips)


def verdict_of(gain: Gain) -> Verdict:
    """Return `helped` if the interval lies above 0, `harmed` if below, else `no evidence`."""
    if gain.low > 0:
        return "helped"
    return "harmed" if gain.high < 0 else "no evidence"


def overall_verdict(
    splits: Mapping[str, SplitComparison], primary: str, max_loss: float
) -> tuple[Verdict, str]:
    """Return the primary split's verdict, or `harmed` where another split loses more than `max_loss`."""
    for name, split in splits.items():
        if name != primary and split.gain.mean < -max_loss:
            return "harmed", (
                f"{name} loses {-split.gain.mean:.1f} points against the control, more than the {max_loss:g} "
                "allowed"
            )
    gain = splits[primary].gain
    interval = f"{gain.mean:+.1f} points on {primary}, 95 % interval {gain.low:+.1f} to {gain.high:+.1f}"
    return splits[primary].verdict, interval
