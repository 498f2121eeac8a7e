"""Choose the arms and constraints of a treatment: by default, by name, or functions of the user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from torchdoctor.diagnosis.diagnose import state_sha256
from torchdoctor.diagnosis.result import Diagnosis
from torchdoctor.treatment.constraints import Constraint, constraints_named, default_constraints
from torchdoctor.treatment.cure import Cure, Remedy
from torchdoctor.treatment.remedies import COMPLETED, REMEDIES, cure_named
from torchdoctor.treatment.settings import TreatmentSettings
from torchdoctor.types import InputError

LEAST_MASKS = 20  # with fewer the batches would contain the same few objects again and again


def check_diagnosed(model: nn.Module, diagnosis: Diagnosis) -> None:
    """Check that a network can be treated by a diagnosis.

    Args:
        model: The network, without wrappers.
        diagnosis: The diagnosis.

    Raises:
        InputError: Nothing of the network can change, or it is not the network that was diagnosed.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError("no parameter of the model is trainable (all are frozen): nothing could change")
    if diagnosis.model_sha256 != state_sha256(model):
        raise InputError(
            "the diagnosis was made of other weights (sha256 "
            f"{diagnosis.model_sha256[:12]}..., the model has {state_sha256(model)[:12]}...): diagnose this "
            "model, or load the weights that were diagnosed"
        )


def default_arms(masked: int) -> tuple[str, ...]:
    """Return the arms that are compared where the user names none; verdicts speak of the second.

    With 20 masks or more the arm `swap` is among them: training with swapped backgrounds improved networks
    that no constraint improved (docs/when-it-helps.md).

    Args:
        masked: The number of training images with masks.

    Returns:
        The names of the arms.
    """
    return ("control", "swap", "treated") if masked >= LEAST_MASKS else ("control", "treated")


def name_of(remedy: Remedy) -> str:
    """Return what the arm of a remedy is called.

    Args:
        remedy: A function of the user, or a `Cure`.

    Returns:
        The cure's own name, or that of the function.
    """
    if isinstance(remedy, Cure):
        return remedy.name
    return str(getattr(remedy, "__name__", type(remedy).__name__))


def remedies_named(arms: Sequence[str | Remedy]) -> dict[str, Remedy | None]:
    """Return the remedy of each arm.

    Args:
        arms: Names of arms, or functions of the user, which are named after themselves. A `Cure` with a list
            of labels or images may take the place of the built-in one of its name, which has none.

    Returns:
        The remedies by name; None for `treated`. The control comes first even where it is not named.

    Raises:
        InputError: A name is unknown or taken, or there is no arm but the control.
    """
    remedies: dict[str, Remedy | None] = {"control": REMEDIES["control"]}
    for arm in arms:
        name = arm if isinstance(arm, str) else name_of(arm)
        if not isinstance(arm, str):
            listed = isinstance(arm, Cure) and name in COMPLETED
            if name in remedies or (name in REMEDIES and not listed) or name in ("treated", "base"):
                raise InputError(f"arm {name!r}: the name is taken; give your function another")
            remedies[name] = arm
        elif name == "treated":
            remedies[name] = None
        elif (cure := cure_named(name)) is not None:
            remedies[name] = cure
        else:
            known = ", ".join(["control", "treated", *list(REMEDIES)[1:]])
            edits = ", ".join(each.name for each in REMEDIES.values() if not each.passes)
            raise InputError(
                f"arm {name!r} is unknown; there are: {known}; behind a plus sign, as in swap+balance, "
                f"may be: {edits}"
            )
    if len(remedies) == 1:
        raise InputError("no arm but the control: name an arm to compare it with, such as treated")
    return remedies


def chosen_constraints(
    constraints: Sequence[str | Constraint] | None,
    layers: Sequence[str] | None,
    diagnosis: Diagnosis,
    settings: TreatmentSettings,
    *,
    has_masks: bool,
) -> tuple[Constraint, ...]:
    """Build the constraints of the arm `treated`, each with its layers.

    Args:
        constraints: Texts or constraints; None as in `settings`.
        layers: The layers of those that name none of their own; None: the last diagnosed layer.
        diagnosis: The diagnosis; only diagnosed layers may be named.
        settings: Evidence, scale, targets and weights of those that name none of their own.
        has_masks: Whether training images have object masks.

    Returns:
        The constraints.

    Raises:
        InputError: Masks are missing, a layer was not diagnosed, or a name is taken or used twice.
    """
    if constraints is None:
        asked = settings.constraints
        constraints = default_constraints(has_masks) if asked == "auto" else asked
    weight = settings.weights_by_constraint
    names = [text.partition(" ")[0] for text in constraints if isinstance(text, str)]
    weights = weight if isinstance(weight, dict) else dict.fromkeys(names, weight)
    known = [layer.name for layer in diagnosis.layers]
    chosen: tuple[Constraint, ...] = ()
    for item in constraints:
        if isinstance(item, str):
            chosen += constraints_named(
                [item], layers=layers or known[-1:], evidence=settings.penalised_evidence,
                scale=settings.scale, targets=settings.targets, weights=weights,
            )  # fmt: skip
        else:
            chosen += (item,)
    _check_names([constraint.name for constraint in chosen], weights if isinstance(weight, dict) else {})
    for constraint in chosen:
        if constraint.needs_masks and not has_masks:
            raise InputError(
                f"constraint {constraint.name!r} needs object masks and the training data has none: give "
                "data with masks or boxes, or leave the constraint out"
            )
        for layer in constraint.layers:
            if layer not in known:
                raise InputError(
                    f"constraint {constraint.name!r} is on layer {layer!r}, which was not diagnosed; "
                    f"diagnosed: {', '.join(known)}"
                )
    return chosen


RESERVED = ("loss", "auxiliary", "epoch", "validation_accuracy")


def _check_names(names: Sequence[str], weights: Mapping[str, object]) -> None:
    """Refuse constraints that the history could not tell apart, and weights of constraints not there."""
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"constraint {name!r} is given twice: give each a name of its own")
        if name in RESERVED:
            raise InputError(
                f"constraint {name!r}: this name is taken by the training history; choose another"
            )
    for name in weights:
        if name not in names:
            raise InputError(f"weight of {name!r}: no such constraint here; there are: {', '.join(names)}")


def uses_masks(remedy: Remedy | None) -> bool:
    """Return whether the steps of an arm may look at object masks, so that every batch has to show some.

    Args:
        remedy: The remedy; None for `treated`, whose constraints say so.

    Returns:
        True for functions of the user too, which may look at them; a `Cure` says whether it needs them.
    """
    return "masks" in remedy.needs if isinstance(remedy, Cure) else remedy is not None
