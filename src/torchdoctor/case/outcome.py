"""Run one stage of a prepared case and write what it made into the run folder."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torchdoctor.case.preparation import Case
from torchdoctor.case.surroundings import loading_code
from torchdoctor.diagnosis.diagnose import state_sha256
from torchdoctor.diagnosis.result import Diagnosis
from torchdoctor.proof.result import Comparison
from torchdoctor.treatment.result import Treatment
from torchdoctor.types import InputError

DONE, GATE_NOT_MET, INCONCLUSIVE = 0, 3, 4


@dataclass(frozen=True)
class Outcome:
    """What a verb ends with: its exit code, what `--json` prints, and the objects behind it."""

    exit_code: int
    record: Mapping[str, object]
    diagnosis: Diagnosis | None = None
    treatment: Treatment | None = None
    comparison: Comparison | None = None
    loading_code: str | None = None


def arm_weights(folder: Path, arm: str = "treated") -> Path:
    """Return where a run keeps an arm's weights of its first seed."""
    return folder / "treatment" / arm / "seed0" / "model.safetensors"


def check_weights(case: Case, diagnosis: Diagnosis, source: str) -> None:
    """Raise InputError unless the case's weights are those that were diagnosed."""
    found = state_sha256(case.model)
    if found != diagnosis.model_sha256:
        raise InputError(
            f"{source} was made of other weights than {case.plan.weights!r} holds now (sha256 "
            f"{diagnosis.model_sha256[:12]}..., found {found[:12]}...): give the weights that were diagnosed"
        )


def arm_of(case: Case, comparison: Comparison | None = None) -> str:
    """Return the arm that verdicts speak of: the one compared first, or the first that was named."""
    if comparison is not None:
        return comparison.arm
    return next((arm for arm in case.plan.arms if arm != "control"), "treated")


def exit_code_of(diagnosis: Diagnosis, comparison: Comparison) -> int:
    """Return 0 helped by what was asked, 3 harmed or gained too little, 4 nothing could be said."""
    if diagnosis.inconclusive or comparison.verdict == "no evidence":
        return INCONCLUSIVE
    gain = comparison.splits[comparison.primary].first.gain.mean
    return DONE if comparison.verdict == "helped" and gain >= comparison.min_gain else GATE_NOT_MET


def command_of(folder: Path, verb: str) -> str:
    """Return the command that runs the same again."""
    config, again = shlex.quote(str(folder / "config.yaml")), shlex.quote(f"{folder}-again")
    return f"torchdoctor {verb} --config {config} --out {again}"


def lines_of(case: Case, folder: Path, arm: str | None = None) -> str:
    """Return the lines that load an arm's weights in plain PyTorch."""
    return loading_code(case.plan, len(case.classes), arm_weights(folder, arm or arm_of(case)))


def notes_of(diagnosis: Diagnosis) -> list[str]:
    """Return what a reader must know about the diagnosis."""
    most = diagnosis.sifting.images_per_category
    notes = [f"{name}: not diagnosed: 0 of {most}" for name in diagnosis.not_diagnosed]
    for layer in diagnosis.layers:
        notes += [f"{layer.name}: {flag}" for flag in layer.flags]
    return notes
