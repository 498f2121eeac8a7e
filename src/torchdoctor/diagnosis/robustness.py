"""Measure how noise in a layer brings adversarial images back to their true label (Fig. 3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from torchdoctor.diagnosis.robustness_result import Robustness, Units
from torchdoctor.evidence.measurement import first_images
from torchdoctor.images.batches import Images
from torchdoctor.images.loaders import ImageSource, images_of
from torchdoctor.network.candidates import candidate_layers
from torchdoctor.network.frozen import FrozenModel, frozen_eval
from torchdoctor.network.outputs import unwrap
from torchdoctor.network.prediction import device_of, dtype_of
from torchdoctor.network.taps import map_shapes, run_tapped
from torchdoctor.processes import ALONE, Processes
from torchdoctor.randomness import key, uniform_noise
from torchdoctor.types import InputError, Progress, check_choice, silent

RANGES = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0)
RANDOM_LAYER = "random"


@dataclass(frozen=True)
class RobustnessSettings:
    """How `measure_robustness` attacks images and adds noise.

    Attributes:
        layer: The name of the layer that gets noise; `random` draws a convolution for each repeat.
        ranges: The ranges of the noise, 0 or more.
        units: The unit of the ranges: that of the layer's map ("absolute", as in the paper), or the standard
            deviation of the map over the images ("deviation").
        number: How many images to use at most.
        repeats: How many times each range is measured, with new noise.
        epsilon: The size of the attack, for pixels in 0..1.
    """

    layer: str = RANDOM_LAYER
    ranges: Sequence[float] = RANGES
    units: Units = "absolute"
    number: int = 100
    repeats: int = 10
    epsilon: float = 8 / 255

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            InputError: A value is out of its range.
        """
        check_choice("units", self.units, Units)
        if not self.ranges or not all(math.isfinite(limit) and limit >= 0 for limit in self.ranges):
            raise InputError(
                f"ranges {tuple(self.ranges)}: expected finite numbers >= 0, as in 0 0.1 0.2 0.3"
            )
        if self.number < 1 or self.repeats < 1:
            raise InputError(f"number {self.number}, repeats {self.repeats}: expected at least 1 of each")
        if not (math.isfinite(self.epsilon) and 0 < self.epsilon <= 1):
            raise InputError(
                f"epsilon {self.epsilon:g} of 1 ({255 * self.epsilon:g} of 255): expected a step above 0, "
                "up to all of it"
            )


@dataclass(frozen=True)
class AttackedImages:
    """Correctly classified images and their misclassified adversarial twins.

    Attributes:
        normal: The normalised images.
        twins: Their adversarial twins.
        labels: The true categories, which the network predicts for the images.
        false_labels: The categories that the network predicts for the twins.
        tried: The number of correctly classified images that were attacked to get these.
    """

    normal: Float[Tensor, "batch channel height width"]
    twins: Float[Tensor, "batch channel height width"]
    labels: Int[Tensor, " batch"]
    false_labels: Int[Tensor, " batch"]
    tried: int


