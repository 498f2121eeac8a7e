"""Penalise evidence that lies on the wrong kernels (Eq. 5) or on the background (Eq. 6)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from jaxtyping import Bool, Float, Int
from torch import Tensor

from torchdoctor.types import Evidence, InputError, PenaltyEvidence, Scale, Targets, check_choice


@dataclass(frozen=True)
class LayerEvidence:
    """The evidence of a batch at a layer, which a penalty is computed from; it can be differentiated.

    Attributes:
        layer: The name of the layer.
        target: The evidence for the target category (y_n of Eq. 5), not negative.
        runner_up: The evidence for the runner-up category (y_s of Eq. 5), not negative.
        target_category: The number of each image's target category.
        runner_up_category: The number of each image's runner-up category.
        correlated: Which kernels are correlated with each category.
        diagnosed: Which categories were diagnosed; the rows of the others in `correlated` mean nothing.
        background: 1 on the background, 0 on the object, at the size of the map; 0 everywhere for images
            without a mask.
    """

    layer: str
    target: Float[Tensor, "draw batch kernel height width"]
    runner_up: Float[Tensor, "draw batch kernel height width"]
    target_category: Int[Tensor, " batch"]
    runner_up_category: Int[Tensor, " batch"]
    correlated: Bool[Tensor, "category kernel"]
    diagnosed: Bool[Tensor, " category"]
    background: Float[Tensor, "batch 1 height width"]

    @cached_property
    def target_by_kernel(self) -> Float[Tensor, "draw batch kernel"]:
        """The target's evidence summed over space."""
        return self.target.sum((-2, -1))

    @cached_property
    def runner_up_by_kernel(self) -> Float[Tensor, "draw batch kernel"]:
        """The runner-up's evidence summed over space."""
        return self.runner_up.sum((-2, -1))


Penalty = Callable[[LayerEvidence], Float[Tensor, "draw batch"]]


def channel_wise(evidence: LayerEvidence) -> Float[Tensor, "draw batch"]:
    """Sum the target's evidence on kernels not correlated with it, and all of the runner-up's (Eq. 5).

    Args:
        evidence: The evidence of a batch at a layer.

    Returns:
        The penalty; the first term is 0 for categories that were not diagnosed.
    """
    wrong = ~evidence.correlated & evidence.diagnosed[:, None]
    unrelated = wrong[evidence.target_category].to(evidence.target)
    return (evidence.target_by_kernel * unrelated).sum(-1) + evidence.runner_up_by_kernel.sum(-1)


def space_wise(evidence: LayerEvidence) -> Float[Tensor, "draw batch"]:
    """Sum the target's evidence on the background over all kernels (Eq. 6).

    Args:
        evidence: The evidence of a batch at a layer.

    Returns:
        The penalty; 0 for images without a mask.
    """
    return (evidence.target.sum(2) * evidence.background[:, 0]).sum((-2, -1))


def channel_wise_authors(evidence: LayerEvidence) -> Float[Tensor, "draw batch"]:
    """Sum the target's evidence where it is not correlated, and the runner-up's where it is correlated.

    `Differs from the paper:` this is Eq. 5 as the authors' scripts compute it, with n = label,
    s = runner-up and `positive_gradient` as evidence.

    Args:
        evidence: The evidence of a batch at a layer.

    Returns:
        The penalty; a term whose category was not diagnosed is 0.
    """
    wrong = ~evidence.correlated & evidence.diagnosed[:, None]
    own = evidence.correlated & evidence.diagnosed[:, None]
    first = evidence.target_by_kernel * wrong[evidence.target_category].to(evidence.target)
    second = evidence.runner_up_by_kernel * own[evidence.runner_up_category].to(evidence.target)
    return (first + second).sum(-1)


SCALE: Scale = "none"  # as a share of the evidence, constraints lost accuracy (docs/when-it-helps.md)
Schedule = Callable[[float], float]
SCHEDULES: Mapping[str, Schedule] = {
    "constant": lambda _done: 1.0,
    "ramp": lambda done: min(2.0 * done, 1.0),
    "decay": lambda done: 1.0 - done,
}


@dataclass(frozen=True)
class Constraint:
    """A penalty on a set of layers with its own evidence, scale, weight and schedule: a sum of Eq. 7.

    Attributes:
        name: The name in the training history.
        penalty: A function from `LayerEvidence` to a value for each draw and image.
        layers: The names of the layers.
        evidence: The formula of the evidence.
        scale: `none`: the evidence as it is; `share`: divided by all evidence of the image at the layer.
        weight: The factor on the penalty in the loss; `auto`: `treat` measures it.
        schedule: A name in SCHEDULES, or a function from the share of the training that is over (0..1) to a
            factor on the weight.
        targets: Whether the target category is the prediction or the label.
        uses_runner_up: Whether the penalty reads the evidence for the runner-up category.
        needs_masks: Whether the penalty reads the background; it is then computed on annotated images only.
        fixed: Whether `evidence`, `scale` and `targets` belong to the definition of the constraint, so that
            the settings of a treatment do not change them.
        linear: Whether the penalty of the mean over draws equals the mean over draws of the penalty. Where a
            closed form gives that mean, the penalty then gets it as a single draw.

    Example:
        >>> from torchdoctor import Constraint
        >>> def all_evidence(evidence):
        ...     return evidence.target_by_kernel.sum(-1)
        >>> constraint = Constraint("small", all_evidence, ("conv2",), weight=0.1, schedule="decay")
        >>> constraint.factor(0.75)
        0.25
    """

    name: str
    penalty: Penalty
    layers: tuple[str, ...] = ()
    evidence: PenaltyEvidence = "gradient_x_activation"
    scale: Scale = SCALE
    weight: float | Literal["auto"] = "auto"
    schedule: str | Schedule = "constant"
    targets: Targets = "prediction"
    uses_runner_up: bool = True
    needs_masks: bool = False
    fixed: bool = False
    linear: bool = False

    def factor(self, done: float) -> float:
        """Return the factor on the weight at a time of the training.

        Args:
            done: The share of the training that is over, 0..1.

        Returns:
            The factor.
        """
        return (SCHEDULES[self.schedule] if isinstance(self.schedule, str) else self.schedule)(done)


