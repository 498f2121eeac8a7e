"""Read off the operations that really run whether one gate lies between a map and an affine rest.

A gate is an activation that is linear where it is open and constant elsewhere: a ReLU or a ReLU6. Where
nothing but an affine step and one gate per position lies between a layer's map and an affine rest of the
network, the noisy gradient of Eq. 4 is known without running that rest (see `closed_form`).
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from torchdoctor.network.taps import run_tapped

# By the names of ATen operations; whatever is not listed ends the search.
SAME = {"clone", "detach", "alias", "contiguous", "_to_copy", "dropout", "lift_fresh"}
NORMS = {"native_batch_norm", "cudnn_batch_norm", "_native_batch_norm_legit_no_training", "miopen_batch_norm"}
LINEAR = {"mean", "sum", "_adaptive_avg_pool2d", "avg_pool2d", "view", "_unsafe_view", "reshape", "flatten",
          "squeeze", "unsqueeze", "permute", "transpose", "t", "expand", "slice", "select"}  # fmt: skip
PRODUCTS = {"convolution", "_convolution", "mkldnn_convolution", "cudnn_convolution", "addmm", "mm", "matmul",
            "linear", "mul", "div"}  # fmt: skip
SUMS = {"add", "sub", "cat"}


class NoClosedFormError(Exception):
    """What lies behind a layer is not of the known kind; the message says what was met."""


@dataclass(eq=False)
class _Behind(TorchDispatchMode):
    """Follows one map through the operations behind it, and raises NoClosedFormError at an unknown operation.

    `scale` [kernel] is the map's factor before the gate, `entering` the gate's input, `first` the place
    of the map's kernels among its channels, `gate` the values between which it is open. `followed` is what
    has become of the map before the gate, `spent` what it was earlier, `reached` everything behind the gate.
    """

    scale: Tensor | None = None
    entering: Tensor | None = None
    first: int = 0
    gate: tuple[float, float] | None = None
    followed: Tensor | None = None
    spent: list[Tensor] = field(default_factory=list)
    reached: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def start(self, output: Tensor) -> Tensor:
        """Begin at this map, and pass on a copy."""
        self.followed = output.clone()
        self.scale = torch.ones_like(output[0, :, 0, 0])
        return self.followed

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and look at it where it takes the map or what came of it."""
        name = function._schema.name.removeprefix("aten::").rstrip("_")
        inputs = _tensors(args)
        if any(tensor is old for tensor in inputs for old in self.spent):
            raise NoClosedFormError(f"{name} uses the map a second time")
        if self.gate is None and any(tensor is self.followed for tensor in inputs):
            if name in ("relu", "hardtanh"):
                self.entering = inputs[0].clone()  # it may be overwritten in place
            result = function(*args, **(kwargs or {}))
            self._before_gate(name, args, _first(result))
            return result
        followed = [tensor for tensor in inputs if any(tensor is known for known in self.reached)]
        result = function(*args, **(kwargs or {}))
        if followed:
            self._behind_gate(name, args, followed)
            self.reached += _tensors(result if isinstance(result, tuple | list) else [result])
        return result

    def _before_gate(self, name: str, args: Any, result: Tensor) -> None:
        """Take one affine step per position, the gate, or the beginning of an affine rest without a gate."""
        before = self.followed
        assert before is not None
        if name in ("relu", "hardtanh"):
            self.gate = (0.0, math.inf) if name == "relu" else (float(args[1]), float(args[2]))
        elif name in NORMS:
            self._normalise(name, args)
        elif name == "cat" and (args[1:] or (0,))[0] in (1, -3):
            place = next(number for number, tensor in enumerate(args[0]) if tensor is before)
            self.first += sum(tensor.shape[1] for tensor in args[0][:place])
            if sum(tensor is before for tensor in args[0]) > 1:
                raise NoClosedFormError("the map is joined to itself")
        elif name in LINEAR:
            self.gate, self.entering = (-math.inf, math.inf), before
        elif name in ("mul", "div") and _is_number(args[1]):
            assert self.scale is not None
            self.scale = self.scale * args[1] if name == "mul" else self.scale / args[1]
        elif name == "add" and result.shape == before.shape and args[0] is not args[1]:
            pass  # a residual connection
        elif name not in SAME:
            raise NoClosedFormError(f"{name} lies behind the map")
        if result is not before:
            self.spent.append(before)
        self.followed = result
        if self.gate is not None:
            self.reached = [result]

    def _normalise(self, name: str, args: Any) -> None:
        """Multiply the scale by what frozen batch-norm multiplies the map by."""
        assert self.scale is not None
        _refuse_batch_statistics(name, args)
        epsilon = args[6] if name == "_native_batch_norm_legit_no_training" else args[7]
        factor = torch.rsqrt(args[4] + epsilon)
        factor = factor if args[1] is None else factor * args[1]
        self.scale = self.scale * factor[self.first : self.first + len(self.scale)].to(self.scale)

    def _behind_gate(self, name: str, args: Any, followed: list[Tensor]) -> None:
        """Accept what is affine."""
        if name in NORMS:
            _refuse_batch_statistics(name, args)
        elif name in PRODUCTS:
            if len(followed) > 1 or (name == "div" and args[1] is followed[0]):
                raise NoClosedFormError(f"{name} is not linear in the map")
        elif name not in LINEAR | SAME | SUMS:
            raise NoClosedFormError(f"{name} lies behind the activation")


