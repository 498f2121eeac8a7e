"""Say how an arm is trained: the recipe that all arms share, its own course, and where its state is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from torchdoctor.images.batches import Batch, Images, TrainingImages, sent
from torchdoctor.treatment.losses import Terms, plain_terms
from torchdoctor.types import InputError, NormPolicy, Precision


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: the optimiser, its schedule (warm-up, then cosine to 0), and batch-norm.

    Attributes:
        epochs: How many times every training image is used.
        optimizer: The optimiser.
        learning_rate: The learning rate at the end of the warm-up.
        momentum: The momentum of `sgd`.
        weight_decay: The weight decay of weights; biases and normalisation layers have none.
        warm_up: The share of the steps during which the learning rate rises, 0..1.
        norm: `train`: batch-norm normalises by the batch and updates its running statistics; `frozen`: it
            uses its running statistics and leaves them unchanged (benchmarks/study/norm_policy.py compares
            the two), as a batch-norm whose own parameters are not trained does in any case.
        precision: The precision of the forward pass; weights, optimiser and penalties are in float32.
        seconds: The length of the training in seconds, instead of `epochs`; the schedule follows the clock.
        passes: How often loss and gradient are computed in all, instead of `epochs`.

    Example:
        >>> from torchdoctor import Recipe
        >>> Recipe(epochs=5, optimizer="adamw", learning_rate=1e-3).norm
        'train'
    """

    epochs: int = 10
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warm_up: float = 0.1
    norm: NormPolicy = "train"
    precision: Precision = "fp32"
    seconds: float | None = None
    passes: int | None = None


# For training from random weights: longer, and with a higher learning rate, than further training.
FROM_SCRATCH = Recipe(epochs=20, learning_rate=0.1)


@dataclass(frozen=True)
class Step:
    """A step of the training under way: its gradient is known, the weights have not moved yet.

    Attributes:
        parameters: The trained parameters; `grad` of each holds its gradient.
        number: The number of the step, from 0.
        fraction: The share of the training (0..1) that is over.
        again: Computes the gradient anew at the present weights, into `grad`, and returns the loss: one more
            pass. Random layers draw what they drew before, and batch-norm's running statistics stay.
    """

    parameters: Sequence[nn.Parameter]
    number: int
    fraction: float
    again: Callable[[], Tensor]


# (network, training images, validation images or None) -> what was found, for the record
Afterwards = Callable[[nn.Module, TrainingImages, Images | None], Mapping[str, object] | None]


