"""Let noise bring adversarial images back: the paper's second discovery (Fig. 3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from torchdoctor.evidence.measurement import first_images
from torchdoctor.images.batches import Images
from torchdoctor.network.hooks import map_shapes, measuring, run_tapped
from torchdoctor.network.layers import candidate_layers
from torchdoctor.network.outputs import as_logits, unwrap
from torchdoctor.network.prediction import device_of, dtype_of
from torchdoctor.randomness import key, uniform_noise
from torchdoctor.types import InputError, Progress, check_choice, silent

Units = Literal["absolute", "deviation"]

RANGES = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0)
RANDOM_LAYER = "random"


@dataclass(frozen=True)
class Robustness:
    """How normal images and their adversarial twins fare under noise at one layer at a time (Fig. 3).

    Arrays are [range, repeat], in percent of the `images` that were classified correctly and whose twin
    is not: `normal` still right; `restored` the twin back at the true label; `fooled` the twin still at the
    false label. `layers[repeat]` carried the noise, uniform in [-range, range], in units of the map or of
    its standard deviation. `attack_success`: percent of the correctly classified images tried.
    """

    ranges: tuple[float, ...]
    normal: Float[np.ndarray, "range repeat"]
    restored: Float[np.ndarray, "range repeat"]
    fooled: Float[np.ndarray, "range repeat"]
    layers: tuple[str, ...]
    units: Units
    images: int
    tried: int
    attack_success: float
    epsilon: float
    seed: int


def measure_robustness(
    model: nn.Module,
    images: Images,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    layer: str = RANDOM_LAYER,
    ranges: Sequence[float] = RANGES,
    units: Units = "absolute",
    number: int = 100,
    repeats: int = 10,
    epsilon: float = 8 / 255,
    seed: int = 0,
    progress: Progress = silent,
) -> Robustness:
    """Measure the noise curves of Fig. 3; the network is left as it was.

    The images are the first `number` that are classified correctly and whose FGSM twin is not: one step of
    `epsilon` along the sign of the loss's gradient, in pixels of 0..1 (`mean` and `std` say how images were
    normalised). `layer`: a name, or `random`: another convolution for each repeat. `ranges` in units of
    the map ("absolute", as in the paper) or of its standard deviation over these images ("deviation").
    InputError for settings out of range, or if no image can be attacked.
    """
    model = unwrap(model)
    check_choice("units", units, Units)
    _check_settings(ranges, number, repeats, epsilon)
    example = first_images(model, images)
    if len(mean) != example.shape[1] or len(std) != example.shape[1]:
        raise InputError(
            f"mean and std hold {len(mean)} and {len(std)} numbers; expected one for each of the images' "
            f"{example.shape[1]} channels"
        )
    chosen = _layers(model, example, layer, repeats, seed)
    shapes = map_shapes(model, example, list(dict.fromkeys(chosen)))
    pixel = _pixel_limits(mean, std, example)
    with measuring(model):
        normal, twins, labels, false, tried = _attacked(model, images, pixel, epsilon, number)
    rows = np.zeros((3, len(ranges), repeats))
    with measuring(model), torch.no_grad():
        for repeat, name in enumerate(chosen):
            unit = _deviation(model, normal, name) if units == "deviation" else 1.0
            for place, width in enumerate(ranges):
                stream = f"robustness {repeat}"
                found = [
                    _noisy(model, some, name, shapes[name], width * unit, seed, stream)
                    for some in (normal, twins)
                ]
                rows[:, place, repeat] = [
                    100.0 * float((found[0] == labels).double().mean()),
                    100.0 * float((found[1] == labels).double().mean()),
                    100.0 * float((found[1] == false).double().mean()),
                ]
                progress("robustness", repeat * len(ranges) + place + 1, repeats * len(ranges))
    return Robustness(
        ranges=tuple(map(float, ranges)),
        normal=rows[0],
        restored=rows[1],
        fooled=rows[2],
        layers=chosen,
        units=units,
        images=len(labels),
        tried=tried,
        attack_success=100.0 * len(labels) / tried,
        epsilon=epsilon,
        seed=seed,
    )


def _check_settings(ranges: Sequence[float], number: int, repeats: int, epsilon: float) -> None:
    """Refuse settings outside their range."""
    if not ranges or not all(math.isfinite(one) and one >= 0 for one in ranges):
        raise InputError(f"ranges {tuple(ranges)}: expected finite numbers >= 0, as in 0 0.1 0.2 0.3")
    if number < 1 or repeats < 1:
        raise InputError(f"number {number}, repeats {repeats}: expected at least 1 of each")
    if not (math.isfinite(epsilon) and 0 < epsilon <= 1):
        raise InputError(
            f"epsilon {epsilon:g} of 1 ({255 * epsilon:g} of 255): expected a step above 0, up to all of it"
        )


def _pixel_limits(mean: Sequence[float], std: Sequence[float], like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the normalised values of black and of white, and the size of one pixel unit, per channel."""
    middle, width = (torch.tensor(one).view(1, -1, 1, 1).to(like) for one in (mean, std))
    return (0 - middle) / width, (1 - middle) / width, 1 / width


