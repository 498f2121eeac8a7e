"""Let the layers of a network that runs on a part of a batch see the whole batch, which processes share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from torchdoctor.processes import Processes
from torchdoctor.randomness import key
from torchdoctor.treatment.precision import at_least_float32

BATCH_NORM = functional.batch_norm  # PyTorch's own: others put a stand-in in its place for a while
DROPOUTS = (
    functional.dropout,
    functional.dropout1d,
    functional.dropout2d,
    functional.dropout3d,
)
Rows = tuple[int, int, int]  # the first own image, the one behind the last, and how many the batch has


class Turns:
    """The order in which processes exchange during a backward pass: that of the forward pass, reversed.

    Autograd may run branches of a network in another order in another process, where its images need other
    penalties. So each exchange holds on to the one before it, and waits for the one after it.
    """

    def __init__(self) -> None:
        """Begin without any exchange."""
        self.last: Tensor | None = None


class Draws:
    """Random numbers of which some are drawn for the whole batch, and others for the own images.

    What is drawn for the whole batch is the same as in a single process. Layers that are not known here draw
    for the own images alone, each process from another seed: they are right in distribution only.
    """

    def __init__(self, rows: Rows, device: torch.device) -> None:
        """Draw for a batch.

        Args:
            rows: Which images are the own.
            device: Where numbers are drawn.
        """
        self.rows, self.device = rows, device
        self._common = self._state()

    def of(self, own: Tensor, draw: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the own images' part of what is drawn for the whole batch.

        Args:
            own: A tensor whose first axis is the own images.
            draw: Returns what is drawn, from a tensor of ones for the whole batch.

        Returns:
            The drawn values, of the shape of `own`.
        """
        start, stop, images = self.rows
        apart = self._state()
        self._set(self._common)
        drawn = draw(own.new_ones(images, *own.shape[1:], requires_grad=False))
        self._common = self._state()
        self._set(apart)
        return drawn[start:stop]

    @contextmanager
    def seeded(self, rank: int) -> Iterator[None]:
        """Draw for the own images from another seed in every process, inside the block.

        Behind the block all go on where the draws for the whole batch have ended.

        Args:
            rank: The number of the process.

        Yields:
            Nothing.
        """
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(key("process", torch.initial_seed(), rank))
            yield
        self._set(self._common)

    def _state(self) -> Tensor:
        """Return the state of the device's random numbers."""
        return torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else torch.get_rng_state()

    def _set(self, state: Tensor) -> None:
        """Set the state of the device's random numbers."""
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state, self.device)
        else:
            torch.set_rng_state(state)


class SharedLayers(TorchFunctionMode):
    """Inside the block batch-norm normalises by the whole batch, and dropout draws for the whole batch."""

    def __init__(self, processes: Processes, rows: Rows, turns: Turns, device: torch.device) -> None:
        """Prepare a forward pass.

        Args:
            processes: Who shares the batch.
            rows: Which images are the own.
            turns: The turns of the exchanges.
            device: Where the network is.
        """
        super().__init__()
        self.processes, self.rows, self.turns = processes, rows, turns
        self.draws = Draws(rows, device)

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run a function of PyTorch, or what stands in for it.

        Args:
            func: The function.
            types: Not used.
            args: Its arguments.
            kwargs: Its arguments by name.

        Returns:
            What it returns.
        """
        del types
        named = kwargs or {}
        # PyTorch names its function by what stands in its place.
        if func in (BATCH_NORM, functional.batch_norm) and named.get("training"):
            return self._batch_norm(*args, **named)
        if func in DROPOUTS and named.get("training") and self._by_image(args[0]):
            draws = {**named, "inplace": False}
            return args[0] * self.draws.of(args[0], lambda ones: func(ones, **draws))
        if func is Tensor.bernoulli_ and self._by_image(args[0]):
            return args[0].copy_(self.draws.of(args[0], lambda ones: func(ones, *args[1:], **named)))
        return func(*args, **named)

    def _by_image(self, values: Tensor) -> bool:
        """Tell whether the first axis of a tensor is the own images."""
        return values.ndim > 1 and len(values) == self.rows[1] - self.rows[0]

    def _batch_norm(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        """Normalise by the whole batch; the parameters have the names of PyTorch's `batch_norm`."""
        del training
        last = self.turns.last
        if last is None:
            last = torch.zeros((), device=input.device)
        output, self.turns.last, mean, variance, count = _Normalised.apply(
            input, weight, bias, last, eps, self.processes
        )
        with torch.no_grad():
            if running_mean is not None:
                running_mean.lerp_(mean.to(running_mean), momentum)
            if running_var is not None:
                unbiased = variance * (count / (count - 1))
                running_var.lerp_(unbiased.to(running_var), momentum)
        return output


