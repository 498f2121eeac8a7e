"""What a remedy is, and what is known of one: its price, its needs, and the causes that it is meant for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import nn

from torchdoctor.diagnosis.causes_result import Cause
from torchdoctor.diagnosis.result import Diagnosis
from torchdoctor.diagnosis.statistics import layers_out_of_step
from torchdoctor.images.batches import Images, TrainingImages
from torchdoctor.treatment.heads import linear_head
from torchdoctor.treatment.masked_images import has_masks
from torchdoctor.treatment.recipe import Course
from torchdoctor.types import InputError

# A function of the network that is to be trained (a copy, which it may edit), the training images, the
# diagnosis and a seed.
Remedy = Callable[[nn.Module, TrainingImages, Diagnosis, int], Course]

JOINED_BY = "+"  # between the names of two remedies, of which the second edits what the first has trained

Need = Literal["masks", "labels", "linear head", "batch-norm", "drifted kernels"]


@dataclass(frozen=True)
class Cure:
    """A remedy with what is known of it before it is tried.

    It can be called like the remedy itself.

    Attributes:
        name: What its arm is called.
        remedy: The remedy.
        causes: The causes of errors that it is meant for; none: it is not meant for any of them.
        needs: What it cannot do without: `masks` of objects, `labels` from a person, a `linear head` with a
            bias, `batch-norm` layers with running statistics, or `drifted kernels` that a diagnosis found.
        passes: What a step costs, in steps of the control; 0 where the training is the control's, which is
            not done twice.
        solves_on_validation: Whether it fits more than a number or two to the validation images, so that
            they say nothing of how good it is.
        least_epochs: In how many epochs it begins to bring something; a checkup does not choose it for fewer.
        edits: The name of the arm whose finished network it edits, where it is trained as that arm is; None:
            it stands alone.
    """

    name: str
    remedy: Remedy
    causes: tuple[Cause, ...] = ()
    needs: frozenset[Need] = frozenset()
    passes: float = 1.0
    solves_on_validation: bool = False
    least_epochs: int = 0
    edits: str | None = None

    def __call__(self, model: nn.Module, images: TrainingImages, diagnosis: Diagnosis, seed: int) -> Course:
        """Return the course of an arm.

        Args:
            model: The network.
            images: The training images.
            diagnosis: What is known of the network.
            seed: The arm's seed.

        Returns:
            The course.
        """
        return self.remedy(model, images, diagnosis, seed)

    @property
    def summary(self) -> str:
        """What the remedy does, in one sentence: the first line of its documentation."""
        first = (self.remedy.__doc__ or "A remedy of its own").strip().splitlines()[0]
        return first.partition(";")[0].rstrip(".") + "."

    def check(self, model: nn.Module, images: Images, diagnosis: Diagnosis | None) -> None:
        """Refuse a network or data that lack what the remedy needs.

        Args:
            model: The network; it is left as it was.
            images: The training images; two are enough where there is no diagnosis.
            diagnosis: What is known of the network; None: not made yet. Then only what the network lacks is
                refused.

        Raises:
            InputError: Something is missing; the message says what, and what can be done.
        """
        found: dict[Need, Callable[[], bool]] = {
            "linear head": lambda: linear_head(model, images) is not None,
            "batch-norm": lambda: any(map(keeps_statistics, model.modules())),
            # Where a person gave labels, the remedy that holds them has no such need.
            "labels": lambda: False,
        }
        if diagnosis is not None:
            found["masks"] = lambda: has_masks(images)
            found["drifted kernels"] = lambda: bool(layers_out_of_step(diagnosis.layers))
        for need in sorted(self.needs):
            if need in found and not found[need]():
                raise InputError(f"arm {self.name!r} needs {MISSING[need]}, or leave the arm out")


def together(first: Cure, then: Cure) -> Cure:
    """Return the remedy that trains as one does, and edits the finished network as another does.

    Args:
        first: The remedy that says how the network is trained.
        then: One that trains as the control does, and edits the network afterwards.

    Returns:
        The remedy, called `FIRST+THEN`.
    """

    def remedy(model: nn.Module, images: TrainingImages, diagnosis: Diagnosis, seed: int) -> Course:
        own = first.remedy(model, images, diagnosis, seed)
        edit = then.remedy(model, images, diagnosis, seed)
        return own.and_then(edit)

    remedy.__doc__ = f"{first.summary} Then: {then.summary}"
    return Cure(
        f"{first.name}{JOINED_BY}{then.name}", remedy, tuple(dict.fromkeys((*first.causes, *then.causes))),
        first.needs | then.needs, max(first.passes, 1.0),
        first.solves_on_validation or then.solves_on_validation, max(first.least_epochs, then.least_epochs),
        first.name,
    )  # fmt: skip


MISSING: dict[Need, str] = {
    "masks": "object masks and the training data has none: give data with masks or boxes",
    "labels": "labels from a person: fill in the column answer of a run's labels.csv, and give --labels FILE",
    "linear head": (
        "a network whose logits come straight from a linear layer with a bias, and those of this network do "
        "not: choose another remedy"
    ),
    "batch-norm": (
        "batch-norm layers with running statistics, and this network has none: choose another remedy"
    ),
    "drifted kernels": (
        "kernels that are out of step with the batch-norm behind them, and the diagnosed layers have none: "
        "diagnose more layers"
    ),
}


def keeps_statistics(module: nn.Module) -> bool:
    """Tell whether a module is a batch-norm with running statistics.

    Args:
        module: Any module.

    Returns:
        True for one whose mean and variance are kept.
    """
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None
