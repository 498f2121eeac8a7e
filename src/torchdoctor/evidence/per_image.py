"""Find each image's evidence at a layer by the fastest way that applies (Eq. 2-4), and say which it was.

`closed form`: forward passes alone, where little lies behind the layer (`closed_form`). `vmap`: the trunk
once and the tail once per draw, all draws in one batch. `repeat`: the same with the images repeated, for
networks that cannot be vmapped. `one gradient call`: all layers of a diagnosis without noise together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from torchdoctor.evidence.closed_form import ClosedForm, closed_form
from torchdoctor.images.batches import Batch
from torchdoctor.images.masks import background_mask
from torchdoctor.network.gradients import evidence_of, noisy_tail, pick, score_gradients
from torchdoctor.network.hooks import keep_in, map_shapes, run_tapped
from torchdoctor.network.layers import compute_before
from torchdoctor.network.memory import floats_at_hand, out_of_memory
from torchdoctor.randomness import uniform_noise
from torchdoctor.types import Evidence, InputError

LEAST_MAP_SIDE = 7  # coarser maps say little about where the evidence lies

Draws = int | Literal["exact"]
Maps = Float[Tensor, "batch kernel map_height map_width"]
DrawnEvidence = Float[Tensor, "draw batch kernel map_height map_width"]


@dataclass(frozen=True)
class NoiseSource:
    """The keyed noise of one layer: J draws, each uniform in [-delta, delta] (Eq. 4)."""

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
        """Yield the noise of these images, `at_once` draws at a time; the values do not depend on that."""
        if self.absent or self.draws == "exact":
            yield torch.zeros(1, len(ids), *self.shape, dtype=dtype, device=ids.device)
            return
        for start in range(0, self.draws, at_once):
            some = range(start, min(start + at_once, self.draws))
            unit = uniform_noise(ids, some, self.shape, seed=self.seed, layer=self.layer, dtype=dtype)
            yield unit.mul_(self.delta)


@dataclass
class Probe:
    """How the evidence at one layer is found. `path` names the way; `room` bounds a pass, in floats."""

    model: nn.Module
    noise: NoiseSource
    kind: Evidence
    form: ClosedForm | None
    path: str
    room: int

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
        """Yield the evidence of some draws at a time, with the clean map; the caller holds `measuring`.

        A pass that does not fit into memory raises as the device did; ask again with less `room`.
        """
        noise = self.noise
        chunks = noise.chunks(ids, self.at_once(len(pixels)), pixels.dtype)
        if self.form is not None:
            found = self.form.gated(pixels)
            if noise.draws == "exact":
                mean = self.form.expectation(found, pixels, targets, noise.delta, self.kind)
                yield mean[None], found.maps
                return
            for part in self.form.evidence(found, pixels, targets, chunks, self.kind):
                yield part, found.maps
            return
        with torch.enable_grad():
            for some in chunks:
                tail = noisy_tail(self.model, pixels, noise.layer, some)
                self.path = "one gradient call" if noise.absent else tail.path
                score = pick(tail.logits, targets)
                gradient = score_gradients([score], {noise.layer: tail.noise})[0][noise.layer]
                maps = tail.maps.detach()
                clean = maps[0] - some.detach()[0]
                yield evidence_of(gradient, maps, self.kind), clean

    def at_once(self, images: int) -> int:
        """Return how many draws go into one pass."""
        return max(1, self.room // (images * math.prod(self.noise.shape)))

    def shrink(self, images: int) -> bool:
        """Take half as many draws into one pass from now on; False when it is one already."""
        drawn = self.noise.draws if isinstance(self.noise.draws, int) else 1
        at_once = min(self.at_once(images), max(drawn, 1))
        if at_once <= 1:
            return False
        self.room = (at_once // 2) * images * math.prod(self.noise.shape)
        return True


def probe(
    model: nn.Module, pixels: Float[Tensor, "batch channel height width"], noise: NoiseSource, kind: Evidence
) -> Probe:
    """Choose the way for one layer on the first images; the caller holds the network in `measuring`.

    InputError where draws="exact" is asked of a layer without a closed form.
    """
    form = closed_form(model, pixels, noise.layer)
    if form is None and noise.draws == "exact":
        raise InputError(
            f"draws 'exact': layer {noise.layer!r} has no closed form (more than one activation, or none "
            "that is piecewise linear, lies behind it): give a number of draws, or the last convolution"
        )
    path = "vmap" if form is None else "closed form"
    return Probe(model, noise, kind, form, path, floats_at_hand(pixels.device))


def image_evidence(
    probe: Probe,
    pixels: Float[Tensor, "batch channel height width"],
    targets: Int[Tensor, " batch"],
    ids: Int[Tensor, " batch"],
) -> Float[Tensor, "batch kernel map_height map_width"]:
    """Return each image's evidence averaged over the draws (Eq. 4); the caller holds `measuring`.

    Where a pass does not fit into memory it is tried again with half the draws, down to one.
    """
    while True:
        try:
            total, number = None, 0
            for part, _ in probe.draws(pixels, targets, ids):
                total = part.sum(0) if total is None else total + part.sum(0)
                number += len(part)
            assert total is not None
            return total / number
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error) or not probe.shrink(len(pixels)):
                raise


def clean_evidence(
    model: nn.Module,
    pixels: Float[Tensor, "batch channel height width"],
    targets: Int[Tensor, " batch"] | None,
    layers: Sequence[str],
    kind: Evidence,
) -> tuple[dict[str, Tensor], dict[str, Tensor], Float[Tensor, "batch category"]]:
    """Return (evidence, maps, logits) at all layers without noise, from one forward and one gradient call.

    `targets` None means the prediction. Evidence and maps are [batch, kernel, height, width] by layer.
    The caller holds the network in `measuring`.
    """
    maps: dict[str, Tensor] = {}
    with torch.enable_grad():
        logits = run_tapped(model, pixels, {layer: keep_in(maps, layer) for layer in layers})
        wanted = logits.argmax(1) if targets is None else targets
        gradients = score_gradients([pick(logits, wanted)], maps)[0]
    plain = {layer: maps[layer].detach() for layer in layers}
    return {one: evidence_of(gradients[one], plain[one], kind) for one in layers}, plain, logits.detach()


def diagnosis_cost(
    model: nn.Module,
    pixels: Float[Tensor, "batch channel height width"],
    layers: Sequence[str],
    draws: Draws,
) -> float:
    """Return what the evidence of one image costs, in forward passes, before any of it is computed.

    A tail costs its share rho of a forward pass, once forward and once backward for each draw; a closed
    form costs one forward pass; without noise all layers together cost 1 + the largest rho.
    """
    done = compute_before(model, pixels[:1], layers)[0]
    rho = {layer: 1.0 - done[layer] / max(done[""], 1) for layer in layers}
    if draws == 0:
        return 1.0 + max(rho.values(), default=0.0)
    if draws == "exact":
        return float(len(layers))
    return sum(
        1.0 if closed_form(model, pixels, layer) is not None else 1.0 - rho[layer] + 2 * draws * rho[layer]
        for layer in layers
    )


def probes(
    model: nn.Module,
    pixels: Float[Tensor, "batch channel height width"],
    deltas: Mapping[str, float],
    draws: Draws,
    kind: Evidence,
    seed: int,
) -> dict[str, Probe]:
    """Choose the way for every layer that noise is added to."""
    shapes = map_shapes(model, pixels, list(deltas))
    return {
        layer: probe(model, pixels, NoiseSource(layer, shapes[layer], draws, delta, seed), kind)
        for layer, delta in deltas.items()
    }


def background_shares_of(
    evidence: Float[Tensor, "batch kernel map_height map_width"], batch: Batch
) -> Float[np.ndarray, " batch"]:
    """Return the share of each image's evidence on the background; NaN where no mask or no evidence is."""
    total, outside = evidence_by_place(evidence, batch)
    return background_share(total.cpu().numpy(), outside.cpu().numpy())


