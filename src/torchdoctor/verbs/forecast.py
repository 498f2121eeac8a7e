"""Say what a run would do and about how long it takes, without writing anything."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from torchdoctor.case.defaults import masked_count
from torchdoctor.case.network_trial import TryOut, trial_images, try_out_network, try_out_training
from torchdoctor.case.preparation import SWAPPED, Case, prepare
from torchdoctor.case.second_opinion import opinion_on
from torchdoctor.case.settings import Settings, Verb
from torchdoctor.case.splits import swapped_count
from torchdoctor.case.timing import (
    StepTime,
    built_constraints,
    constraint_price,
    constraints_of,
    diagnosis_passes,
    one_thread,
    tail_shares,
    time_one_step,
    timed,
)
from torchdoctor.data.load import Splits
from torchdoctor.data.loader import Loader
from torchdoctor.diagnosis.second_opinion import SecondOpinion
from torchdoctor.evidence.measurement import first_images
from torchdoctor.models.catalogue import MODELS
from torchdoctor.network.checks import gives_live_maps
from torchdoctor.network.frozen import frozen_eval
from torchdoctor.runs.folder import RunFolder
from torchdoctor.runs.history import check_trackers
from torchdoctor.treatment.annotated_share import share_drawn
from torchdoctor.treatment.arms import remedies_named, uses_masks
from torchdoctor.treatment.constraints import CONSTRAINTS
from torchdoctor.treatment.learning_rate import TIMES
from torchdoctor.treatment.masked_images import drawn_per_batch
from torchdoctor.treatment.remedies import cure_named
from torchdoctor.verbs.demo import demo_settings
from torchdoctor.verbs.diagnose import cost_of, passes_of
from torchdoctor.verbs.learning_rate import steps_of_rates
from torchdoctor.verbs.search import listed_arms, search_forecast
from torchdoctor.verbs.treat import reused_diagnosis

CHOSEN = "chosen"  # what a search's arm is called before it is known

# How far the real time may be from the estimate, measured over the catalogue (benchmarks/speed/dry_run.py):
# the time of one step without constraints, and that of a whole run, which also rests on counted operations.
STEP_WITHIN, RUN_WITHIN = 1.6, 2.0


@dataclass
class QuickTrial:
    """Refuses networks as a run does, in one forward pass where the catalogue knows the network's structure.

    A run tries far more out (`check_model`), but on a network of the catalogue with the layers named there
    only the weights can make that fail, and then this pass shows it. Any other network is tried out in full,
    and so is a network whose pass shows anything unusual.

    Attributes:
        in_full: The trial of a run.
        forward: The processor time of a pass for a single image, in seconds.
    """

    in_full: TryOut = try_out_network
    forward: float = 0.0

    def __call__(self, name: str, model: nn.Module, data: Splits, layers: tuple[str, ...]) -> tuple[str, ...]:
        """Try the network out.

        Args:
            name: What the model is called.
            model: The network, in evaluation mode.
            data: The data, of which two training images are shown to the network.
            layers: The layers to be diagnosed and constrained.

        Returns:
            Notes on the network.

        Raises:
            InputError: If the network cannot serve the run.
        """
        images = trial_images(model, data)
        started = time.process_time()
        try:
            sound = gives_live_maps(model, images, layers)
        except Exception:  # a network of the user's own can fail in any way; the full trial says how
            sound = False
        self.forward = (time.process_time() - started) / len(images)
        known = MODELS.get(name)
        if not sound or known is None or known.layers != layers:
            return self.in_full(name, model, data, layers)
        return ()


def plan(settings: Settings, verb: Verb) -> dict[str, object]:
    """Say what would run and about how long it takes, from one training step that is timed.

    Args:
        settings: The settings of the run.
        verb: What would be run.

    Returns:
        What `--dry-run --json` prints: the run's data, model, layers and arms, `seconds_by_stage`, `seconds`,
        and how sure that is: `seconds_low`, `seconds_high`, `how_sure`.

    Raises:
        InputError: Exactly where the run itself would refuse its input.
    """
    if verb == "demo":
        base, further = demo_settings(settings)
        training, checkup = (
            _plan(base, "train", needs_weights=False),
            _plan(further, "checkup", needs_weights=False),
        )
        sums = {
            name: round(float(str(training[name])) + float(str(checkup[name])), 1)
            for name in ("seconds", "seconds_low", "seconds_high")
        }
        return {"verb": "demo", **sums, "train": training, "checkup": checkup}
    return _plan(settings, verb, needs_weights=verb != "train")


def _prepared(settings: Settings, verb: Verb, *, needs_weights: bool) -> tuple[Case, QuickTrial]:
    """Prepare the case as the verb would, with a quick trial of the network."""
    if verb in ("train", "treat", "checkup"):
        check_trackers(settings.tensorboard, settings.tracker)
    settings = settings.but(auto=settings.auto and verb == "checkup")
    trial = QuickTrial(try_out_training if verb == "train" else try_out_network)
    with one_thread():
        case = prepare(settings, verb, needs_weights=needs_weights, try_out=trial)
    RunFolder.refuse_existing(case.folder)
    reused_diagnosis(case)
    return case, trial


def _timed_step(case: Case, trial: QuickTrial) -> StepTime:
    """Time one step on the run's first batch; a network that it goes wrong on is tried out in full."""
    step = time_one_step(case, case.data.train.first_batch(0), trial.forward)
    if not step.finite:
        trial.in_full(case.plan.model, case.model, case.data, case.layers)
    return step