def measure_robustness(
    model: nn.Module,
    images: ImageSource,
    settings: RobustnessSettings | None = None,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    seed: int = 0,
    progress: Progress = silent,
    processes: Processes = ALONE,
) -> Robustness:
    """Measure how images and their adversarial twins are classified under noise (Fig. 3).

    Args:
        model: The network; it is left as it was.
        images: The images; the first that can be attacked are used (see `fast_gradient_sign`).
        settings: How images are attacked and noise is added; None is `RobustnessSettings()`.
        mean: The mean of each channel by which the images were normalised.
        std: The standard deviation of each channel, likewise.
        seed: The seed of the noise and of the layers.
        progress: Called with ("robustness", measurements done, measurements in all).
        processes: The processes that work together: each measures some repeats, and gets the whole result.

    Returns:
        The share of images that keep or change their category, for each range of noise and each repeat.

    Raises:
        InputError: A value does not fit the images, the layer is unknown, or no image can be attacked.

    Example:
        >>> from torchdoctor import Batch
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))
        >>> pixels = torch.randn(8, 3, 8, 8)
        >>> batch = Batch(pixels, labels=model(pixels).argmax(1), ids=torch.arange(8))
        >>> settings = RobustnessSettings(ranges=(0.0, 1.0), repeats=2, epsilon=0.3)
        >>> curves = measure_robustness(model, [batch], settings, mean=[0.5] * 3, std=[0.25] * 3)
        >>> curves.normal.shape, float(curves.normal[0, 0])
        ((2, 2), 100.0)
    """
    model, settings, images = unwrap(model), settings or RobustnessSettings(), images_of(images)
    example = first_images(model, images)
    pixel = _pixel_limits(mean, std, example)
    layers = _layers(model, example, settings.layer, settings.repeats, seed)
    shapes = map_shapes(model, example, list(dict.fromkeys(layers)))
    with frozen_eval(model) as frozen:
        attacked = _attacked(frozen, images, pixel, settings.epsilon, settings.number)
    with frozen_eval(model), torch.no_grad():
        curves = _curves(model, attacked, settings, layers, shapes, seed, progress, processes)
    return Robustness(
        ranges=tuple(map(float, settings.ranges)), normal=curves[0], restored=curves[1], fooled=curves[2],
        layers=layers, units=settings.units, images=len(attacked.labels), tried=attacked.tried,
        attack_success=100.0 * len(attacked.labels) / attacked.tried, epsilon=settings.epsilon, seed=seed,
    )  # fmt: skip


def _curves(
    model: nn.Module,
    attacked: AttackedImages,
    settings: RobustnessSettings,
    layers: Sequence[str],
    shapes: Mapping[str, tuple[int, int, int]],
    seed: int,
    progress: Progress,
    processes: Processes,
) -> Float[np.ndarray, "curve range repeat"]:
    """Return the percentages of images still right, twins right again, and twins still wrong."""
    ranges, repeats = settings.ranges, settings.repeats

    def repeated(repeat_and_layer: tuple[int, str]) -> Float[np.ndarray, "curve range"]:
        repeat, layer = repeat_and_layer
        curves = np.zeros((3, len(ranges)))
        unit = _deviation(model, attacked.normal, layer) if settings.units == "deviation" else 1.0
        for place, width in enumerate(ranges):
            stream = f"robustness {repeat}"
            normal, twins = (
                _noisy(model, pixels, layer, shapes[layer], width * unit, seed, stream)
                for pixels in (attacked.normal, attacked.twins)
            )
            curves[:, place] = [
                100.0 * float((normal == attacked.labels).double().mean()),
                100.0 * float((twins == attacked.labels).double().mean()),
                100.0 * float((twins == attacked.false_labels).double().mean()),
            ]
            progress("robustness", repeat * len(ranges) + place + 1, repeats * len(ranges))
        return curves

    of_repeats = processes.in_order(map(repeated, processes.share(enumerate(layers))))
    return np.stack(list(of_repeats), axis=2)


