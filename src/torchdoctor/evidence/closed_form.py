"""Know the noisy gradient without running the tail: conv - batch-norm - ReLU - pool - linear, and less.

Where nothing but an affine step and one ReLU per position lies between a map and an affine rest, the
derivative under a draw is a constant where the ReLU is open and 0 elsewhere (Eq. 4 in closed form). What
lies behind a map is read off the operations that really run, and tried against the network itself before
it is believed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from torchdoctor.network.gradients import evidence_of, noisy_tail, pick, score_gradients
from torchdoctor.network.hooks import run_tapped
from torchdoctor.randomness import uniform_noise
from torchdoctor.types import Evidence

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
    """Follows one map through the operations behind it, and raises NoClosedFormError at an unknown one.

    `scale` [kernel] is the map's factor before the gate, `entering` the gate's input, `first` the place
    of the map's kernels among its channels, `gate` the values between which it is open.
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
        """Begin at this map, and hand on a copy."""
        self.followed = output.clone()
        self.scale = torch.ones_like(output[0, :, 0, 0])
        return self.followed

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and look at it where it takes the map or what came of it."""
        name = function._schema.name.removeprefix("aten::").rstrip("_")
        inputs = _tensors(args)
        if any(one is old for one in inputs for old in self.spent):
            raise NoClosedFormError(f"{name} uses the map a second time")
        if self.gate is None and any(one is self.followed for one in inputs):
            if name in ("relu", "hardtanh"):
                self.entering = inputs[0].clone()  # it may be overwritten in place
            result = function(*args, **(kwargs or {}))
            self._before_gate(name, args, _first(result))
            return result
        mine = [one for one in inputs if any(one is known for known in self.reached)]
        result = function(*args, **(kwargs or {}))
        if mine:
            self._behind_gate(name, args, mine)
            self.reached += _tensors(result if isinstance(result, tuple | list) else [result])
        return result

    def _before_gate(self, name: str, args: Any, result: Tensor) -> None:
        """Take one affine step per position, the gate, or the beginning of an affine rest without one."""
        before = self.followed
        assert before is not None
        if name in ("relu", "hardtanh"):
            self.gate = (0.0, math.inf) if name == "relu" else (float(args[1]), float(args[2]))
        elif name in NORMS:
            self._normalise(name, args)
        elif name == "cat" and (args[1:] or (0,))[0] in (1, -3):
            place = next(number for number, one in enumerate(args[0]) if one is before)
            self.first += sum(one.shape[1] for one in args[0][:place])
            if sum(one is before for one in args[0]) > 1:
                raise NoClosedFormError("the map is joined to itself")
        elif name in LINEAR:
            self.gate, self.entering = (-math.inf, math.inf), before
        elif name in ("mul", "div") and _is_number(args[1]):
            assert self.scale is not None
            self.scale = self.scale * args[1] if name == "mul" else self.scale / args[1]
        elif name == "add" and result.shape == before.shape and args[0] is not args[1]:
            pass  # a shortcut
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

    def _behind_gate(self, name: str, args: Any, mine: list[Tensor]) -> None:
        """Accept what is affine."""
        if name in NORMS:
            _refuse_batch_statistics(name, args)
        elif name in PRODUCTS:
            if len(mine) > 1 or (name == "div" and args[1] is mine[0]):
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
    found: list[Tensor] = []
    for one in values:
        if isinstance(one, Tensor):
            found.append(one)
        elif isinstance(one, list | tuple):
            found += [inner for inner in one if isinstance(inner, Tensor)]
    return found


@dataclass(frozen=True)
class Gated:
    """A batch at one layer: its map, what enters the gate, and the map's factor there.

    `entering` = `scale` x map + the rest (a bias, a shortcut); the gate is open between `low` and `high`.
    """

    maps: Float[Tensor, "batch kernel map_height map_width"]
    entering: Float[Tensor, "batch kernel map_height map_width"]
    scale: Float[Tensor, "kernel 1 1"]
    low: float
    high: float
    logits: Float[Tensor, "batch category"]

    def passes(self, noise: Float[Tensor, "draw batch kernel map_height map_width"]) -> Tensor:
        """Return where the gate is open under each draw, as booleans."""
        entering = torch.addcmul(self.entering, self.scale, noise)
        is_open = entering > self.low
        return is_open if math.isinf(self.high) else is_open.logical_and_(entering < self.high)

    def opened(self, images: int | None = 1) -> Float[Tensor, "some kernel map_height map_width"]:
        """Return the maps of the first images, or of all, moved so that every gate is open."""
        maps, entering = self.maps[:images], self.entering[:images]
        if math.isinf(self.low):
            return maps
        inside = self.low + 1.0 if math.isinf(self.high) else (self.low + self.high) / 2
        return maps + (inside - entering) / _no_zeros(self.scale)

    def open_between(self, delta: float) -> tuple[Tensor, Tensor]:
        """Return from which noise to which, within [-delta, delta], each gate is open."""
        scale = _no_zeros(self.scale)
        edges = torch.stack([(self.low - self.entering) / scale, (self.high - self.entering) / scale])
        return edges.amin(0).clamp(-delta, delta), edges.amax(0).clamp(-delta, delta)


def _no_zeros(scale: Tensor) -> Tensor:
    """Put 1 where a factor is 0: there the map has no effect, and no slope either."""
    return scale.where(scale != 0, torch.ones_like(scale))


def gated(model: nn.Module, images: Float[Tensor, "batch channel height width"], layer: str) -> Gated:
    """Run the network forward once and read off what lies behind the layer; NoClosedFormError otherwise."""
    stored: list[Tensor] = []
    behind = _Behind()
    with torch.no_grad(), ExitStack() as stack:

        def tap(output: Tensor) -> Tensor:
            stored.append(output)
            handed_on = behind.start(output)
            stack.enter_context(behind)  # from here on: the trunk runs unwatched
            return handed_on

        logits = run_tapped(model, images, {layer: tap})
    if behind.gate is None or behind.entering is None or behind.scale is None:
        raise NoClosedFormError("the map does not reach the logits")
    maps, entering = stored[0], behind.entering
    if entering.ndim == 4:
        entering = entering[:, behind.first : behind.first + maps.shape[1]]
    if entering.shape != maps.shape or not any(logits is one for one in behind.reached):
        raise NoClosedFormError("the map or the logits change their shape on the way")
    return Gated(maps, entering, behind.scale[:, None, None], *behind.gate, logits)


@dataclass
class ClosedForm:
    """The closed form of one layer; `slopes` keeps what was found for each category so far.

    slopes[c] = d y_c / d m with every gate open, [kernel, height, width], or [kernel, 1, 1] where all
    positions count alike (behind a global average).
    """

    model: nn.Module
    layer: str
    slopes: dict[int, Tensor] = field(default_factory=dict)

    def gated(self, pixels: Float[Tensor, "batch channel height width"]) -> Gated:
        """Run the batch forward."""
        return gated(self.model, pixels, self.layer)

    def evidence(
        self,
        found: Gated,
        pixels: Float[Tensor, "batch channel height width"],
        targets: Int[Tensor, " batch"],
        noise: Iterable[Float[Tensor, "draw batch kernel map_height map_width"]],
        kind: Evidence,
    ) -> Iterator[Float[Tensor, "draw batch kernel map_height map_width"]]:
        """Yield the evidence under each chunk of draws."""
        slope = self.slope(found, pixels, targets).abs()
        for some in noise:
            size = slope if kind == "gradient" else (found.maps + some).abs_().mul_(slope)
            yield size * found.passes(some)

    def expectation(
        self,
        found: Gated,
        pixels: Float[Tensor, "batch channel height width"],
        targets: Int[Tensor, " batch"],
        delta: float,
        kind: Evidence,
    ) -> Float[Tensor, "batch kernel map_height map_width"]:
        """Return the mean over all noise in [-delta, delta]: what more and more draws tend to."""
        slope = self.slope(found, pixels, targets).abs()
        if delta == 0:
            size = slope if kind == "gradient" else slope * found.maps.abs()
            return size * found.passes(torch.zeros_like(found.maps)[None])[0]
        low, high = found.open_between(delta)
        if kind == "gradient":
            return slope * (high - low) / (2 * delta)
        low, high = found.maps + low, found.maps + high  # the integral of abs(u) is u abs(u) / 2
        return slope * (high * high.abs() - low * low.abs()) / (4 * delta)

    def slope(self, found: Gated, pixels: Tensor, targets: Tensor) -> Tensor:
        """Return d y / d m of each image's category with every gate open, [batch, kernel, *, *]."""
        missing = sorted(set(targets.tolist()) - set(self.slopes))
        for start in range(0, len(missing), 64):
            self._learn(missing[start : start + 64], found.opened(), pixels[:1])
        return torch.stack([self.slopes[one] for one in targets.tolist()])

    def _learn(self, categories: list[int], opened: Tensor, image: Tensor) -> None:
        """Differentiate these categories' scores by a map that opens every gate."""
        maps = opened.repeat(len(categories), 1, 1, 1).requires_grad_(True)
        with torch.enable_grad():
            repeated = image.expand(len(categories), -1, -1, -1)
            logits = run_tapped(self.model, repeated, {self.layer: lambda _output: maps.clone()})
            scores = pick(logits, torch.tensor(categories, device=logits.device))
            slope = score_gradients([scores], {self.layer: maps})[0][self.layer]
        alike = bool((slope == slope[:, :, :1, :1]).all())
        for category, one in zip(categories, slope[:, :, :1, :1] if alike else slope, strict=True):
            self.slopes[category] = one.clone()


