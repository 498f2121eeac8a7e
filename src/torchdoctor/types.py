"""Name the choices, the callbacks and the errors that every part of the package shares."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

# How a diagnosis measures evidence: the absolute derivative of a category's score by a layer's map (Eq. 2),
# or that derivative times the map.
Evidence = Literal["gradient", "gradient_x_activation"]


# How a penalty measures evidence: as above, or only the positive part of the derivative.
PenaltyEvidence = Literal["gradient", "gradient_x_activation", "positive_gradient"]


# What a penalty is divided by: nothing, or the total evidence that it looks at (a share of 0 to 1).
Scale = Literal["none", "share"]


# The category whose evidence a penalty looks at: the predicted category, or the label.
Targets = Literal["prediction", "label"]


# How the penalties of several noise draws are combined.
ReduceDraws = Literal["mean", "sum"]


# Whether batch-norm layers keep their running statistics during a treatment, or go on updating them.
NormPolicy = Literal["frozen", "train"]


# The floating-point format in which the forward pass of a training computes.
Precision = Literal["fp32", "bf16", "fp16"]


# What may be asked for: `auto` is bf16 on GPUs that compute in it, else fp32.
AskedPrecision = Literal["auto", "fp32", "bf16", "fp16"]


# How an image becomes a square: its centre is cut out, or both of its sides are scaled to the size.
Resize = Literal["crop", "squash"]


# What all arms of a treatment get the same amount of: optimiser steps, or seconds of training.
BudgetKind = Literal["steps", "passes", "time"]


# A program beside the run folder that training histories go to.
Tracker = Literal["none", "tensorboard", "wandb", "mlflow", "trackio"]


# What a comparison concludes about an arm.
Verdict = Literal["helped", "harmed", "no evidence"]


# Called as work advances: progress(stage, units done, units in all).
Progress = Callable[[str, int, int], None]


class ModelDoctorError(Exception):
    """A run that failed for a known reason.

    Attributes:
        exit_code: The status with which the command line ends.
    """

    exit_code = 1


class InputError(ModelDoctorError):
    """A file, a setting or an argument of the user's cannot be used.

    The message says which value was met, what was expected, and what to do.
    """

    exit_code = 2


class Interrupted(ModelDoctorError):
    """The user stopped a training; its state was saved before this was raised."""

    exit_code = 130


def check_choice(name: str, value: object, kind: Any) -> None:
    """Check that a setting is among its allowed values.

    Args:
        name: The name of the setting, for the error message.
        value: The value to check.
        kind: The `Literal` type that lists the allowed values, such as `Evidence`.

    Raises:
        InputError: The value is not in the list; the message repeats the list.
    """
    if value not in get_args(kind):
        raise InputError(f"{name} {value!r}: expected one of {', '.join(map(str, get_args(kind)))}")


def silent(_stage: str, _done: int, _total: int) -> None:
    """Ignore progress: the `Progress` callback that does nothing."""


def first_line(error: BaseException) -> str:
    """Return what an error of other people's code says, in one line.

    Args:
        error: The error, as it was caught.

    Returns:
        The first line of its text; where it has none, its kind and the line of code that raised it.
    """
    text = str(error).strip()
    if text:
        return text.splitlines()[0]
    kind, frames = type(error).__name__, traceback.extract_tb(error.__traceback__)
    if not frames:
        return kind
    place = f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}"
    return f"{kind} at {place}{f': {frames[-1].line}' if frames[-1].line else ''}"
