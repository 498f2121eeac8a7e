"""Say what a run would do and about how long it takes, without writing anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torchdoctor.case.preparation import SWAPPED, Case, prepare
from torchdoctor.case.settings import Settings, Verb
from torchdoctor.case.splits import swapped_count
from torchdoctor.case.timing import constraints_of, seconds_per_step, timed
from torchdoctor.diagnosis.diagnose import diagnose
from torchdoctor.images.batches import Batch
from torchdoctor.network.prediction import device_of, predict_logits
from torchdoctor.runs.folder import RunFolder
from torchdoctor.runs.history import check_tensorboard
from torchdoctor.treatment.arms import remedies_named
from torchdoctor.treatment.constraints import CONSTRAINTS
from torchdoctor.treatment.masked_images import drawn_per_batch
from torchdoctor.treatment.remedies import USE_MASKS
from torchdoctor.verbs.demo import demo_settings
from torchdoctor.verbs.diagnose import cost_of
from torchdoctor.verbs.search import listed_arms, search_forecast
from torchdoctor.verbs.treat import reused_diagnosis

CHOSEN = "chosen"  # what a search's arm is called before it is known


def plan(settings: Settings, verb: Verb) -> dict[str, object]:
    """Return what would run, with times in seconds measured on a few steps of the real thing.

    Raises InputError exactly where the run itself would refuse its input.
    """
    if verb == "demo":
        base, further = demo_settings(settings)
        training, checkup = (
            _plan(base, "train", needs_weights=False),
            _plan(further, "checkup", needs_weights=False),
        )
        total = float(str(training["seconds"])) + float(str(checkup["seconds"]))
        return {"verb": "demo", "seconds": total, "train": training, "checkup": checkup}
    return _plan(settings, verb, needs_weights=verb != "train")


def _plan(settings: Settings, verb: Verb, *, needs_weights: bool = True) -> dict[str, object]:
    """Plan one verb."""
    if verb in ("train", "treat", "checkup"):
        check_tensorboard(settings.tensorboard)
    settings = settings.but(auto=settings.auto and verb == "checkup")
    case = prepare(settings, verb, needs_weights=needs_weights)
    RunFolder.refuse_existing(case.folder)
    reused_diagnosis(case)
    steps = _steps_per_epoch(case, verb) * case.plan.recipe.epochs
    first = next(iter(case.data.train.epoch(0, 0)))
    plain = seconds_per_step(case, first, treated=False)
    seconds = {"train": plain * steps}
    if verb != "train":
        seconds = {"diagnose": _diagnosis_seconds(case, first)}
    arms = _arms(case)
    search = search_forecast(case) if case.plan.auto else {}
    if search:
        seconds["search"] = float(str(search.pop("seconds")))
        arms = tuple(dict.fromkeys(["control", CHOSEN, *listed_arms(case.plan)]))
    if verb in ("treat", "checkup"):
        treated = plain + (seconds_per_step(case, first, treated=True) - plain) / case.plan.penalty_every
        for arm in arms:
            # The other remedies cost about a plain step each.
            seconds[arm] = (treated if arm in ("treated", CHOSEN) else plain) * steps * case.plan.seeds
    if verb == "checkup":
        images = sum(len(one) for one in case.data.tests.values()) + swapped_count(case)
        seconds["compare"] = plain / 3 * images / len(first.labels) * (1 + len(arms) * case.plan.seeds)
    return {
        "verb": verb,
        "out": str(case.folder),
        "model": case.plan.model,
        "data": case.plan.data,
        "categories": len(case.classes),
        "images": {
            "train": len(case.data.train),
            "validation": len(case.data.validation),
            **{name: len(one) for name, one in case.data.tests.items()},
            **({SWAPPED: swapped_count(case)} if verb == "checkup" and swapped_count(case) else {}),
        },
        "masks": case.data.has_masks,
        "preprocessing": case.data.preprocessing.to_json(),
        "layers": case.layers,
        **({"diagnosis": cost_of(case)} if verb != "train" else {}),
        **({"search": search} if search else {}),
        "seeds": case.plan.seeds,
        "epochs": case.plan.epochs,
        "steps_per_arm": steps,
        "primary": case.plan.primary,
        "seconds_by_stage": {name: round(value, 1) for name, value in seconds.items()},
        "seconds": round(sum(seconds.values()), 1),
    }


def _steps_per_epoch(case: Case, verb: Verb) -> int:
    """Return the steps of an epoch: annotated images take places in the batches of a treatment."""
    train, names = case.data.train, constraints_of(case)
    constrained = any(CONSTRAINTS[one.partition(" ")[0]].needs_masks for one in names)
    arms = _arms(case)
    uses = ("treated" in arms and constrained) or any(arm in USE_MASKS for arm in arms)
    if verb in ("treat", "checkup") and case.data.has_masks and uses:
        size = min(train.batch_size, len(train))
        train = replace(train, annotated_per_batch=drawn_per_batch(case.plan.annotated_per_batch, size))
    return train.steps_per_epoch


def _arms(case: Case) -> Sequence[str]:
    """Return the names of the arms of a treatment, the control among them."""
    return tuple(remedies_named(case.plan.arms))


def _diagnosis_seconds(case: Case, batch: Batch) -> float:
    """Estimate the diagnosis from one batch: predictions over all images, draws over the sifted ones."""
    settings = case.plan
    predicting = timed(lambda: predict_logits(case.model, [batch]))
    pixels = batch.images.to(device_of(case.model))
    one = timed(
        lambda: diagnose(
            case.model,
            [replace(batch, images=pixels)],
            layers=case.layers,
            draws=settings.diagnosis_draws,
            confidence=0.0,
        )
    )
    sifted = min(len(case.data.train), settings.images_per_category * len(case.classes))
    return predicting * len(case.data.train) / len(batch.labels) + one * sifted / len(batch.labels)