class _Normalised(torch.autograd.Function):
    """Batch-norm by the mean and the variance over the images of all processes.

    PyTorch's own (`SyncBatchNorm`) runs on GPUs only.
    """

    @staticmethod
    def forward(
        ctx: Any,
        maps: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        turn: Tensor,
        eps: float,
        processes: Processes,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return the normalised maps, the next turn, and mean, variance and number of what was normalised."""
        mean, variance, count = _statistics(at_least_float32(maps), processes)
        values = at_least_float32(maps)
        scale, shift = (None if each is None else each.to(values) for each in (weight, bias))
        output = BATCH_NORM(values, mean.to(values), variance.to(values), scale, shift, False, 0.0, eps)
        ctx.save_for_backward(maps, weight, mean.to(values), (variance + eps).rsqrt().to(values), count)
        ctx.processes = processes
        ctx.mark_non_differentiable(mean, variance, count)
        return output.to(maps), torch.zeros_like(turn), mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, turn: Tensor, *_rest: object) -> tuple[Any, ...]:
        """Return the derivatives by maps, weight and bias; the processes exchange two sums per channel."""
        maps, weight, mean, scale, count = ctx.saved_tensors
        place = (1, -1) + (1,) * (maps.ndim - 2)
        values, gradient = at_least_float32(maps), at_least_float32(gradient)
        over = [axis for axis in range(maps.ndim) if axis != 1]
        normal = (values - mean.view(place)) * scale.view(place)
        by_bias, by_weight = gradient.sum(over), (gradient * normal).sum(over)
        sums = torch.stack([by_bias, by_weight])
        ctx.processes.sum([sums])
        sums = sums / count
        by_maps = gradient - sums[0].view(place) - normal * sums[1].view(place)
        factor = scale if weight is None else scale * weight.to(scale)
        return (
            (by_maps * factor.view(place)).to(maps),
            by_weight.to(weight) if ctx.needs_input_grad[1] else None,
            by_bias if ctx.needs_input_grad[2] else None,
            torch.zeros_like(turn),
            None,
            None,
        )


def _statistics(maps: Tensor, processes: Processes) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean and the variance of each channel over all processes, and the number of values.

    Each process gives its own mean and squared deviations, which are put together (Chan et al. 1979): the
    mean of squares less the squared mean would lose digits.
    """
    over = [axis for axis in range(maps.ndim) if axis != 1]
    own_variance, own_mean = torch.var_mean(maps, over, correction=0)
    own_count = maps.numel() // maps.shape[1]
    parts = torch.zeros(processes.count, 2, maps.shape[1], dtype=torch.float64, device=maps.device)
    counts = torch.zeros(processes.count, dtype=torch.float64, device=maps.device)
    parts[processes.rank, 0], parts[processes.rank, 1] = own_mean, own_variance
    counts[processes.rank] = own_count
    processes.sum([parts, counts])
    count = counts.sum()
    share = (counts / count)[:, None]
    mean = (share * parts[:, 0]).sum(0)
    variance = (share * (parts[:, 1] + (parts[:, 0] - mean).square())).sum(0)
    return mean, variance, count
