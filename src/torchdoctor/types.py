"""Name the things that travel between the stages: batches, diagnoses, treatments, comparisons, errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

Evidence = Literal["gradient", "gradient_x_activation"]


PenaltyEvidence = Literal["gradient", "gradient_x_activation", "positive_gradient"]


Scale = Literal["none", "share"]


Targets = Literal["prediction", "label"]


ReduceDraws = Literal["mean", "sum"]


NormPolicy = Literal["frozen", "train"]


Precision = Literal["fp32", "bf16", "fp16"]


BudgetKind = Literal["steps", "time"]


Verdict = Literal["helped", "harmed", "no evidence"]


Progress = Callable[[str, int, int], None]  # stage, done, of how many


class ModelDoctorError(Exception):
    """A run that failed for a known reason; the command line ends with `exit_code`."""

    exit_code = 1


class InputError(ModelDoctorError):
    """Something given by the user cannot be used: what was found, what was expected, what to do."""

    exit_code = 2


class Interrupted(ModelDoctorError):
    """The user stopped a training; its state was saved first."""

    exit_code = 130


def check_choice(name: str, value: object, kind: Any) -> None:
    """Raise InputError unless `value` is one of the words of a Literal."""
    if value not in get_args(kind):
        raise InputError(f"{name} {value!r}: expected one of {', '.join(map(str, get_args(kind)))}")


def silent(_stage: str, _done: int, _total: int) -> None:
    """Report no progress."""