def _refuse_batch_statistics(name: str, args: Any) -> None:
    """Raise where batch-norm couples the images."""
    if name != "_native_batch_norm_legit_no_training" and bool(args[5]):
        raise NoClosedFormError("batch-norm uses the batch's own statistics")


def _is_number(value: Any) -> bool:
    """Return whether a factor is one number for all positions."""
    return value.ndim == 0 if isinstance(value, Tensor) else isinstance(value, int | float)


def _first(result: Any) -> Tensor:
    """Return the output of an operation that may give several."""
    return result[0] if isinstance(result, tuple | list) else result


def _tensors(values: Any) -> list[Tensor]:
    """Return the tensors among arguments, and among lists of them."""
    tensors: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            tensors.append(value)
        elif isinstance(value, list | tuple):
            tensors += [inner for inner in value if isinstance(inner, Tensor)]
    return tensors


@dataclass(frozen=True)
class Gated:
    """A batch at one layer: its map, what enters the gate, and the map's factor there.

    Attributes:
        maps: The layer's map m.
        entering: What enters the gate: `scale` x m + the rest (a bias, a residual connection).
        scale: The map's factor, by kernel.
        low: The gate is open where what enters is above this.
        high: The gate is open where what enters is below this; infinity for a ReLU.
        logits: The network's scores for the batch.
    """

    maps: Float[Tensor, "batch kernel map_height map_width"]
    entering: Float[Tensor, "batch kernel map_height map_width"]
    scale: Float[Tensor, "kernel 1 1"]
    low: float
    high: float
    logits: Float[Tensor, "batch category"]

    def passes(
        self, noise: Float[Tensor, "draw batch kernel map_height map_width"]
    ) -> Bool[Tensor, "draw batch kernel map_height map_width"]:
        """Tell where the gate is open under each draw.

        Args:
            noise: What is added to the map, in units of the map.

        Returns:
            True where the gate is open.
        """
        entering = torch.addcmul(self.entering, self.scale, noise)
        is_open = entering > self.low
        return is_open if math.isinf(self.high) else is_open.logical_and_(entering < self.high)

    def opened(self, images: int | None = 1) -> Float[Tensor, "some kernel map_height map_width"]:
        """Return the maps moved so that every gate is open.

        Args:
            images: How many images to take, from the first; None: all.

        Returns:
            The moved maps of these images.
        """
        maps, entering = self.maps[:images], self.entering[:images]
        if math.isinf(self.low):
            return maps
        inside = self.low + 1.0 if math.isinf(self.high) else (self.low + self.high) / 2
        return maps + (inside - entering) / _no_zeros(self.scale)

    def open_between(
        self, delta: float
    ) -> tuple[
        Float[Tensor, "batch kernel map_height map_width"], Float[Tensor, "batch kernel map_height map_width"]
    ]:
        """Return the noise between which each gate is open.

        Args:
            delta: The range of the noise, in units of the map.

        Returns:
            The least and the greatest noise, each within [-delta, delta].
        """
        scale = _no_zeros(self.scale)
        edges = torch.stack([(self.low - self.entering) / scale, (self.high - self.entering) / scale])
        return edges.amin(0).clamp(-delta, delta), edges.amax(0).clamp(-delta, delta)


def _no_zeros(scale: Tensor) -> Tensor:
    """Put 1 where a factor is 0: there the map has no effect, and no slope either."""
    return scale.where(scale != 0, torch.ones_like(scale))


def gated(model: nn.Module, images: Float[Tensor, "batch channel height width"], layer: str) -> Gated:
    """Run the network forward once and read off what lies behind a layer.

    Args:
        model: The network, in evaluation mode.
        images: Normalised images.
        layer: The name of a layer that is called once.

    Returns:
        The layer's map, what enters the gate behind it, and the gate; without gradients.

    Raises:
        NoClosedFormError: What lies behind the layer is not one gate and an affine rest.
        InputError: The layer does not exist, is not called once, or gives no 4-dimensional map.
    """
    stored: list[Tensor] = []
    behind = _Behind()
    with torch.no_grad(), ExitStack() as stack:

        def tap(output: Tensor) -> Tensor:
            stored.append(output)
            copied = behind.start(output)
            stack.enter_context(behind)  # from here on: the trunk runs unwatched
            return copied

        logits = run_tapped(model, images, {layer: tap})
    if behind.gate is None or behind.entering is None or behind.scale is None:
        raise NoClosedFormError("the map does not reach the logits")
    maps, entering = stored[0], behind.entering
    if entering.ndim == 4:
        entering = entering[:, behind.first : behind.first + maps.shape[1]]
    if entering.shape != maps.shape or not any(logits is tensor for tensor in behind.reached):
        raise NoClosedFormError("the map or the logits change their shape on the way")
    return Gated(maps, entering, behind.scale[:, None, None], *behind.gate, logits)
