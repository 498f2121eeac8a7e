"""Compare base, control and all other arms on the same test images."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor, nn

from torchdoctor.evidence.per_image import background_shares_of, clean_evidence
from torchdoctor.images.batches import Images
from torchdoctor.network.frozen import frozen_eval
from torchdoctor.network.outputs import unwrap
from torchdoctor.network.prediction import device_of, dtype_of, predict_logits
from torchdoctor.proof.result import Comparison
from torchdoctor.proof.statistics import calibration_error, compare_split, overall_verdict
from torchdoctor.treatment.result import Treatment
from torchdoctor.types import Evidence, InputError, Progress, silent


def compare(
    model: nn.Module,
    treatment: Treatment,
    tests: Mapping[str, Images],
    *,
    primary: str | None = None,
    arm: str | None = None,
    classes: Sequence[str] | None = None,
    layers: Sequence[str] | None = None,
    evidence: Evidence = "gradient_x_activation",
    min_gain: float = 0.0,
    max_loss: float = 5.0,
    seed: int = 0,
    progress: Progress = silent,
) -> Comparison:
    """Compare every arm with the control, and all with the base, on every test split.

    `model` holds the base weights and is left as it was. A gain is an arm minus the control, in
    percentage points; with several arms p-values carry Holm's correction. The verdict is that of `arm`
    (default: the first but the control) on the `primary` split (default: the first), but `harmed` if
    another split loses more than `max_loss` points. `layers` are where the background share of the
    evidence is measured: by default those that were treated. InputError for an unknown primary split or
    arm, or without arms.
    """
    model = unwrap(model)
    if not tests:
        raise InputError("there is no test split to compare on")
    primary = primary if primary is not None else next(iter(tests))
    if primary not in tests:
        raise InputError(f"primary split {primary!r} is not there; the data has: {', '.join(tests)}")
    seeds, arm = treatment.seeds(), _first_arm(treatment, arm)
    own, splits, done = copy.deepcopy(model), {}, 0
    total = len(tests) * (1 + len(treatment.arms))
    names: tuple[str, ...] = tuple(classes or getattr(tests[primary], "classes", None) or ())
    if layers is None:
        layers = _treated_layers(treatment)
    for split, images in tests.items():
        right: dict[str, list[np.ndarray]] = {}
        shares: dict[str, list[float]] = {}
        errors: dict[str, list[float]] = {}
        for name, state in _states(model, treatment):
            own.load_state_dict(dict(state))
            ids, labels, logits = predict_logits(own, images)
            certainty, predicted = logits.double().softmax(1).max(1)
            row = (predicted == labels).numpy()
            right.setdefault(name, []).append(row)
            errors.setdefault(name, []).append(calibration_error(certainty.numpy(), row))
            shares.setdefault(name, []).append(background_share(own, images, layers, evidence))
            names = names or tuple(map(str, range(logits.shape[1])))
            done += 1
            progress("compare", done, total)
        splits[split] = compare_split(
            right, labels.numpy(), ids.numpy(), len(names), shares, errors, first=arm, key_seed=seed
        )
    verdict, reason = overall_verdict(splits, primary, max_loss, min_gain)
    return Comparison(
        classes=names,
        splits=splits,
        primary=primary,
        verdict=verdict,
        reason=reason,
        max_loss=max_loss,
        seeds=seeds,
        seconds={
            name: tuple(treatment.arm(name, one).seconds for one in seeds) for name in treatment.names()
        },
        steps=treatment.arm(arm, seeds[0]).steps,
        arm=arm,
        min_gain=min_gain,
    )


def _first_arm(treatment: Treatment, arm: str | None) -> str:
    """Return the arm that the verdict speaks of; InputError where it is not there."""
    names = treatment.names()
    others = [name for name in names if name != "control"]
    if "control" not in names or not others:
        raise InputError("the treatment has no arms to compare: expected a control and at least one other")
    if arm is not None and arm not in others:
        raise InputError(f"arm {arm!r} was not trained; there are: {', '.join(others)}")
    return arm or others[0]


def _treated_layers(treatment: Treatment) -> list[str]:
    """Return the layers that any constraint was on, in their order."""
    found = [one["layers"] for one in treatment.prescription]
    return list(dict.fromkeys(layer for some in found if isinstance(some, list) for layer in some))


def _states(model: nn.Module, treatment: Treatment) -> list[tuple[str, Mapping[str, Tensor]]]:
    """List the base's weights, then every arm's, in the order of the arms and the seeds."""
    base = {name: value.detach().clone() for name, value in model.state_dict().items()}
    return [("base", base)] + [
        (name, treatment.arm(name, seed).state) for name in treatment.names() for seed in treatment.seeds()
    ]


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
        with frozen_eval(model) as frozen:
            maps = clean_evidence(frozen, pixels, None, layers, evidence)[0]
        shares += [background_shares_of(one, batch) for one in maps.values()]
    values = np.concatenate(shares) if shares else np.zeros(0)
    return float(np.nanmean(values)) if np.isfinite(values).any() else math.nan