@dataclass(frozen=True)
class Course:
    """How an arm is trained, in whatever it differs from the control; a remedy returns a course.

    Attributes:
        terms: A function of (model, batch, step) that returns scalars by name, whose sum is minimised.
        average_from: The share of the training (0..1) after which the weights of all steps are averaged into
            the final weights; None: never.
        average_decay: Weigh the averaged weights exponentially: what each step leaves of the average before
            it, 0..1; None: all steps weigh the same.
        images: The images to train on, chosen, relabelled, resampled or augmented; None: those of the
            control. The number of steps is the control's, however many images there are.
        recipe: Returns what replaces the recipe that all arms share, such as another weight decay; its length
            and its precision stay. None: no change.
        schedule: What the learning rate is multiplied by, from the share of the training (0..1) that is over;
            None: warm-up, then cosine to 0.
        trains: The names of the parameters, or of the modules whose parameters, are trained; None: all.
        step: Called at every step between gradient and update; it may change the gradient, or take further
            passes. None: nothing.
        afterwards: Edits the network in place when the training is over: a function of (model, images,
            validation) that returns facts for the record, or None. It has to do the same each time.
        facts: What was measured before the training, for the record.

    Example:
        >>> from torchdoctor import Course, classification_terms
        >>> def half_loss(model, batch, step):
        ...     return {"loss": 0.5 * classification_terms(model, batch)[1]["loss"]}
        >>> Course(half_loss, average_from=0.75).average_from
        0.75
    """

    terms: Terms = plain_terms
    average_from: float | None = None
    average_decay: float | None = None
    images: TrainingImages | None = None
    recipe: Callable[[Recipe], Recipe] | None = None
    schedule: Callable[[float], float] | None = None
    trains: Sequence[str] | None = None
    step: Callable[[Step], None] | None = None
    afterwards: Afterwards | None = None
    facts: Sequence[Mapping[str, object]] = ()

    @property
    def only_edits(self) -> bool:
        """Whether the training is that of the control, and only edited afterwards."""
        return self.afterwards is not None and replace(self, afterwards=None, facts=()) == PLAIN

    def and_then(self, edit: Course) -> Course:
        """Return this course with an edit of the finished network, which it does not edit itself.

        Args:
            edit: A course that trains as the control does.

        Returns:
            The course; its facts are those of both.

        Raises:
            InputError: `edit` trains in another way than the control, or this course edits the network too.
        """
        if not edit.only_edits or self.afterwards is not None:
            raise InputError(
                "of two joined remedies the first says how the network is trained, as swap does, and only "
                "the second edits it afterwards, as balance does"
            )
        return replace(self, afterwards=edit.afterwards, facts=(*self.facts, *edit.facts))

    def recipe_from(self, shared: Recipe) -> Recipe:
        """Return the recipe that the arm is trained by.

        Args:
            shared: The recipe of all arms.

        Returns:
            The same, or what the course makes of it.

        Raises:
            InputError: The course changes the length or the precision of the training, or takes further
                passes where gradients are scaled (fp16).
        """
        if self.step is not None and shared.precision == "fp16":
            raise InputError(
                "precision 'fp16' scales the gradients of a step, which a remedy works with: use bf16 or fp32"
            )
        own = shared if self.recipe is None else self.recipe(shared)
        if own != replace(
            own,
            epochs=shared.epochs,
            seconds=shared.seconds,
            passes=shared.passes,
            precision=shared.precision,
        ):
            raise InputError(
                "a remedy's recipe has another length or precision than the control's: change the learning "
                "rate, the weight decay, the optimiser or the warm-up alone"
            )
        return own


PLAIN = Course()  # that of the control arm


@dataclass(frozen=True)
class TrainingState:
    """The state of a training after some steps: enough to go on with the same result to the last bit.

    Attributes:
        step: The number of steps.
        tensors: The network, the optimiser and running sums by name.
        numbers: All other values by name, as JSON can hold them: counters of the optimiser, the history of
            the epochs, ids of skipped images.
        seconds: How long the training has taken so far.
    """

    step: int
    tensors: Mapping[str, Tensor]
    numbers: Mapping[str, Any]
    seconds: float


@runtime_checkable
class Checkpoints(Protocol):
    """Where a training saves its state, and who asks it to stop."""

    def load(self) -> TrainingState | None:
        """Read the newest undamaged state.

        Returns:
            The state; None without any.
        """
        ...

    def save(self, state: TrainingState) -> None:
        """Save a state.

        Args:
            state: The state.
        """
        ...

    def due(self, step: int) -> bool:
        """Return whether to save now.

        Args:
            step: The number of steps so far.

        Returns:
            True where the state is to be saved.
        """
        ...

    def stopping(self) -> bool:
        """Return whether to save and stop now.

        Returns:
            True where the training is to stop.
        """
        ...


def set_mode(model: nn.Module, norm: NormPolicy) -> None:
    """Put a network into training mode.

    Args:
        model: The network; it is changed.
        norm: `frozen` leaves batch-norm in evaluation mode, so that its statistics do not change. A
            batch-norm whose own parameters are not trained is left so in any case: the layers before and
            behind it do not adapt to other statistics.
    """
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            own = [*module.parameters()]
            if norm == "frozen" or (own and not any(value.requires_grad for value in own)):
                module.eval()


def move(batch: Batch, device: torch.device, dtype: torch.dtype) -> Batch:
    """Copy a batch to a device.

    Args:
        batch: The batch.
        device: The device.
        dtype: The floating-point type of the images, that of the network.

    Returns:
        The batch on the device; `annotated`, which selects rows, stays where it is.
    """
    return Batch(
        sent(batch.images, device, dtype),
        sent(batch.labels, device),
        sent(batch.ids, device),
        None if batch.masks is None else sent(batch.masks, device),
        batch.annotated,
    )
