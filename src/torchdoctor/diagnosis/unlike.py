"""Find images that are unlike the others, such as broken, blank or drawn ones, by pixels and maps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from torchdoctor.images.batches import Batch, Images
from torchdoctor.network.prediction import device_of, dtype_of, predict_logits
from torchdoctor.network.taps import Tap, run_tapped
from torchdoctor.processes import ALONE, Processes

LEAST = 100  # images that are classified correctly, to learn from them what is usual
IMAGES_PER_DIRECTION = 10  # directions of spread are estimated from ten images each
MOST_DIRECTIONS = 32
USUAL = 0.995  # quantile of the distances of correctly classified images up to which one counts as usual
FAR = 0.02  # share of the correctly classified images that may be as far as an image that is unlike them
FOREIGN = 0.03  # share of the correctly classified images that may be unlike the others themselves
ROUNDS = 2  # in which the farthest of them are left out, and distances measured anew
FLAT = 1e-4  # standard deviation of normalised pixels below which an image is a single colour
PIXELS = ("", "log")  # stand for the pixels beside the names of layers


def logits_and_features(
    model: nn.Module, images: Images, layers: Sequence[str], processes: Processes = ALONE
) -> tuple[tuple[Tensor, Tensor, Tensor], dict[str, Float[np.ndarray, "image feature"]]]:
    """Predict all images and describe each by numbers.

    Args:
        model: The network; it is left as it was.
        images: The normalised images.
        layers: The names of layers with maps [batch, channel, height, width].
        processes: The processes that work together: each predicts a share of the batches.

    Returns:
        Ids, labels and logits as `predict_logits` returns them; and for each layer the mean and the standard
        deviation of each channel over the places; for the pixels (under the names PIXELS) the mean, the
        standard deviation and the mean difference of neighbours of each channel, as they are and as
        logarithms of contrast and sharpness.
    """
    found: dict[str, list[Tensor]] = {name: [] for name in (*layers, *PIXELS)}
    device, dtype = device_of(model), dtype_of(model)

    def run(batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        pixels = batch.images.to(device, dtype)
        described = dict(zip(PIXELS, (numbers.cpu() for numbers in _texture(pixels.float())), strict=True))

        def tap_for(name: str) -> Tap:
            def tap(maps: Tensor) -> Tensor:
                described[name] = _moments(maps).cpu()
                return maps

            return tap

        return run_tapped(model, pixels, {name: tap_for(name) for name in layers}), described

    def keep(described: dict[str, Tensor]) -> None:
        for name, numbers in described.items():
            found[name].append(numbers)

    outputs = predict_logits(model, images, run, keep, processes)
    return outputs, {name: torch.cat(parts).double().numpy() for name, parts in found.items()}


def _texture(pixels: Float[Tensor, "batch channel height width"]) -> tuple[Tensor, Tensor]:
    """Return brightness, contrast and differences of neighbours of each channel, plain and as logarithms.

    The logarithms also tell how much differences of neighbours differ: hardly at all in an enlarged image.
    """
    contrast = pixels.std((2, 3), correction=0)
    edges = [pixels.diff(dim=axis).abs().mean((2, 3)) for axis in (2, 3)]
    sharpness = [((edge + FLAT * FLAT) / (contrast + FLAT)).log() for edge in edges]
    bends = [pixels.diff(n=2, dim=axis).abs().mean((2, 3)) for axis in (2, 3)]
    detail = [((bend + FLAT**2) / (edge + FLAT**2)).log() for bend, edge in zip(bends, edges, strict=True)]
    logarithms = torch.cat([pixels.mean((2, 3)), (contrast + FLAT).log(), *sharpness, *detail], 1)
    return torch.cat([pixels.mean((2, 3)), contrast, *edges], 1), logarithms


def _moments(maps: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch moment"]:
    """Return the mean and the standard deviation over the places of each channel."""
    maps = maps.float()
    return torch.cat([maps.mean((2, 3)), maps.std((2, 3), correction=0)], 1)


def distances(
    features: dict[str, Float[np.ndarray, "image feature"]], right: Bool[np.ndarray, " image"]
) -> Float[np.ndarray, " image"]:
    """Measure how unlike the correctly classified images each image is.

    For the pixels and each layer, features are rotated to the directions in which the correctly classified
    images spread most. An image is far if it is far along these directions, or at
    right angles to them. Foreign images may
    be classified correctly by chance, so the farthest of the correctly classified ones are left out.

    Args:
        features: Numbers of each image (see `logits_and_features`).
        right: Which images are classified correctly: they are what the network knows.

    Returns:
        The largest distance on a scale where 0 is the median of the correctly classified images that are not
        left out, and 1 what all but one in 200 of these keep; NaN with fewer than 100 correct images.
    """
    if right.sum() < LEAST:
        return np.full(len(right), np.nan)
    far = _distances(features, right)
    for _ in range(ROUNDS):
        far = _distances(features, right & (far <= np.quantile(far[right], 1 - FOREIGN)))
    return far


def _distances(
    features: dict[str, Float[np.ndarray, "image feature"]], usual: Bool[np.ndarray, " image"]
) -> Float[np.ndarray, " image"]:
    """Return the largest distance of each image from those that are usual."""
    scores = [score for rows in features.values() for score in _along_and_off(rows, usual)]
    largest = np.max([_beyond_usual(score, usual) for score in scores], axis=0)
    return _beyond_usual(largest, usual)


def _beyond_usual(
    score: Float[np.ndarray, " image"], right: Bool[np.ndarray, " image"]
) -> Float[np.ndarray, " image"]:
    """Scale a score: 0 is the median of the correctly classified images, 1 what nearly all of them keep."""
    median, most = np.quantile(score[right], (0.5, USUAL))
    return (score - median) / max(float(most - median), 1e-9 + 1e-3 * abs(float(median)))


def unlike_others(
    far: Float[np.ndarray, " image"], right: Bool[np.ndarray, " image"]
) -> dict[str, Float[np.ndarray, " image"]]:
    """Return how rare the distance of each image is, and whether more errors are far than by chance.

    Args:
        far: The distance of each image (see `distances`).
        right: Which images are classified correctly.

    Returns:
        `as_far`: the share (0..1) of the correctly classified images that are at least as far.
        `far_beyond_chance`, the same for all images: of the errors whose `as_far` is at most `FAR`, the share
        beyond the number that is expected by chance, which is taken to be twice `FAR` of the errors. Both are
        NaN where a distance is.
    """
    if np.isnan(far).any():
        return dict.fromkeys(("as_far", "far_beyond_chance"), np.full(len(far), np.nan))
    usual = np.sort(far[right])
    as_far = 1 - np.searchsorted(usual, far, side="left") / len(usual)
    found, errors = int((as_far[~right] <= FAR).sum()), int((~right).sum())
    beyond = max(0.0, 1 - 2 * FAR * errors / found) if found else 0.0
    return {"as_far": as_far, "far_beyond_chance": np.full(len(far), beyond)}


def _along_and_off(
    rows: Float[np.ndarray, "image feature"], right: Bool[np.ndarray, " image"]
) -> list[Float[np.ndarray, " image"]]:
    """Return the distances along the directions of largest spread, and at right angles to them."""
    rows = np.nan_to_num(rows, nan=0.0, posinf=1e12, neginf=-1e12)
    usual = rows[right]
    centre, spread = usual.mean(0), usual.std(0)
    kept = spread > 1e-6 * max(float(spread.max()), 1e-12)
    rows = (rows[:, kept] - centre[kept]) / spread[kept]
    _, lengths, directions = np.linalg.svd(rows[right], full_matrices=False)
    number = min(MOST_DIRECTIONS, int(right.sum()) // IMAGES_PER_DIRECTION, int((lengths > 1e-6).sum()))
    along = rows @ directions[:number].T
    scale = lengths[:number] / np.sqrt(right.sum())
    inside = np.sqrt(((along / scale) ** 2).mean(1))
    off = np.linalg.norm(rows - along @ directions[:number], axis=1)
    # Nothing lies off the directions where they span everything.
    return [inside] if number == rows.shape[1] else [inside, off]