def _pixel_limits(
    mean: Sequence[float], std: Sequence[float], example: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the normalised values of the pixels 0 and 1 and their difference, per channel."""
    if len(mean) != example.shape[1] or len(std) != example.shape[1]:
        raise InputError(
            f"mean and std hold {len(mean)} and {len(std)} numbers; expected one for each of the images' "
            f"{example.shape[1]} channels"
        )
    middle, width = (torch.tensor(numbers).view(1, -1, 1, 1).to(example) for numbers in (mean, std))
    return (0 - middle) / width, (1 - middle) / width, 1 / width


def _attacked(
    frozen: FrozenModel, images: Images, pixel: tuple[Tensor, Tensor, Tensor], epsilon: float, number: int
) -> AttackedImages:
    """Attack correctly classified images until `number` of their twins are misclassified."""
    parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    collected, tried = 0, 0
    device, dtype = device_of(frozen.model), dtype_of(frozen.model)
    for batch in images:
        pixels, labels = batch.images.to(device, dtype), batch.labels.to(device)
        predicted, twins = fast_gradient_sign(frozen, pixels, labels, pixel, epsilon)
        with torch.no_grad():
            false_labels = frozen.logits(twins).argmax(1)
        right = predicted == labels
        usable = (right & (false_labels != labels)).nonzero()[: number - collected, 0]
        last = int(usable[-1]) if len(usable) == number - collected else len(labels) - 1
        tried += int(right[: last + 1].sum())
        collected += len(usable)
        parts.append((pixels[usable], twins[usable], labels[usable], false_labels[usable]))
        if collected == number:
            break
    if not collected:
        raise InputError(
            f"none of {tried} correctly classified images could be attacked with epsilon {epsilon:g} "
            f"({255 * epsilon:g} of 255): give a larger epsilon, or a network that is right more often"
        )
    normal, twins, labels, false_labels = (torch.cat(column) for column in zip(*parts, strict=True))
    return AttackedImages(normal, twins, labels, false_labels, tried)


def fast_gradient_sign(
    frozen: FrozenModel,
    pixels: Float[Tensor, "batch channel height width"],
    labels: Int[Tensor, " batch"],
    pixel: tuple[Tensor, Tensor, Tensor],
    epsilon: float,
) -> tuple[Int[Tensor, " batch"], Float[Tensor, "batch channel height width"]]:
    """Make adversarial twins of images: a signed step up the loss, kept within the range of pixels (FGSM).

    Args:
        frozen: The network, from `frozen_eval`.
        pixels: Normalised images, on the network's device and in its type.
        labels: The number of each image's label.
        pixel: Black, white and the unit of pixels 0 to 1, in normalised values [1, channel, 1, 1] each.
        epsilon: The size of the step, in pixels of 0 to 1.

    Returns:
        The predicted categories of the images, and the twins, normalised.

    Raises:
        InputError: The network returned something that holds no logits.
    """
    black, white, unit = pixel
    images = pixels.detach().clone().requires_grad_(True)
    with torch.enable_grad():
        logits = frozen.logits(images)
        loss = functional.cross_entropy(logits, labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, images)
    twins = images.detach() + epsilon * unit * gradient.sign()
    return logits.detach().argmax(1), torch.minimum(torch.maximum(twins, black), white)


def _layers(model: nn.Module, example: Tensor, layer: str, repeats: int, seed: int) -> tuple[str, ...]:
    """Return the layer that gets the noise in each repeat."""
    if layer != RANDOM_LAYER:
        return (layer,) * repeats
    names = [candidate.name for candidate in candidate_layers(model, example)]
    if not names:
        raise InputError(f"{type(model).__name__} has no convolution that feeds its logits to add noise to")
    return tuple(names[key("robustness", seed, repeat) % len(names)] for repeat in range(repeats))


def _deviation(model: nn.Module, pixels: Tensor, layer: str) -> float:
    """Return the standard deviation of the layer's map over the images."""
    deviations: list[Tensor] = []

    def tap(output: Tensor) -> Tensor:
        deviations.append(output.double().std(correction=0))
        return output

    run_tapped(model, pixels, {layer: tap})
    return float(deviations[0])


def _noisy(
    model: nn.Module,
    pixels: Tensor,
    layer: str,
    shape: tuple[int, int, int],
    width: float,
    seed: int,
    stream: str,
) -> Int[Tensor, " batch"]:
    """Return the predictions with noise on a layer's map, the same noise for an image and its twin."""
    ids = torch.arange(len(pixels), device=pixels.device)

    def tap_for(chunk: Tensor) -> Callable[[Tensor], Tensor]:
        def tap(output: Tensor) -> Tensor:
            noise = uniform_noise(
                chunk, range(1), shape, seed=seed, layer=layer, stream=stream, dtype=output.dtype
            )
            return output + width * noise[0]

        return tap

    return torch.cat(
        [
            run_tapped(model, pixels[chunk], {layer: tap_for(chunk)}).argmax(1)
            for chunk in torch.split(ids, 64)
        ]
    )