def _attacked(
    model: nn.Module, images: Images, pixel: tuple[Tensor, Tensor, Tensor], epsilon: float, number: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    """Return (images, twins, labels, the twins' false labels, correctly classified images tried)."""
    found: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    have, tried = 0, 0
    for batch in images:
        pixels, labels = batch.images.to(device_of(model), dtype_of(model)), batch.labels.to(device_of(model))
        predicted, twins = fast_gradient_sign(model, pixels, labels, pixel, epsilon)
        with torch.no_grad():
            false = as_logits(model(twins)).argmax(1)
        right = predicted == labels
        usable = (right & (false != labels)).nonzero()[: number - have, 0]
        last = int(usable[-1]) if len(usable) == number - have else len(labels) - 1
        tried += int(right[: last + 1].sum())
        have += len(usable)
        found.append((pixels[usable], twins[usable], labels[usable], false[usable]))
        if have == number:
            break
    if not have:
        raise InputError(
            f"none of {tried} correctly classified images could be attacked with epsilon {epsilon:g} "
            f"({255 * epsilon:g} of 255): give a larger one, or a network that is right more often"
        )
    normal, twins, labels, false = (torch.cat(column) for column in zip(*found, strict=True))
    return normal, twins, labels, false, tried


def fast_gradient_sign(
    model: nn.Module,
    pixels: Float[Tensor, "batch channel height width"],
    labels: Int[Tensor, " batch"],
    pixel: tuple[Tensor, Tensor, Tensor],
    epsilon: float,
) -> tuple[Int[Tensor, " batch"], Float[Tensor, "batch channel height width"]]:
    """Return the predictions and the adversarial twins: one signed step up the loss, kept within 0..1.

    `pixel` holds black, white and the unit in normalised values. The caller holds `measuring`.
    """
    black, white, unit = pixel
    images = pixels.detach().clone().requires_grad_(True)
    with torch.enable_grad():
        logits = as_logits(model(images))
        loss = functional.cross_entropy(logits, labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, images)
    twins = images.detach() + epsilon * unit * gradient.sign()
    return logits.detach().argmax(1), torch.minimum(torch.maximum(twins, black), white)


def _layers(model: nn.Module, example: Tensor, layer: str, repeats: int, seed: int) -> tuple[str, ...]:
    """Return the layer of each repeat."""
    if layer != RANDOM_LAYER:
        return (layer,) * repeats
    names = [one.name for one in candidate_layers(model, example)]
    if not names:
        raise InputError(f"{type(model).__name__} has no convolution that feeds its logits to add noise to")
    return tuple(names[key("robustness", seed, repeat) % len(names)] for repeat in range(repeats))


def _deviation(model: nn.Module, pixels: Tensor, layer: str) -> float:
    """Return the standard deviation of the layer's map over the images."""
    kept: list[Tensor] = []

    def tap(output: Tensor) -> Tensor:
        kept.append(output.double().std(correction=0))
        return output

    run_tapped(model, pixels, {layer: tap})
    return float(kept[0])


def _noisy(
    model: nn.Module,
    pixels: Tensor,
    layer: str,
    shape: tuple[int, int, int],
    width: float,
    seed: int,
    stream: str,
) -> Int[Tensor, " batch"]:
    """Return the predictions with noise on one layer's map, the same noise for an image and its twin."""
    ids = torch.arange(len(pixels), device=pixels.device)

    def tap_for(some: Tensor) -> Callable[[Tensor], Tensor]:
        def tap(output: Tensor) -> Tensor:
            noise = uniform_noise(
                some, range(1), shape, seed=seed, layer=layer, stream=stream, dtype=output.dtype
            )
            return output + width * noise[0]

        return tap

    return torch.cat(
        [run_tapped(model, pixels[some], {layer: tap_for(some)}).argmax(1) for some in torch.split(ids, 64)]
    )
