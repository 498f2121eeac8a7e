"""Write what to do next: at the end of a diagnosis, and at the end of a checkup."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from torchdoctor.case.outcome import Outcome
from torchdoctor.case.preparation import Case
from torchdoctor.case.surroundings import in_memory
from torchdoctor.diagnosis.causes_result import Causes
from torchdoctor.diagnosis.result import Diagnosis
from torchdoctor.diagnosis.suspects_result import LIST, Suspects
from torchdoctor.files.reading import Number, Record, read_record
from torchdoctor.files.writing import write_json
from torchdoctor.models.pretrained import PRETRAINED
from torchdoctor.proof.result import Comparison
from torchdoctor.treatment.arms import LEAST_MASKS
from torchdoctor.treatment.next_steps import Known, NextStep, next_steps

FILE = "next_steps.json"


class StepRecord(Record):
    """A step in `next_steps.json`: the fields of a `NextStep`."""

    action: str
    cause: str
    errors: Number
    share: Number
    effect: str = ""
    command: str = ""


class StepsRecord(Record):
    """What `next_steps.json` holds."""

    steps: tuple[StepRecord, ...]


def steps_stage(
    case: Case,
    folder: Path,
    diagnosis: Diagnosis,
    causes: Causes,
    suspects: Suspects | None,
    outcome: Outcome | None = None,
) -> tuple[NextStep, ...]:
    """Propose what to do next, and write `next_steps.json`.

    Args:
        case: The prepared case.
        folder: The run's folder.
        diagnosis: The diagnosis of the case's network.
        causes: The causes of its validation errors.
        suspects: Training images whose labels look wrong; None: nobody looked.
        outcome: What a checkup ended with; None after a diagnosis.

    Returns:
        The steps, the most useful first.
    """
    known = Known(
        causes,
        diagnosis,
        suspects,
        has_masks=int(case.data.train.table.has_mask.sum()) >= LEAST_MASKS,
        command=_command(case, folder, treated=outcome is not None),
        treated=outcome is not None,
        review="" if in_memory(case.plan) else f"torchdoctor review {shlex.quote(str(folder))}",
        second_opinion="" if case.second else _second_opinion(case, folder),
    )
    steps = next_steps(known)
    if outcome is not None and outcome.comparison is not None:
        steps = (_use(folder, outcome, outcome.comparison), *steps)
    steps = tuple(_with_list(step, folder) for step in steps)
    write_json(folder / FILE, {"steps": [asdict(step) for step in steps]})
    return steps


def read_steps(folder: Path) -> tuple[NextStep, ...]:
    """Read the steps of a run.

    Args:
        folder: The run's folder.

    Returns:
        The steps; none where an earlier version made the run.

    Raises:
        InputError: The file is damaged.
    """
    if not (folder / FILE).is_file():
        return ()
    return tuple(NextStep(**step.model_dump()) for step in read_record(folder / FILE, StepsRecord).steps)


def steps_record(steps: Sequence[NextStep]) -> dict[str, object]:
    """Return what `--json` prints of the steps.

    Args:
        steps: The steps.

    Returns:
        The steps under `next_steps`.
    """
    return {"next_steps": [asdict(step) for step in steps]}


def _command(case: Case, folder: Path, *, treated: bool) -> str:
    """Return the command that runs a checkup with the settings of a run; none for a network of Python."""
    if in_memory(case.plan):
        return ""
    config = shlex.quote(str(folder / "config.yaml"))
    again = shlex.quote(f"{folder}-{'again' if treated else 'checkup'}")
    evidence = "" if treated else " --evidence auto"
    return f"torchdoctor checkup --config {config}{evidence} --out {again}"


def _second_opinion(case: Case, folder: Path) -> str:
    """Return the command that finds causes again with another network; none for a network of Python."""
    if in_memory(case.plan):
        return ""
    config, again = shlex.quote(str(folder / "config.yaml")), shlex.quote(f"{folder}-second-opinion")
    return f"torchdoctor diagnose --config {config} --second-opinion {PRETRAINED} --out {again}"


def _with_list(step: NextStep, folder: Path) -> NextStep:
    """Return a step whose command names the list of labels by its place."""
    before, flag, name = step.command.partition(f"--labels {LIST}")
    if not flag:
        return step
    return NextStep(
        **{**asdict(step), "command": f"{before}--labels {shlex.quote(str(folder / LIST))}{name}"}
    )


def _use(folder: Path, outcome: Outcome, comparison: Comparison) -> NextStep:
    """Return the step that says whose weights to use, from the verdict."""
    gain = comparison.splits[comparison.primary].first.gain
    chosen = outcome.record.get("handed_back")
    use = chosen["use"] if isinstance(chosen, dict) else comparison.arm
    over = f"{comparison.arm} gained {gain} points over its control on {comparison.primary}"
    if comparison.verdict == "helped" and use == comparison.arm:
        action = f"Use the weights in {folder / 'model'}: {over}, which is proven."
    elif comparison.verdict == "harmed":
        action = f"Do not use the weights of {comparison.arm}: {over}, so it did harm."
    else:
        action = (
            f"No cure is proven to help: {over}. The weights in {folder / 'model'} are those of {use}, the "
            "best on the validation images."
        )
    seen = f"A gain of {gain.detectable:.1f} points would be seen in about four cases of five."
    return NextStep(action, "all", 0.0, 0.0, seen if gain.detectable < 1000 else "")
