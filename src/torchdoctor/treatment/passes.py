"""Plan which passes behind the constrained layers a step needs, on which images and noise, and run them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from torchdoctor.diagnosis.result import Diagnosis
from torchdoctor.images.batches import Batch, take
from torchdoctor.network.double_backward import fast_double_backward
from torchdoctor.network.tails import Tail, Trunk
from torchdoctor.network.taps import map_shapes
from torchdoctor.randomness import uniform_noise
from torchdoctor.treatment.constraints import Constraint
from torchdoctor.types import ReduceDraws


@dataclass(frozen=True)
class Noise:
    """How the noise sigma of a treated step is drawn.

    `Differs from the paper:` Eq. 5-6 sum over the draws (`reduce="sum"`); the mean, as in Eq. 4, makes
    weights independent of J.

    Attributes:
        draws: The number J of draws; 0: no noise.
        reduce: How Eq. 5-6 put the draws together.
        seed: What the noise is keyed by.
    """

    draws: int = 1
    reduce: ReduceDraws = "mean"
    seed: int = 0


@dataclass(frozen=True)
class Tails:
    """What a step knows about the tails of its layers.

    Attributes:
        trunk: What the step's forward pass left behind; its shortcuts say which tails can be run alone.
        closed: The names of the layers whose tail has a closed form.
        shapes: [channel, height, width] of each layer's map, by name; empty: to be found out.
    """

    trunk: Trunk
    closed: Collection[str] = ()
    shapes: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Pass:
    """The result of a pass through the network.

    Attributes:
        rows: Which images of the batch it ran, by their place.
        logits: The scores [draw, row, category]; a single draw where there is no noise.
        maps: The maps by layer, with their noise where there is some: [draw, row, kernel, height, width], or
            [row, kernel, height, width].
        differentiable: What to differentiate the scores by, of the shapes of `maps`: the noise, or the maps
            themselves.
    """

    rows: Int[Tensor, " row"]
    logits: Float[Tensor, "draw row category"]
    maps: Mapping[str, Tensor]
    differentiable: Mapping[str, Tensor]


@dataclass(frozen=True)
class PlannedPass:
    """One pass that the constraints need.

    Attributes:
        tail: The tail that is run: of the layer, or (without noise) of the first of the layers.
        layers: The names of the layers that the pass serves.
        rows: Which images of the batch the constraints judge there, by their place.
        noise: What is added to the layer's map, in units of the map; None: no noise.
        in_closed_form: Whether the mean over the draws is known in closed form, so that no draw need be run.
    """

    tail: Tail
    layers: Sequence[str]
    rows: Int[Tensor, " row"]
    noise: Float[Tensor, "draw row channel height width"] | None = None
    in_closed_form: bool = False

    def run(self) -> Pass:
        """Run the pass, in ways whose second derivative is cheap.

        Returns:
            The scores and maps, differentiable by the weights.

        Raises:
            InputError: A layer cannot be used.
        """
        with fast_double_backward(self.tail.model):
            if self.noise is None:
                behind = [layer for layer in self.layers if layer != self.tail.layer]
                logits, maps = self.tail.clean(behind)
                return Pass(self.rows, logits[None], maps, maps)
            noisy = self.tail.noisy(self.noise)
            layer = self.tail.layer
            return Pass(self.rows, noisy.logits, {layer: noisy.maps}, {layer: noisy.noise})


def plan_passes(
    batch: Batch,
    constraints: Sequence[Constraint],
    diagnosis: Diagnosis,
    noise: Noise,
    step: int,
    tails: Tails,
) -> Iterator[PlannedPass]:
    """Plan the passes that the constraints' layers need, on the images that they judge.

    Without noise a single pass serves all layers; with noise each layer has its own, as in Eq. 4.

    Args:
        batch: The step's images.
        constraints: The constraints, each with its layers.
        diagnosis: What says the range of each layer's noise.
        noise: How the noise is drawn.
        step: The number of the step, which keys the noise.
        tails: What is known about the layers' tails.

    Yields:
        The passes. There is none for layers at which no image is judged.

    Raises:
        InputError: A layer cannot be used.
    """
    layers = list(dict.fromkeys(layer for constraint in constraints for layer in constraint.layers))
    if not layers:
        return
    groups = [layers] if noise.draws == 0 else [[layer] for layer in layers]
    trunk, shapes = tails.trunk, tails.shapes
    if noise.draws and not shapes:
        shapes = map_shapes(trunk.model, batch.images, layers)
    for group in groups:
        judges = [constraint for constraint in constraints if set(group) & set(constraint.layers)]
        rows = torch.arange(len(batch.labels))
        if all(constraint.needs_masks for constraint in judges):
            rows = rows[annotated_rows(batch)]
        if len(rows) == 0:
            continue
        part = part_of(batch, rows)
        first = next((layer for layer in group if layer in trunk.shortcuts), group[0])
        tail = trunk.tail(first, part.images, None if part is batch else rows)
        if noise.draws == 0:
            yield PlannedPass(tail, group, rows)
            continue
        sigma = diagnosis.layer(first).delta * uniform_noise(
            part.ids,
            range(noise.draws),
            shapes[first],
            seed=noise.seed,
            layer=first,
            stream="treatment",
            step=step,
            dtype=batch.images.dtype,
        )
        known = first in tails.closed and first in trunk.shortcuts
        linear = all(constraint.linear for constraint in judges)
        yield PlannedPass(tail, group, rows, sigma, known and noise.draws > 1 and linear)


def annotated_rows(batch: Batch) -> Bool[Tensor, " batch"]:
    """Tell which images show a mask.

    Args:
        batch: The images.

    Returns:
        True where an image is annotated; on the CPU, so that choosing rows waits for no device.
    """
    return torch.zeros(len(batch.labels)).bool() if batch.annotated is None else batch.annotated.cpu()


def part_of(batch: Batch, rows: Tensor) -> Batch:
    """Return some images of a batch.

    Args:
        batch: The images.
        rows: The places of the wanted ones [row], each once.

    Returns:
        These images; the batch itself where they are all.
    """
    return batch if len(rows) == len(batch.labels) else take(batch, rows)
