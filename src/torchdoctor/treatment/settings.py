"""The settings of a treatment, with their defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import field_validator

from torchdoctor.diagnosis.settings import EVIDENCE_OF_TREATMENT, EvidenceSettings
from torchdoctor.glossary import GLOSSARY
from torchdoctor.settings import Amount, Count, Share, Whole, setting
from torchdoctor.treatment.constraints import SCALE, weight_of
from torchdoctor.treatment.remedies import REMEDIES
from torchdoctor.types import BudgetKind, Evidence, InputError, Scale, Targets

STEP_DRAWS = 1  # noise draws of each image in a training step, where none are asked for


class TreatmentSettings(EvidenceSettings):
    """What is compared with the control arm, under which constraints, on which masks."""

    arms: tuple[str, ...] | Literal["auto"] = setting(
        "auto",
        "What to train beside the control arm: treated (the constraints), "
        f"{', '.join(list(REMEDIES)[1:-1])} or {list(REMEDIES)[-1]}, separated by commas; the verdict speaks "
        "of the first after control.",
        left_out="control,treated; where 20 training images or more have masks control,swap,treated",
    )
    constraints: tuple[str, ...] | Literal["auto"] = setting(
        "auto",
        "The constraints of the arm treated: channel, space, channel_paper, channel_authors or space_paper, "
        "each alone or with options of its own such as 'space layers=conv3 weight=2 schedule=ramp'.",
        left_out="channel, and space where masks exist",
    )
    seeds: Count = setting(3, "How many times all arms are trained, each time in another random order.")
    scale: Scale = setting(SCALE, GLOSSARY["scale"])
    weight: tuple[str, ...] = setting(
        ("auto",),
        "Weight of the penalties beside the loss: auto (measured, see --tau), a number for all constraints, "
        "or constraint=number for each.",
    )
    tau: Amount = setting(0.3, GLOSSARY["tau"])
    targets: Targets = setting(
        "prediction",
        "The category whose evidence is constrained (n of Eq. 5): the prediction, as in the paper, or the "
        "label.",
    )
    penalty_every: Count = setting(
        1,
        "Compute the penalties at every k-th step only, with k times their weight; saves time.",
        former=("lazy",),
    )
    masks_per_category: Count | Literal["all"] = setting(
        "all", "Use the object masks of at most this many images of each category; the paper uses 20."
    )
    annotated_per_batch: Share | Literal["auto"] = setting(
        "auto",
        "Share of each batch that is drawn from the images with masks, where the arms use masks.",
        left_out="0.125; more in a checkup that finds misleading backgrounds and few masks, so that half of "
        "the images of each batch have one",
    )
    expand_pixels: Whole | Literal["auto"] = setting(
        "auto",
        "How far the object's mask is grown before the background is penalised, in pixels of the input.",
        left_out="30 at 224 px, in proportion at other sizes",
    )
    budget_kind: BudgetKind = setting(
        "steps", "What all arms have in common: the number of steps, of passes, or the time."
    )

    @field_validator("weight", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        """Read weights that come as a mapping from constraint to weight."""
        return [f"{name}={weight}" for name, weight in value.items()] if isinstance(value, Mapping) else value

    @property
    def most_masks(self) -> int | None:
        """The largest number of images of a category whose masks are used; None: all."""
        return None if self.masks_per_category == "all" else self.masks_per_category

    @property
    def penalised_evidence(self) -> Evidence:
        """The evidence that the constraints penalise."""
        return EVIDENCE_OF_TREATMENT if self.evidence == "auto" else self.evidence

    @property
    def weights_by_constraint(self) -> float | Literal["auto"] | dict[str, float | Literal["auto"]]:
        """The weight of all constraints, or of each by its name.

        Raises:
            InputError: A weight is no number, or a constraint has two.
        """
        named: dict[str, float | Literal["auto"]] = {}
        if len(self.weight) > 1 and not all("=" in part for part in self.weight):
            raise InputError(
                f"--weight {', '.join(self.weight)!r}: expected one number for all constraints, or "
                "constraint=number for each"
            )
        for part in self.weight:
            name, equals, value = part.rpartition("=")
            weight = weight_of(f"--weight {name}=" if equals else "--weight", value)
            if not equals:
                return weight
            if name in named:
                raise InputError(f"--weight {part!r}: {name} has a weight already")
            named[name] = weight
        return named
