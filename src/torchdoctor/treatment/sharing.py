"""Share the images of a training step among processes, so that all end with what one process would compute.

Every process gets the whole batch, and every loss is computed from the logits of the whole batch. Only the
network runs on a part of the images: each process runs its own, and the logits are put together. So a loss
may couple images as it likes, as mixed labels and class weights do. What a remedy computes in another way
than through `classification_terms` is computed by every process in full, and is right too.

The gradient of a step is the mean of those of the processes. Where outputs are put together, what flows back
is multiplied by the number of processes: the mean is then that of the whole batch, for what was shared and
for what was not. `DistributedDataParallel` is not used: it expects one backward pass through one forward
pass of its own, and remedies take several, or differentiate parts of the network twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from torchdoctor.images.batches import Batch
from torchdoctor.network.workarounds import right_derivatives
from torchdoctor.processes import ALONE, Processes
from torchdoctor.treatment.precision import at_least_float32
from torchdoctor.treatment.shared_layers import SharedLayers, Turns


@dataclass(frozen=True)
class _Sharing:
    """Who shares a step, and the turns of their exchanges."""

    processes: Processes
    turns: Turns = field(default_factory=Turns)


NOT_SHARED = _Sharing(ALONE)
_PRESENT: ContextVar[_Sharing] = ContextVar("sharing", default=NOT_SHARED)


@contextmanager
def sharing(processes: Processes) -> Iterator[None]:
    """Share the images of each batch among processes inside the block.

    All processes run the same block on the same batch. Gradients of the parameters are to be put together
    afterwards (see `common_gradients`).

    Args:
        processes: The processes.

    Yields:
        Nothing.
    """
    present = _PRESENT.get()
    token = _PRESENT.set(present if present.processes == processes else _Sharing(processes))
    try:
        yield
    finally:
        _PRESENT.reset(token)


@dataclass(frozen=True)
class Share:
    """The images of a batch that this process runs the network on: those from `start` to before `stop`.

    Attributes:
        processes: Who shares the batch; a single process has it all.
        start: The place of the first image.
        stop: The place behind the last image.
        images: How many images the batch has.
        turns: The turns of the processes' exchanges.
    """

    processes: Processes
    start: int
    stop: int
    images: int
    turns: Turns

    @property
    def all(self) -> bool:
        """Whether this process has the whole batch."""
        return self.processes.alone

    def of(self, batch: Batch) -> Batch:
        """Return this process's part of the batch.

        Args:
            batch: The whole batch.

        Returns:
            The part; the batch itself where it is all.
        """
        if self.all:
            return batch
        return Batch(
            self.rows(batch.images),
            self.rows(batch.labels),
            self.rows(batch.ids),
            None if batch.masks is None else self.rows(batch.masks),
            None if batch.annotated is None else self.rows(batch.annotated),
        )

    def rows(self, values: Tensor) -> Tensor:
        """Return this process's rows of a tensor of the whole batch.

        Args:
            values: A tensor whose first axis is the images of the whole batch.

        Returns:
            The rows.
        """
        return values[self.start : self.stop]

    def whole(self, values: Tensor) -> Tensor:
        """Put together what each process has computed of its own images; each must call this.

        Args:
            values: What this process has computed [own image, ...].

        Returns:
            The values of the whole batch [image, ...], in float32 at least, the same in every process.
        """
        if self.all:
            return values
        before_and_behind = (self.start, self.images - self.stop)
        padded = functional.pad(at_least_float32(values), (0, 0) * (values.ndim - 1) + before_and_behind)
        return self.total(padded)

    def total(self, value: Tensor) -> Tensor:
        """Add up a tensor over the processes; each must call this.

        Args:
            value: What this process has computed, of the same shape in every process.

        Returns:
            The sum, the same in every process.
        """
        return value if self.all else _Total.apply(value, self.processes)

    @contextmanager
    def forward(self, device: torch.device) -> Iterator[None]:
        """Let a network that runs on the own images do what it would do on the whole batch, inside the block.

        Batch-norm in training mode normalises by the whole batch, and dropout drops what it would drop in one
        process. Checkpointing of activations is switched off: a second forward pass would exchange anew.

        Args:
            device: Where the network is.

        Yields:
            Nothing.
        """
        if self.all:
            yield
            return
        rows = (self.start, self.stop, self.images)
        layers = SharedLayers(self.processes, rows, self.turns, device)
        with right_derivatives(), layers.draws.seeded(self.processes.rank), layers:
            yield


def share_of(batch: Batch, model: nn.Module | None = None) -> Share:
    """Return which images of a batch this process runs.

    A batch with fewer images than processes, or whose images are differentiated by, is not shared: each
    process runs it in full.

    Args:
        batch: The whole batch.
        model: A network that is to be run in evaluation mode; where it couples the images of a batch even
            then, the batch is not shared. None: the network is run within `Share.forward`.

    Returns:
        The share.
    """
    present, images = _PRESENT.get(), len(batch.labels)
    processes = present.processes
    if images < processes.count or batch.images.requires_grad or (model is not None and _couples(model)):
        processes = ALONE
    rank, count = processes.rank, processes.count
    return Share(processes, rank * images // count, (rank + 1) * images // count, images, present.turns)


def common_gradients(parameters: Sequence[nn.Parameter], total: Tensor, processes: Processes) -> Tensor:
    """Replace the gradients by their means over the processes; each must call this after its backward pass.

    A parameter that has a gradient in one process gets it in all.

    Args:
        parameters: The trained parameters, the same in every process.
        total: The loss of the step, without its graph.
        processes: The processes.

    Returns:
        The mean of their losses, which is not finite in any process where it is not in one.
    """
    if processes.alone:
        return total
    has = [float(value.grad is not None) for value in parameters]
    facts = torch.tensor([0.0, *has], dtype=torch.float64, device=total.device)
    facts[0] = total
    groups: dict[torch.dtype, list[nn.Parameter]] = {}
    for value in parameters:
        groups.setdefault(value.dtype, []).append(value)
    flats = [
        torch.cat([(torch.zeros_like(one) if one.grad is None else one.grad).flatten() for one in group])
        for group in groups.values()
    ]
    processes.sum([facts, *flats])
    # Only where a gradient is missing here has the device to be waited for.
    anywhere = facts[1:].tolist() if not all(has) else has
    wanted = {id(value) for value, present in zip(parameters, anywhere, strict=True) if present}
    for group, flat in zip(groups.values(), flats, strict=True):
        parts = flat.div_(processes.count).split([value.numel() for value in group])
        for value, part in zip(group, parts, strict=True):
            if value.grad is not None:
                value.grad.copy_(part.view_as(value))
            elif id(value) in wanted:
                value.grad = torch.zeros_like(value).copy_(part.view_as(value))
    return facts[0] / processes.count


def _couples(model: nn.Module) -> bool:
    """Tell whether a batch-norm normalises by the batch even in evaluation mode: it has no statistics."""
    norms = (one for one in model.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm))
    return any(norm.running_mean is None for norm in norms)


class _Total(torch.autograd.Function):
    """The sum over the processes; what flows back is multiplied by their number (see above)."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, processes: Processes) -> Tensor:
        """Add up."""
        ctx.count = processes.count
        total = value.clone(memory_format=torch.contiguous_format)
        processes.sum([total])
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Pass on what flows back: the same in every process, so that nothing need be exchanged."""
        return gradient * ctx.count, None
