"""The outcome of a command: exit code, record, and how to repeat the run or use its result."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torchdoctor.case.preparation import Case
from torchdoctor.case.surroundings import in_memory, loading_code
from torchdoctor.diagnosis.diagnose import state_sha256
from torchdoctor.diagnosis.result import Diagnosis
from torchdoctor.display.counts import count_of
from torchdoctor.proof.result import Comparison
from torchdoctor.proof.verdict import gain_is_enough
from torchdoctor.treatment.result import Treatment
from torchdoctor.types import InputError

MOST_NOTED = 20  # categories without a diagnosis that get a remark each
DONE, GATE_NOT_MET, INCONCLUSIVE = 0, 3, 4


@dataclass(frozen=True)
class Outcome:
    """The outcome of a command.

    Attributes:
        exit_code: 0: done; 3: harmed, or the gain asked for is not proven; 4: inconclusive.
        record: What `--json` prints.
        diagnosis: The diagnosis; None where the command makes none.
        treatment: The trained arms; None where nothing was treated.
        comparison: The comparison; None where nothing was compared.
        loading_code: Lines of Python that load the resulting weights; None where there are none.
    """

    exit_code: int
    record: Mapping[str, object]
    diagnosis: Diagnosis | None = None
    treatment: Treatment | None = None
    comparison: Comparison | None = None
    loading_code: str | None = None


def arm_weights(folder: Path, arm: str = "treated") -> Path:
    """Return the file of an arm's weights of the first seed.

    Args:
        folder: The run's folder.
        arm: The arm's name.

    Returns:
        The file in the run's folder.
    """
    return folder / "treatment" / arm / "seed0" / "model.safetensors"


def check_weights(case: Case, diagnosis: Diagnosis, source: str) -> None:
    """Refuse a diagnosis of other weights than those of the case.

    Args:
        case: The prepared case.
        diagnosis: A diagnosis.
        source: Where the diagnosis comes from, for the message.

    Raises:
        InputError: The sha256 of the weights differ.
    """
    sha256 = state_sha256(case.model)
    if sha256 != diagnosis.model_sha256:
        raise InputError(
            f"{source} was made of other weights than {case.plan.weights!r} holds now (sha256 "
            f"{diagnosis.model_sha256[:12]}..., found {sha256[:12]}...): give the weights that were diagnosed"
        )


def arm_of(case: Case, comparison: Comparison | None = None) -> str:
    """Return the arm that the verdict is about.

    Args:
        case: The prepared case.
        comparison: The comparison, if there is any.

    Returns:
        The compared arm; before a comparison, the first arm of the plan that is not the control.
    """
    if comparison is not None:
        return comparison.arm
    return next((arm for arm in case.plan.arm_names if arm != "control"), "treated")


def exit_code_of(diagnosis: Diagnosis, comparison: Comparison) -> int:
    """Turn a verdict into an exit code.

    Args:
        diagnosis: The diagnosis that the treatment rests on.
        comparison: The comparison.

    Returns:
        0: helped, and the gain is proven to be at least `min_gain`. 3: harmed, or that is not proven.
        4: no evidence, or the diagnosis is inconclusive.
    """
    if diagnosis.inconclusive or comparison.verdict == "no evidence":
        return INCONCLUSIVE
    enough = gain_is_enough(comparison.splits[comparison.primary].first.gain, comparison.min_gain)
    return DONE if comparison.verdict == "helped" and enough else GATE_NOT_MET


def command_of(case: Case, folder: Path, verb: str) -> str:
    """Return the command that runs the same again.

    Args:
        case: The prepared case.
        folder: The run's folder.
        verb: The command that made the run.

    Returns:
        A line for a shell, which writes to another folder; a line of Python where network and images were
        given from Python.
    """
    if in_memory(case.plan):
        return f"torchdoctor.{verb}(model, train, validation, test, ...)  # with the settings below"
    config, again = shlex.quote(str(folder / "config.yaml")), shlex.quote(f"{folder}-again")
    return f"torchdoctor {verb} --config {config} --out {again}"


def arm_loading_code(case: Case, folder: Path, arm: str | None = None) -> str:
    """Return the code that loads an arm's weights in plain PyTorch.

    Args:
        case: The prepared case.
        folder: The run's folder.
        arm: The arm's name; None: the arm that the verdict is about.

    Returns:
        Lines of Python.
    """
    return loading_code(case.plan, len(case.classes), arm_weights(folder, arm or arm_of(case)))


def notes_of(diagnosis: Diagnosis) -> list[str]:
    """Return what a reader must know about the diagnosis.

    Args:
        diagnosis: The diagnosis.

    Returns:
        Remarks: categories that could not be diagnosed, and what is unusual about layers.
    """
    most = diagnosis.sifting.images_per_category
    missing = diagnosis.not_diagnosed
    notes = [f"{name}: not diagnosed: 0 of {most}" for name in missing[:MOST_NOTED]]
    if len(missing) > MOST_NOTED:
        notes.append(
            f"{count_of(len(missing) - MOST_NOTED, 'more category', 'more categories')}: not "
            f"diagnosed: 0 of {most}"
        )
    for layer in diagnosis.layers:
        notes += [f"{layer.name}: {flag}" for flag in layer.flags]
    return notes