def evidence_by_place(
    evidence: Float[Tensor, "*draw batch kernel map_height map_width"], batch: Batch
) -> tuple[Float[Tensor, "*draw batch"], Float[Tensor, "*draw batch"]]:
    """Return the evidence everywhere and on the background, in float64; NaN on it without a mask."""
    per_place = evidence.sum(-3)
    total = per_place.sum((-2, -1), dtype=torch.float64)
    if batch.masks is None:
        return total, torch.full_like(total, math.nan)
    size = (per_place.shape[-2], per_place.shape[-1])
    background = background_mask(batch.masks.to(per_place), size)[:, 0]
    outside = (per_place * background).sum((-2, -1), dtype=torch.float64)
    if batch.annotated is not None:
        outside = outside.where(batch.annotated.to(outside.device), torch.full_like(outside, math.nan))
    return total, outside


def background_share(
    total: Float[np.ndarray, " batch"], outside: Float[np.ndarray, " batch"]
) -> Float[np.ndarray, " batch"]:
    """Divide the evidence on the background by all of it; NaN where there is none."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(total > 0, outside / total, np.nan)


def finest(layers: Sequence[str], sizes: Mapping[str, tuple[int, int]]) -> str:
    """Return the last layer whose map has at least 7 positions a side, else the first."""
    fine = [one for one in layers if min(sizes[one]) >= LEAST_MAP_SIDE]
    return fine[-1] if fine else layers[0]


def summed_maps(
    evidence: Float[Tensor, "batch kernel map_height map_width"], size: tuple[int, int]
) -> Float[np.ndarray, "batch height width"]:
    """Sum evidence over the kernels and stretch it onto the image: the summed derivative map of Fig. 2b."""
    summed = evidence.detach().float().sum(1, keepdim=True)
    wide = functional.interpolate(summed, size=size, mode="bilinear", align_corners=False)
    found: np.ndarray = wide[:, 0].cpu().numpy()
    return found