def closed_form(
    model: nn.Module, pixels: Float[Tensor, "batch channel height width"], layer: str
) -> ClosedForm | None:
    """Return the closed form of a layer; None where it has none, or not one that the network confirms.

    Tried on two images with two draws of noise wide enough to open and close gates. The caller holds the
    network in `measuring`.
    """
    images, form = pixels[:2], ClosedForm(model, layer)
    try:
        found = form.gated(images)
        width = 2 * float(found.maps.std(correction=0)) + 1e-3
        ids = torch.arange(len(images), device=images.device)
        shape = (found.maps.shape[1], found.maps.shape[2], found.maps.shape[3])
        noise = width * uniform_noise(
            ids, range(2), shape, seed=0, layer=layer, stream="trial", dtype=found.maps.dtype
        )
        targets = found.logits.argmax(1)
        (mine,) = form.evidence(found, images, targets, [noise], "gradient_x_activation")
    except NoClosedFormError:
        return None
    with torch.enable_grad():
        tail = noisy_tail(model, images, layer, noise.clone())
        gradient = score_gradients([pick(tail.logits, targets)], {layer: tail.noise})[0][layer]
    wanted = evidence_of(gradient, tail.maps, "gradient_x_activation").detach()
    # A gate within rounding of its edge may fall either way: single positions may differ, not many.
    off = (mine - wanted).abs() > (1e-9 if images.dtype == torch.float64 else 1e-4) * wanted.abs().max()
    return form if bool(wanted.any()) and float(off.double().mean()) < 1e-3 else None
