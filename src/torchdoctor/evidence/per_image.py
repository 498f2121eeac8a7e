"""Compute each image's evidence without noise (Eq. 2-3), and tell where on the image it lies."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from torchdoctor.evidence.closed_form import closed_form
from torchdoctor.evidence.probes import Draws
from torchdoctor.images.batches import Batch
from torchdoctor.images.masks import background_mask
from torchdoctor.network.flops import compute_before
from torchdoctor.network.frozen import FrozenModel, frozen_eval
from torchdoctor.network.gradients import evidence_of, pick, score_gradients
from torchdoctor.network.layouts import on_grid
from torchdoctor.network.taps import keep_in, run_tapped
from torchdoctor.types import Evidence

LEAST_MAP_SIDE = 7  # coarser maps say little about where the evidence lies


def clean_evidence(
    frozen: FrozenModel,
    pixels: Float[Tensor, "batch channel height width"],
    targets: Int[Tensor, " batch"] | None,
    layers: Sequence[str],
    kind: Evidence,
) -> tuple[dict[str, Tensor], dict[str, Tensor], Float[Tensor, "batch category"]]:
    """Compute the evidence at all layers without noise (Eq. 2), from one forward and one gradient call.

    Args:
        frozen: The network, from `frozen_eval`.
        pixels: Normalised images, on the network's device and in its type.
        targets: The number of each image's category; None: the predicted category.
        layers: Names of layers.
        kind: abs(dy/dm), or abs(m dy/dm).

    Returns:
        By layer the evidence and the maps, both [batch, kernel, height, width]; and the logits.

    Raises:
        InputError: A layer does not exist, is not called once, gives no 4-dimensional map or does not feed
            the logits.
    """
    maps: dict[str, Tensor] = {}
    with torch.enable_grad():
        logits = run_tapped(frozen.model, pixels, {layer: keep_in(maps, layer) for layer in layers})
        categories = logits.argmax(1) if targets is None else targets
        gradients = score_gradients([pick(logits, categories)], maps)[0]
    plain = {layer: maps[layer].detach() for layer in layers}
    evidence = {layer: evidence_of(gradients[layer], plain[layer], kind) for layer in layers}
    return evidence, plain, logits.detach()


def diagnosis_cost(
    model: nn.Module,
    pixels: Float[Tensor, "batch channel height width"],
    layers: Sequence[str],
    draws: Draws,
) -> float:
    """Estimate what the evidence of one image costs, before any of it is computed.

    A tail costs its share rho of a forward pass, once forward and once backward for each draw; a closed
    form costs one forward pass; without noise all layers together cost 1 + the largest rho.

    Args:
        model: The network; it is left as it was.
        pixels: Normalised images, on the network's device and in its type; the first two are used.
        layers: Names of the layers to diagnose.
        draws: The number J of draws; 0: no noise; `exact`: the limit of many.

    Returns:
        The cost in forward passes of the network.

    Raises:
        InputError: A layer cannot be used.
    """
    done = compute_before(model, pixels[:1], layers)[0]
    shares = {layer: 1.0 - done[layer] / max(done[""], 1) for layer in layers}
    with frozen_eval(model) as frozen:
        return passes_per_image(shares, draws, lambda layer: closed_form(frozen, pixels, layer) is not None)


def passes_per_image(
    shares: Mapping[str, float], draws: Draws, has_closed_form: Callable[[str], bool]
) -> float:
    """Return what the evidence of one image costs at all layers, in forward passes.

    Args:
        shares: For each layer the share of a forward pass that lies behind it.
        draws: The number of noise draws, or `exact`.
        has_closed_form: Says whether a layer has a closed form; asked only where that matters.

    Returns:
        The number of forward passes for one image.
    """
    if draws == 0:
        return 1.0 + max(shares.values(), default=0.0)
    if draws == "exact":
        return float(len(shares))
    return sum(
        1.0 if has_closed_form(layer) else 1.0 - share + 2 * draws * share for layer, share in shares.items()
    )


def background_shares_of(
    evidence: Float[Tensor, "batch kernel map_height map_width"],
    batch: Batch,
    grid: tuple[int, int] | None = None,
) -> Float[np.ndarray, " batch"]:
    """Return the share of each image's evidence that lies on the background.

    Args:
        evidence: The evidence at one layer.
        batch: The images, with their masks.
        grid: The height and width of the layer's space (see `taps.grids`); None: that of the evidence.

    Returns:
        Shares, 0 to 1; NaN for an image without a mask or without evidence.
    """
    total, outside = evidence_by_place(evidence, batch, grid)
    return background_share(total.cpu().numpy(), outside.cpu().numpy())


def evidence_by_place(
    evidence: Float[Tensor, "*draw batch kernel map_height map_width"],
    batch: Batch,
    grid: tuple[int, int] | None = None,
) -> tuple[Float[Tensor, "*draw batch"], Float[Tensor, "*draw batch"]]:
    """Sum the evidence at all places of the image, and on the background.

    Args:
        evidence: The evidence at one layer, of one or several draws.
        batch: The images, with their masks.
        grid: The height and width of the layer's space (see `taps.grids`), tokens without a place are left
            out; None: that of the evidence.

    Returns:
        Both sums in float64; NaN on the background for an image without a mask.
    """
    per_place = evidence.sum(-3) if grid is None else on_grid(evidence.sum(-3), grid)
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
    """Divide the evidence on the background by all of it.

    Args:
        total: All evidence of each image.
        outside: Its evidence on the background.

    Returns:
        Shares, 0 to 1; NaN where there is no evidence or no mask.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(total > 0, outside / total, np.nan)


def finest(layers: Sequence[str], sizes: Mapping[str, tuple[int, int]]) -> str:
    """Choose the layer whose evidence can best be looked at on the image.

    Args:
        layers: Names of layers, in the order of the forward pass; at least one.
        sizes: [height, width] of each layer's map, by name.

    Returns:
        The last layer whose map has at least 7 positions a side, else the first.
    """
    fine = [layer for layer in layers if min(sizes[layer]) >= LEAST_MAP_SIDE]
    return fine[-1] if fine else layers[0]


def summed_maps(
    evidence: Float[Tensor, "batch kernel map_height map_width"],
    size: tuple[int, int],
    grid: tuple[int, int] | None = None,
) -> Float[np.ndarray, "batch height width"]:
    """Sum evidence over the kernels and stretch it onto the image: the summed derivative map of Fig. 2b.

    Args:
        evidence: The evidence at one layer.
        size: [height, width] of the images, in pixels.
        grid: The height and width of the layer's space (see `taps.grids`); None: that of the evidence.

    Returns:
        One map per image, float32, interpolated bilinearly.
    """
    summed = evidence.detach().float().sum(1, keepdim=True)
    summed = summed if grid is None else on_grid(summed, grid)
    stretched = functional.interpolate(summed, size=size, mode="bilinear", align_corners=False)
    pictures: np.ndarray = stretched[:, 0].cpu().numpy()
    return pictures