def _plan(settings: Settings, verb: Verb, *, needs_weights: bool = True) -> dict[str, object]:
    """Plan one verb."""
    case, trial = _prepared(settings, verb, needs_weights=needs_weights)
    step = _timed_step(case, trial)
    steps = _steps_per_epoch(case, verb) * case.plan.recipe.epochs
    cost: dict[str, object] = {}
    search: dict[str, object] = {}
    if verb == "train":
        seconds = {"train": step.seconds * steps}
    else:
        passes = diagnosis_passes(case) or passes_of(case)
        cost = {"diagnosis": cost_of(case, passes)}
        seconds = {"diagnose": _diagnosis_seconds(case, verb, step, passes)}
        if case.second:
            seconds["second opinion"] = sum(_opinion_seconds(case, opinion) for opinion in case.second)
    if verb in ("treat", "checkup"):
        stages, search = _treatment_seconds(case, verb, step, steps)
        seconds |= stages
    total = sum(seconds.values())
    return {
        "verb": verb,
        "out": str(case.folder),
        "model": case.plan.model,
        "data": case.plan.data,
        "categories": len(case.classes),
        "images": _images(case, verb),
        "masks": case.data.has_masks,
        "preprocessing": case.data.preprocessing.to_json(),
        "layers": case.layers,
        **cost,
        **({"search": search} if search else {}),
        "seeds": case.plan.seeds,
        "epochs": case.plan.epochs,
        "steps_per_arm": steps,
        "primary": case.plan.primary,
        "seconds_by_stage": {name: round(value, 1) for name, value in seconds.items()},
        "seconds": round(total, 1),
        "seconds_low": round(total / RUN_WITHIN, 1),
        "seconds_high": round(total * RUN_WITHIN, 1),
        "how_sure": _how_sure(step),
    }


def _how_sure(step: StepTime) -> dict[str, object]:
    """Say what the times rest on, and how far the real ones may be from them."""
    return {
        "timed": step.description,
        "seconds_per_step": float(f"{step.seconds:.3g}"),
        "step_within_factor": STEP_WITHIN,
        "within_factor": RUN_WITHIN,
        "text": (
            f"{step.description}; all other times follow from it and from counted operations. The real time "
            f"should lie between 1/{RUN_WITHIN:g} and {RUN_WITHIN:g} times the estimate, as long as this "
            "machine has as much other work as now"
        ),
    }


