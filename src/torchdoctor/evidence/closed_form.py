"""Know the noisy gradient without running the tail: conv - batch-norm - ReLU - pool - linear, and less.

Where nothing but an affine step and one gate per position lies between a map and an affine rest (`gates`),
the derivative under a draw is a constant where the gate is open and 0 elsewhere (Eq. 4 in closed form). It is
tried against the network itself before it is believed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from torchdoctor.evidence.gates import Gated, NoClosedFormError, gated
from torchdoctor.network.frozen import FrozenModel
from torchdoctor.network.gradients import evidence_of, noisy_tail, pick, score_gradients
from torchdoctor.network.taps import run_tapped
from torchdoctor.randomness import uniform_noise
from torchdoctor.types import Evidence


@dataclass
class ClosedForm:
    """The closed form of one layer of a network.

    Attributes:
        frozen: The network.
        layer: The name of the layer.
        slopes: What is known so far, by category c: d y_c / d m with every gate open, [kernel, height,
            width], or [kernel, 1, 1] where all positions count alike (behind a global average).
    """

    frozen: FrozenModel
    layer: str
    slopes: dict[int, Tensor] = field(default_factory=dict)

    def gated(self, pixels: Float[Tensor, "batch channel height width"]) -> Gated:
        """Run a batch forward (see `gates.gated`).

        Args:
            pixels: Normalised images, on the network's device and in its type.

        Returns:
            The batch at this layer.

        Raises:
            NoClosedFormError: What lies behind the layer is not one gate and an affine rest.
        """
        return gated(self.frozen.model, pixels, self.layer)

    def evidence(
        self,
        batch: Gated,
        pixels: Float[Tensor, "batch channel height width"],
        targets: Int[Tensor, " batch"],
        noise: Iterable[Float[Tensor, "draw batch kernel map_height map_width"]],
        kind: Evidence,
    ) -> Iterator[Float[Tensor, "draw batch kernel map_height map_width"]]:
        """Compute the evidence under some draws at a time (the inside of Eq. 4).

        Args:
            batch: The batch at this layer, from `gated`.
            pixels: Its images.
            targets: The number of each image's category.
            noise: Some draws at a time, in units of the map.
            kind: abs(dy/dm), or abs(m dy/dm) where m is the map with its noise.

        Yields:
            The evidence under each of these draws.
        """
        slope = self.slope(batch, pixels, targets).abs()
        for draws in noise:
            size = slope if kind == "gradient" else (batch.maps + draws).abs_().mul_(slope)
            yield size * batch.passes(draws)

    def expectation(
        self,
        batch: Gated,
        pixels: Float[Tensor, "batch channel height width"],
        targets: Int[Tensor, " batch"],
        delta: float,
        kind: Evidence,
    ) -> Float[Tensor, "batch kernel map_height map_width"]:
        """Integrate the evidence over all noise (Eq. 4 in the limit of many draws).

        Args:
            batch: The batch at this layer, from `gated`.
            pixels: Its images.
            targets: The number of each image's category.
            delta: The range of the noise, uniform in [-delta, delta], in units of the map.
            kind: abs(dy/dm), or abs(m dy/dm) where m is the map with its noise.

        Returns:
            The mean evidence.
        """
        slope = self.slope(batch, pixels, targets).abs()
        if delta == 0:
            size = slope if kind == "gradient" else slope * batch.maps.abs()
            return size * batch.passes(torch.zeros_like(batch.maps)[None])[0]
        low, high = batch.open_between(delta)
        if kind == "gradient":
            return slope * (high - low) / (2 * delta)
        low, high = batch.maps + low, batch.maps + high  # the integral of abs(u) is u abs(u) / 2
        return slope * (high * high.abs() - low * low.abs()) / (4 * delta)

    def slope(self, batch: Gated, pixels: Tensor, targets: Tensor) -> Tensor:
        """Return d y / d m of each image's category with every gate open.

        Args:
            batch: The batch at this layer, from `gated`.
            pixels: Its images [batch, channel, height, width].
            targets: The number of each image's category [batch].

        Returns:
            The slopes [batch, kernel, height, width], or [batch, kernel, 1, 1] where all positions count
            alike.
        """
        missing = sorted(set(targets.tolist()) - set(self.slopes))
        for start in range(0, len(missing), 64):
            self._learn(missing[start : start + 64], batch.opened(), pixels[:1])
        return torch.stack([self.slopes[category] for category in targets.tolist()])

    def _learn(self, categories: list[int], opened: Tensor, image: Tensor) -> None:
        """Differentiate these categories' scores by a map that opens every gate."""
        maps = opened.repeat(len(categories), 1, 1, 1).requires_grad_(True)
        with torch.enable_grad():
            repeated = image.expand(len(categories), -1, -1, -1)
            logits = run_tapped(self.frozen.model, repeated, {self.layer: lambda _output: maps.clone()})
            scores = pick(logits, torch.tensor(categories, device=logits.device))
            slopes = score_gradients([scores], {self.layer: maps})[0][self.layer]
        alike = bool((slopes == slopes[:, :, :1, :1]).all())
        for category, slope in zip(categories, slopes[:, :, :1, :1] if alike else slopes, strict=True):
            self.slopes[category] = slope.clone()


def closed_form(
    frozen: FrozenModel, pixels: Float[Tensor, "batch channel height width"], layer: str
) -> ClosedForm | None:
    """Return the closed form of a layer, if it has one that the network confirms.

    Tried on two images with two draws of noise wide enough to open and close gates.

    Args:
        frozen: The network, from `frozen_eval`.
        pixels: Normalised images, on the network's device and in its type; the first two are used.
        layer: The name of a layer that is called once.

    Returns:
        The closed form; None where there is none, or where the network computes something else.

    Raises:
        InputError: The layer does not exist, is not called once, or gives no 4-dimensional map.
    """
    images, form = pixels[:2], ClosedForm(frozen, layer)
    try:
        batch = form.gated(images)
        width = 2 * float(batch.maps.std(correction=0)) + 1e-3
        ids = torch.arange(len(images), device=images.device)
        shape = (batch.maps.shape[1], batch.maps.shape[2], batch.maps.shape[3])
        noise = width * uniform_noise(
            ids, range(2), shape, seed=0, layer=layer, stream="trial", dtype=batch.maps.dtype
        )
        targets = batch.logits.argmax(1)
        (claimed,) = form.evidence(batch, images, targets, [noise], "gradient_x_activation")
    except NoClosedFormError:
        return None
    with torch.enable_grad():
        tail = noisy_tail(frozen.model, images, layer, noise.clone())
        gradient = score_gradients([pick(tail.logits, targets)], {layer: tail.noise})[0][layer]
    wanted = evidence_of(gradient, tail.maps, "gradient_x_activation").detach()
    # A gate within rounding of its edge may fall either way: single positions may differ, not many.
    off = (claimed - wanted).abs() > (1e-9 if images.dtype == torch.float64 else 1e-4) * wanted.abs().max()
    return form if bool(wanted.any()) and float(off.double().mean()) < 1e-3 else None