CONSTRAINTS: Mapping[str, Constraint] = {
    constraint.name: replace(constraint, linear=True)
    for constraint in (
        Constraint("channel", channel_wise),
        Constraint("channel_paper", channel_wise, (), "gradient", "none", fixed=True),
        Constraint(
            "channel_authors",
            channel_wise_authors,
            (),
            "positive_gradient",
            "none",
            targets="label",
            fixed=True,
        ),
        Constraint("space", space_wise, uses_runner_up=False, needs_masks=True),
        Constraint(
            "space_paper",
            space_wise,
            (),
            "gradient",
            "none",
            uses_runner_up=False,
            needs_masks=True,
            fixed=True,
        ),
    )
}


def default_constraints(has_masks: bool) -> tuple[str, ...]:
    """Return the constraints that are used where the user names none.

    Args:
        has_masks: Whether training images have object masks.

    Returns:
        The constraints as texts.
    """
    return ("channel", "space") if has_masks else ("channel",)


def on_layers(text: str, layers: Sequence[str]) -> str:
    """Add layers to the text of a constraint, unless it names its own.

    Args:
        text: The constraint as text (see `constraints_named`).
        layers: The names of the layers.

    Returns:
        The text with its layers.

    >>> on_layers("space weight=2", ["conv3", "conv4"])
    'space weight=2 layers=conv3+conv4'
    """
    named = any(part.startswith("layers=") for part in text.split())
    return text if named else f"{text} layers={'+'.join(layers)}"


def constraints_named(
    texts: Sequence[str],
    *,
    layers: Sequence[str],
    evidence: Evidence = "gradient_x_activation",
    scale: Scale = SCALE,
    targets: Targets = "prediction",
    weights: Mapping[str, float | Literal["auto"]] | None = None,
) -> tuple[Constraint, ...]:
    """Build constraints from texts.

    A text is the name of a built-in constraint, or its name followed by options that override the arguments:
    `channel layers=conv2+conv3 evidence=gradient scale=none weight=0.1 schedule=ramp targets=label
    as=mine`.

    Args:
        texts: The texts.
        layers: The names of the layers.
        evidence: The formula of the evidence.
        scale: The unit of the penalty (see `Constraint`).
        targets: Whether the target category is the prediction or the label.
        weights: The weights by name; `auto` for the others.

    Returns:
        The constraints in the order of the texts.

    Raises:
        InputError: A name or an option is unknown; the text of the error lists those that exist.

    >>> constraints_named(["space layers=conv3 weight=2"], layers=["conv2"])[0].layers
    ('conv3',)
    """
    check_choice("evidence", evidence, Evidence)
    check_choice("scale", scale, Scale)
    check_choice("targets", targets, Targets)
    built = []
    for text in texts:
        name, _, rest = text.strip().partition(" ")
        if name not in CONSTRAINTS:
            raise InputError(f"constraint {name!r} is unknown; there are: {', '.join(CONSTRAINTS)}")
        known = CONSTRAINTS[name]
        options: dict[str, Any] = {"layers": tuple(layers)}
        if not known.fixed:
            options.update(evidence=evidence, scale=scale, targets=targets)
        options.update(_options(text, rest.split()))
        called = options.get("name", name)
        options.setdefault("weight", (weights or {}).get(called, "auto"))
        built.append(replace(known, **options))
    return tuple(built)


KINDS = {"evidence": PenaltyEvidence, "scale": Scale, "targets": Targets}
OPTIONS = ("layers", "evidence", "scale", "weight", "schedule", "targets", "as")


def _options(text: str, parts: Sequence[str]) -> dict[str, Any]:
    """Read the options of a constraint's text; InputError says which of them is wrong."""
    options: dict[str, Any] = {}
    for part in parts:
        option, equals, value = part.partition("=")
        if not equals or not value or option not in OPTIONS:
            known = ", ".join(f"{name}=..." for name in OPTIONS)
            raise InputError(f"constraint {text!r}: {part!r} is no option; expected {known}")
        if option in KINDS:
            check_choice(f"constraint {text!r}: {option}", value, KINDS[option])
        if option == "schedule" and value not in SCHEDULES:
            raise InputError(
                f"constraint {text!r}: schedule {value!r}; expected one of {', '.join(SCHEDULES)}"
            )
        read: Any = value
        if option == "layers":
            read = tuple(value.split("+"))
        elif option == "weight":
            read = weight_of(f"constraint {text!r}: weight", value)
        options["name" if option == "as" else option] = read
    return options


def weight_of(place: str, value: str) -> float | Literal["auto"]:
    """Read a weight.

    Args:
        place: Where the weight was written, for the error.
        value: The text: `auto` or a number.

    Returns:
        The weight.

    Raises:
        InputError: The text is neither `auto` nor a finite number of at least 0.
    """
    if value == "auto":
        return "auto"
    try:
        weight = float(value)
    except ValueError:
        weight = -1.0
    if not 0 <= weight < float("inf"):
        raise InputError(f"{place} {value!r}: expected auto or a finite number >= 0")
    return weight
