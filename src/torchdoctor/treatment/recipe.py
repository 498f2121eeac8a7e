"""Say how an arm is trained: the recipe that all arms share, its own course, and where its state is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from torchdoctor.images.batches import Batch
from torchdoctor.network.outputs import as_logits, auxiliary_logits
from torchdoctor.types import NormPolicy, Precision


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: the optimiser, its schedule (warm-up, then cosine to 0), and batch-norm.

    `norm="train"` normalises by the batch and updates the running statistics; `frozen` keeps them as they
    are (benchmarks/study/norm_policy.py compares the two). `precision` is that of the forward pass; weights,
    optimiser and penalties stay in float32. `seconds`, where given, ends the training by the clock
    instead of by the epochs, and the schedule follows the clock.
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


FROM_SCRATCH = Recipe(
    epochs=20, learning_rate=0.1
)  # from random weights: longer and faster than further training

AUXILIARY_WEIGHT = 0.3  # of each auxiliary head's loss, as GoogLeNet was trained

Terms = Callable[[nn.Module, Batch, int], Mapping[str, Float[Tensor, ""]]]
Loss = Callable[[Tensor, Tensor], Tensor]


def classification_terms(
    model: nn.Module, batch: Batch, loss: Loss = functional.cross_entropy
) -> tuple[Float[Tensor, "batch category"], dict[str, Float[Tensor, ""]]]:
    """Return the logits of a batch and its loss, with that of auxiliary heads where there are any."""
    output = model(batch.images)
    logits, heads = as_logits(output), auxiliary_logits(output)
    terms = {"loss": loss(at_least_float32(logits), batch.labels)}
    if heads:
        losses = [loss(at_least_float32(head), batch.labels) for head in heads]
        terms["auxiliary"] = AUXILIARY_WEIGHT * torch.stack(losses).sum()
    return logits, terms


def plain_terms(model: nn.Module, batch: Batch, step: int) -> Mapping[str, Float[Tensor, ""]]:
    """Return what the control arm minimises: the cross-entropy alone."""
    del step
    return classification_terms(model, batch)[1]


@dataclass(frozen=True)
class Course:
    """How one arm is trained: what it minimises at a step, and from when on its weights are averaged.

    `terms(model, batch, step)` returns named scalars whose sum is minimised. `average_from` is the share
    of the training after which the weights of all steps are averaged into the final ones; None: never.
    `facts` says what was measured beforehand.
    """

    terms: Terms = plain_terms
    average_from: float | None = None
    facts: Sequence[Mapping[str, object]] = ()


PLAIN = Course()  # the control's


@dataclass(frozen=True)
class TrainingState:
    """Where a training stands after `step` steps: enough to go on bit for bit.

    `tensors` holds the network, the optimiser and running sums by name; `numbers` what is not a tensor
    (all JSON-able: optimiser counters, history of the epochs, names of skipped images).
    """

    step: int
    tensors: Mapping[str, Tensor]
    numbers: Mapping[str, Any]
    seconds: float


@runtime_checkable
class Checkpoints(Protocol):
    """Where a training keeps its state, and who asks it to stop."""

    def load(self) -> TrainingState | None:
        """Return the newest undamaged state, or None."""
        ...

    def save(self, state: TrainingState) -> None:
        """Keep a state."""
        ...

    def due(self, step: int) -> bool:
        """Whether to save after this many steps."""
        ...

    def stopping(self) -> bool:
        """Whether to save and stop now."""
        ...


def set_mode(model: nn.Module, norm: NormPolicy) -> None:
    """Put the network into training mode, with batch-norm's statistics frozen where the policy says so."""
    model.train()
    if norm == "frozen":
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def at_least_float32(value: Tensor) -> Tensor:
    """Return a tensor in float32 or float64, so that sums of it are exact enough for a loss.

    Args:
        value: A tensor of any floating-point type.

    Returns:
        The same tensor where it is float64, else its values in float32.
    """
    return value if value.dtype == torch.float64 else value.float()


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Return the context in which a forward pass runs in the given precision; fp32 switches it off."""
    kind = {"fp32": torch.bfloat16, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    return torch.autocast(device.type, dtype=kind, enabled=precision != "fp32")


def move(batch: Batch, device: torch.device, dtype: torch.dtype) -> Batch:
    """Return the batch on a device, its images in the network's type.

    What says which images are annotated stays where it is: it chooses rows.
    """
    return Batch(
        batch.images.to(device, dtype),
        batch.labels.to(device),
        batch.ids.to(device),
        None if batch.masks is None else batch.masks.to(device),
        batch.annotated,
    )
