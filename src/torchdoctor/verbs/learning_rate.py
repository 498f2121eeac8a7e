"""Choose the learning rate of all arms on the validation images, where a run asks for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torchdoctor.case.preparation import Case
from torchdoctor.case.settings import MEASURED
from torchdoctor.files.reading import Number, Record, read_record
from torchdoctor.files.writing import write_json
from torchdoctor.treatment.learning_rate import affordable_steps, measured_rate, short_steps
from torchdoctor.treatment.recipe import Recipe
from torchdoctor.types import Interrupted
from torchdoctor.verbs.begin import Watch

FILE = "learning_rate.json"


class TriedRate(Record):
    """A learning rate, and the validation accuracy in percent of a short training with it."""

    learning_rate: float
    validation_accuracy: Number


class RatesRecord(Record):
    """What `learning_rate.json` holds: the rates tried so far, and the best once all were tried."""

    tried: tuple[TriedRate, ...]
    chosen: float | None = None
    steps: int = 0


def steps_of_rates(case: Case) -> int:
    """Return how many steps the short training at each learning rate has.

    Args:
        case: The prepared case.

    Returns:
        The number; 0 where no rates are tried, because one was given, the training is too short, or there are
        no validation images.
    """
    plan, per_epoch = case.plan, case.data.train.steps_per_epoch
    if plan.learning_rate == MEASURED:
        return short_steps(plan.recipe, per_epoch)
    if plan.learning_rate != "auto" or not len(case.data.validation):
        return 0
    return affordable_steps(plan.recipe, per_epoch, plan.seeds)


def with_rate(case: Case, folder: Path, watch: Watch) -> Case:
    """Return the case with the learning rate that its short trainings chose, and record it in the run.

    Args:
        case: The prepared case.
        folder: The run's folder; rates that an earlier process tried are read from it.
        watch: Who watches the run; it is asked after every rate whether to stop.

    Returns:
        The same case where its learning rate is a number.

    Raises:
        Interrupted: The watch asked to stop; the rates tried so far are saved.
        ModelDoctorError: The network cannot be trained at any of the rates.
    """
    steps = steps_of_rates(case)
    if not steps:
        if case.plan.learning_rate == "auto":
            watch.say(
                f"learning rate {Recipe.learning_rate:g} for all arms: there are too few steps, or no "
                "validation images, to try others out"
            )
            return replace(case, plan=case.plan.but(learning_rate=Recipe.learning_rate))
        return case
    file = folder / FILE
    record = read_record(file, RatesRecord) if file.is_file() else RatesRecord(tried=())
    chosen = record.chosen
    if chosen is None:
        known = {one.learning_rate: one.validation_accuracy for one in record.tried}

        def note(accuracies: Mapping[float, float]) -> None:
            write_json(file, {"tried": _listed(accuracies)})
            if case.processes.any(watch.stop())[0]:
                raise Interrupted("the choice of the learning rate was stopped; the rates tried are saved")

        found = measured_rate(
            case.model, case.data.train, case.data.validation, case.plan.recipe, steps=steps,
            seed=case.plan.seed, known=known, note=note, progress=watch.progress,
            processes=case.processes,
        )  # fmt: skip
        write_json(file, {"chosen": found.chosen, "steps": found.steps, "tried": _listed(found.accuracies)})
        watch.say(found.sentence)
        chosen = found.chosen
    return replace(case, plan=case.plan.but(learning_rate=chosen))


def _listed(accuracies: Mapping[float, float]) -> list[dict[str, float | None]]:
    """Return accuracies by rate as JSON can hold them."""
    return [
        {"learning_rate": rate, "validation_accuracy": None if value != value else value}
        for rate, value in accuracies.items()
    ]