def _images(case: Case, verb: Verb) -> dict[str, int]:
    """Count the images of every split, the one that a comparison makes included."""
    swapped = swapped_count(case) if verb == "checkup" else 0
    return {
        "train": len(case.data.train),
        "validation": len(case.data.validation),
        **{name: len(images) for name, images in case.data.tests.items()},
        **({SWAPPED: swapped} if swapped else {}),
    }


def _treatment_seconds(
    case: Case, verb: Verb, step: StepTime, steps: int
) -> tuple[dict[str, float], dict[str, object]]:
    """Estimate the arms, the search for one, and the comparison; return seconds by stage, and the search."""
    arms, seconds = _arms(case), dict[str, float]()
    tried = steps_of_rates(case)
    if tried:
        images = len(case.data.validation) * len(TIMES)
        seconds["learning rate"] = len(TIMES) * tried * step.seconds + step.forward * images
    search: dict[str, object] = {}
    built = built_constraints(case, constraints_of(case))
    shares = tail_shares(
        case, list(dict.fromkeys([*case.layers, *(n for each in built for n in each.layers)]))
    )
    if case.plan.chooses:
        search = search_forecast(case, step.seconds, lambda texts: constraint_price(case, texts, shares))
        seconds["search"] = float(str(search.pop("seconds")))
        arms = tuple(dict.fromkeys(["control", CHOSEN, *listed_arms(case.plan, masked_count(case.data))]))
    price = 1.0 + (constraint_price(case, constraints_of(case), shares) - 1.0) / case.plan.penalty_every
    for arm in arms:
        cure = cure_named(arm)
        factor = price if cure is None else 0.0 if cure.edits in arms else cure.passes
        if arm == CHOSEN and not case.plan.auto:
            factor = 1.0  # without --auto and --budget only cures are tried whose steps cost no more
        seconds[arm] = factor * step.seconds * steps * case.plan.seeds
    if verb == "checkup":
        images = sum(len(split) for split in case.data.tests.values()) + swapped_count(case)
        seconds["compare"] = step.forward * images * (1 + len(arms) * case.plan.seeds)
    return seconds, search


def _opinion_seconds(case: Case, opinion: SecondOpinion) -> float:
    """Estimate how long another network takes for its images, from its second pass for a training image.

    With new heads it also judges the labels of all training images.
    """
    splits = [images for images in (opinion.images, opinion.training) if isinstance(images, Loader)]
    prepared = opinion_on(opinion, case.data.train).images
    assert isinstance(prepared, Loader)
    pixels = first_images(opinion.model, prepared.select(prepared.table.ids[:1]))
    with frozen_eval(opinion.model) as frozen, torch.inference_mode():
        frozen.logits(pixels)
        seconds = timed(lambda: frozen.logits(pixels))
    return seconds * (sum(map(len, splits)) + (len(case.data.train) if opinion.new_head else 0))


def _steps_per_epoch(case: Case, verb: Verb) -> int:
    """Return the steps of an epoch: annotated images take places in the batches of a treatment."""
    train, names = case.data.train, constraints_of(case)
    constrained = any(CONSTRAINTS[name.partition(" ")[0]].needs_masks for name in names)
    arms = _arms(case)
    uses = ("treated" in arms and constrained) or any(uses_masks(cure_named(arm)) for arm in arms)
    if verb in ("treat", "checkup") and case.data.has_masks and uses:
        size = min(train.batch_size, len(train))
        share = share_drawn(case.plan.annotated_per_batch)
        train = replace(train, annotated_per_batch=drawn_per_batch(share, size))
    return train.steps_per_epoch


def _arms(case: Case) -> Sequence[str]:
    """Return the names of the arms of a treatment, the control among them."""
    return tuple(remedies_named(case.plan.arm_names or ("treated",)))


def _diagnosis_seconds(case: Case, verb: Verb, step: StepTime, passes: float) -> float:
    """Estimate the diagnosis: forward passes for every image, and the evidence of the sifted ones.

    `diagnose` and `checkup` run all images once more, to look at their labels.
    """
    looks = 1 if verb == "treat" else 2
    sifted = min(len(case.data.train), case.plan.images_per_category * len(case.classes))
    return step.forward * (looks * len(case.data.train) + passes * sifted)
