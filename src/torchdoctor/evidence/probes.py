"""Choose the fastest way to a layer's noisy evidence (Eq. 4), and say which it was.

`closed form`: forward passes alone, where little lies behind the layer (`closed_form`). `vmap`: the trunk
once and the tail once per draw, all draws in one batch. `repeat`: the same with the images repeated, for
networks that cannot be vmapped. `one gradient call`: no noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from torchdoctor.evidence.closed_form import ClosedForm, closed_form
from torchdoctor.network.frozen import FrozenModel
from torchdoctor.network.gradients import evidence_of, noisy_tail, pick, score_gradients
from torchdoctor.network.memory import floats_at_hand
from torchdoctor.network.taps import map_shapes
from torchdoctor.randomness import uniform_noise
from torchdoctor.types import Evidence, InputError

Draws = int | Literal["exact"]  # the number J of noise draws, 0 for none, or the limit of many


@dataclass(frozen=True)
class NoiseSource:
    """The keyed noise of one layer (Eq. 4).

    Attributes:
        layer: The name of the layer.
        shape: [channel, height, width] of its map.
        draws: The number J of draws; 0: no noise; `exact`: the limit of many.
        delta: The noise is uniform in [-delta, delta], in units of the map.
        seed: What the noise is keyed by, besides layer, image, draw and position.
    """

    layer: str
    shape: tuple[int, int, int]
    draws: Draws
    delta: float
    seed: int

    @property
    def absent(self) -> bool:
        """Whether there is no noise to add."""
        return self.draws == 0 or self.delta == 0

    def chunks(
        self, ids: Int[Tensor, " batch"], at_once: int, dtype: torch.dtype
    ) -> Iterator[Float[Tensor, "draw batch channel height width"]]:
        """Draw the noise of some images.

        Args:
            ids: The images' ids.
            at_once: How many draws to yield at a time; the values do not depend on it.
            dtype: The floating type of the noise.

        Yields:
            At most `at_once` draws; a single draw of zeros where there is no noise or its limit is asked for.
        """
        if self.absent or self.draws == "exact":
            yield torch.zeros(1, len(ids), *self.shape, dtype=dtype, device=ids.device)
            return
        for start in range(0, self.draws, at_once):
            draws = range(start, min(start + at_once, self.draws))
            unit = uniform_noise(ids, draws, self.shape, seed=self.seed, layer=self.layer, dtype=dtype)
            yield unit.mul_(self.delta)


@dataclass
class Probe:
    """The way to the evidence at one layer.

    Attributes:
        frozen: The network.
        noise: The layer's noise.
        kind: abs(dy/dm), or abs(m dy/dm) where m is the map with its noise.
        form: The layer's closed form, if it has one.
        path: The name of the way: see this module's first lines.
        max_floats: How many floats of noise one pass may draw.
    """

    frozen: FrozenModel
    noise: NoiseSource
    kind: Evidence
    form: ClosedForm | None
    path: str
    max_floats: int

    def draws(
        self,
        pixels: Float[Tensor, "batch channel height width"],
        targets: Int[Tensor, " batch"],
        ids: Int[Tensor, " batch"],
    ) -> Iterator[
        tuple[
            Float[Tensor, "draw batch kernel map_height map_width"],
            Float[Tensor, "batch kernel map_height map_width"],
        ]
    ]:
        """Compute the evidence of a batch under some draws at a time (the inside of Eq. 4).

        Args:
            pixels: Normalised images, on the network's device and in its type.
            targets: The number of each image's category.
            ids: The images' ids, which key the noise.

        Yields:
            The evidence under each of these draws, and the layer's map without noise. A pass that does not
            fit into memory raises as the device did; ask again after `shrink`.
        """
        noise = self.noise
        chunks = noise.chunks(ids, self.at_once(len(pixels)), pixels.dtype)
        if self.form is not None:
            batch = self.form.gated(pixels)
            if noise.draws == "exact":
                mean = self.form.expectation(batch, pixels, targets, noise.delta, self.kind)
                yield mean[None], batch.maps
                return
            for evidence in self.form.evidence(batch, pixels, targets, chunks, self.kind):
                yield evidence, batch.maps
            return
        with torch.enable_grad():
            for chunk in chunks:
                tail = noisy_tail(self.frozen.model, pixels, noise.layer, chunk)
                self.path = "one gradient call" if noise.absent else tail.path
                score = pick(tail.logits, targets)
                gradient = score_gradients([score], {noise.layer: tail.noise})[0][noise.layer]
                maps = tail.maps.detach()
                clean = maps[0] - chunk.detach()[0]
                yield evidence_of(gradient, maps, self.kind), clean

    def at_once(self, images: int) -> int:
        """Return how many draws go into one pass.

        Args:
            images: The number of images in the pass.

        Returns:
            A number of at least 1.
        """
        return max(1, self.max_floats // (images * math.prod(self.noise.shape)))

    def shrink(self, images: int) -> bool:
        """Take half as many draws into one pass from now on.

        Args:
            images: The number of images in a pass.

        Returns:
            False if a pass holds a single draw already, and nothing was changed.
        """
        draws = self.noise.draws if isinstance(self.noise.draws, int) else 1
        at_once = min(self.at_once(images), max(draws, 1))
        if at_once <= 1:
            return False
        self.max_floats = (at_once // 2) * images * math.prod(self.noise.shape)
        return True


def probe(
    frozen: FrozenModel,
    pixels: Float[Tensor, "batch channel height width"],
    noise: NoiseSource,
    kind: Evidence,
) -> Probe:
    """Choose the way for one layer.

    Args:
        frozen: The network, from `frozen_eval`.
        pixels: Normalised images, on the network's device and in its type; the first two are used.
        noise: The layer's noise.
        kind: abs(dy/dm), or abs(m dy/dm) where m is the map with its noise.

    Returns:
        The way, which can be asked inside the same block of `frozen_eval`.

    Raises:
        InputError: `noise.draws` is `exact` and the layer has no closed form.
    """
    form = closed_form(frozen, pixels, noise.layer)
    if form is None and noise.draws == "exact":
        raise InputError(
            f"draws 'exact': layer {noise.layer!r} has no closed form (more than one activation, or none "
            "that is piecewise linear, lies behind it): give a number of draws, or the last convolution"
        )
    path = "vmap" if form is None else "closed form"
    return Probe(frozen, noise, kind, form, path, floats_at_hand(pixels.device))


def probes(
    frozen: FrozenModel,
    pixels: Float[Tensor, "batch channel height width"],
    deltas: Mapping[str, float],
    draws: Draws,
    kind: Evidence,
    seed: int,
) -> dict[str, Probe]:
    """Choose the way for every layer that noise is added to.

    Args:
        frozen: The network, from `frozen_eval`.
        pixels: Normalised images, on the network's device and in its type; the first two are used.
        deltas: The range of the noise by layer, in units of the layer's map.
        draws: The number J of draws; 0: no noise; `exact`: the limit of many.
        kind: abs(dy/dm), or abs(m dy/dm) where m is the map with its noise.
        seed: What the noise is keyed by.

    Returns:
        The way by layer.

    Raises:
        InputError: A layer cannot be used, or `draws` is `exact` and it has no closed form.
    """
    shapes = map_shapes(frozen.model, pixels, list(deltas))
    return {
        layer: probe(frozen, pixels, NoiseSource(layer, shapes[layer], draws, delta, seed), kind)
        for layer, delta in deltas.items()
    }
