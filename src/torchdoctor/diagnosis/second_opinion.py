"""Judge labels by the predictions of other networks as well."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.special import log_softmax
from torch import Tensor, nn

from torchdoctor.diagnosis.crossed_heads import crossed_log_probabilities, standardised
from torchdoctor.diagnosis.label_doubts import LabelDoubts, label_doubts
from torchdoctor.evidence.measurement import first_images
from torchdoctor.images.batches import Images
from torchdoctor.images.loaders import ImageSource, images_of
from torchdoctor.network.outputs import unwrap
from torchdoctor.network.pooled import Places, logits_and_pooled, places_of
from torchdoctor.network.prediction import device_of, predict_logits
from torchdoctor.processes import ALONE, Processes
from torchdoctor.types import InputError, Progress, silent

TINY = 1e-12  # a probability below it is taken for it
FOLDS = 5  # heads that are fitted to the features of a network for other categories


@dataclass(frozen=True)
class SecondOpinion:
    """Another network; the more accurate it is, the better it judges labels.

    Attributes:
        model: The network, for the same categories in the same order. It was not trained on the images whose
            errors are examined. With `new_head` it may know any other categories.
        images: The examined images, with the same ids and labels, prepared for this network.
        new_head: Whether new linear layers (heads) are fitted to the network's features by cross-validation:
            each image is judged by a head that was fitted to the labels of others. For a network that was
            trained on other images, such as one with published weights.
        training: More images that the heads are fitted to, prepared for this network, such as training
            images; None: only `images`. None of `images` may be among them: it would be judged by its own
            label. Not used without `new_head`.
        name: What it is called in results; where it is empty, its number from 1.
    """

    model: nn.Module
    images: ImageSource
    new_head: bool = False
    training: ImageSource | None = None
    name: str = ""


Opinions = SecondOpinion | Sequence[SecondOpinion] | None
Logits = Float[np.ndarray, "image category"]


@dataclass(frozen=True)
class Doubts:
    """What one or more networks say about the labels of images.

    Attributes:
        labels: The estimates: `share` and `wrong` by all networks together, `temperature` and `log_odds` by
            the examined network alone.
        second: Natural log p(label) of each image by the other networks, after scaling; NaN without any.
    """

    labels: LabelDoubts
    second: Float[np.ndarray, " image"]


def second_logits(
    second: Opinions, ids: Int[Tensor, " image"], labels: Int[Tensor, " image"], categories: int,
    seed: int = 0, progress: Progress = silent, processes: Processes = ALONE,
) -> tuple[Logits, ...]:  # fmt: skip
    """Return the logits of the other networks for images.

    Args:
        second: The networks with the images prepared for them; None: there are none.
        ids: The ids of the images, in the order of the result.
        labels: Their labels.
        categories: The number of categories.
        seed: What the folds of new heads depend on.
        progress: Called by networks with new heads (see `by_new_heads`).
        processes: The processes that work together: each predicts a share of the batches.

    Returns:
        For each network the logits of each image, in float64. They are finite, but for those of new heads
        (see `by_new_heads`).

    Raises:
        InputError: A network has other categories or was given other images.
    """
    outputs: list[Logits] = []
    for opinion in several(second):
        if opinion.new_head:
            judged = by_new_heads(
                opinion, ids, labels, categories, seed=seed, progress=progress, processes=processes
            )
            outputs.append(judged)
            continue
        own_ids, own_labels, logits = predict_logits(
            unwrap(opinion.model), images_of(opinion.images), processes=processes
        )
        if logits.shape[1] != categories:
            raise InputError(
                f"the second opinion has {logits.shape[1]} logits, the examined network {categories}: give a "
                "network for the same categories, or new_head=True"
            )
        rows = _rows_of(ids, labels, own_ids, own_labels)
        finite = torch.nan_to_num(logits[rows].double(), nan=0.0, posinf=1e6, neginf=-1e6)
        outputs.append(finite.numpy())
    return tuple(outputs)


def several(second: Opinions) -> tuple[SecondOpinion, ...]:
    """Return opinions as a sequence, however they were given.

    Args:
        second: One opinion, several, or None.

    Returns:
        The opinions.
    """
    return () if second is None else (second,) if isinstance(second, SecondOpinion) else tuple(second)


def accuracies_of(
    second: Opinions, outputs: Sequence[Logits], labels: Int[np.ndarray, " image"]
) -> dict[str, float]:
    """Measure the other networks on the images that each judges.

    Args:
        second: The networks.
        outputs: Their logits, as `second_logits` returns them.
        labels: The labels of the images.

    Returns:
        By the name of each, how many images it classifies as labelled, in percent; NaN where it judges none.
    """
    accuracies = {}
    for number, (opinion, logits) in enumerate(zip(several(second), outputs, strict=True), 1):
        rows = ~np.isnan(logits).any(axis=1)
        right = float((logits[rows].argmax(1) == labels[rows]).mean()) if rows.any() else np.nan
        accuracies[opinion.name or str(number)] = 100.0 * right
    return accuracies


def _rows_of(ids: Tensor, labels: Tensor, own_ids: Tensor, own_labels: Tensor) -> list[int]:
    """Return where the examined images are among those of a second opinion; InputError if they are others."""
    place = {image: row for row, image in enumerate(own_ids.tolist())}
    rows = [place.get(image, -1) for image in ids.tolist()]
    if -1 in rows:
        raise InputError(
            f"the images of the second opinion lack {rows.count(-1)} of {len(rows)} images that are "
            "examined: give the same images, with the same ids"
        )
    differ = int((own_labels[rows] != labels).sum())
    if differ:
        raise InputError(
            f"{differ} of {len(rows)} images have another label among those of the second opinion: give the "
            "same images, and number the categories alike"
        )
    return rows


def by_new_heads(
    opinion: SecondOpinion,
    ids: Int[Tensor, " image"],
    labels: Int[Tensor, " image"],
    categories: int,
    *,
    folds: int = FOLDS,
    seed: int = 0,
    progress: Progress = silent,
    processes: Processes = ALONE,
) -> Logits:
    """Judge images by new heads on the features of a network, each by a head that was fitted without it.

    Args:
        opinion: The network with the images prepared for it.
        ids: The ids of the images, in the order of the result.
        labels: Their labels.
        categories: The number of categories.
        folds: How many heads are fitted.
        seed: What the folds depend on.
        progress: Called with ("second opinion", images done, images in all), without those of `training`.
        processes: The processes that work together: each predicts a share of the batches.

    Returns:
        For each image the natural logarithms of the probabilities. A category with fewer than two images has
        the probability 0. Its images, and those whose features are not finite, cannot be judged and have NaN.

    Raises:
        InputError: The network was given other images, or fewer than two categories have two images.
    """
    model = unwrap(opinion.model)
    own_ids, own_labels, own_features = _features(
        model, images_of(opinion.images), categories, processes,
        lambda done: progress("second opinion", done, max(len(ids), done)),
    )  # fmt: skip
    features, every_label = own_features[_rows_of(ids, labels, own_ids, own_labels)], labels
    if opinion.training is not None:
        _, more_labels, more_features = _features(model, images_of(opinion.training), categories, processes)
        features, every_label = torch.cat([features, more_features]), torch.cat([labels, more_labels])
    truth, sound = every_label.numpy(), features.isfinite().all(1).numpy()
    counts = np.bincount(truth[sound], minlength=categories)
    enough = np.flatnonzero(counts >= 2)
    if len(enough) < 2:
        raise InputError(
            f"new heads cannot be fitted: {len(enough)} of {categories} categories have two images or more, "
            "expected at least two categories; give more images"
        )
    number = np.full(categories, -1)
    number[enough] = np.arange(len(enough))
    usable = np.flatnonzero((counts[truth] >= 2) & sound)
    judged = np.full((len(usable), categories), -np.inf)
    judged[:, enough] = crossed_log_probabilities(
        standardised(features[torch.from_numpy(usable)]), number[truth[usable]], len(enough),
        folds=folds, seed=seed, device=device_of(model),
    )  # fmt: skip
    log_probabilities = np.full((len(truth), categories), np.nan)
    log_probabilities[usable] = judged
    return log_probabilities[: len(ids)]


def _features(
    model: nn.Module,
    images: Images,
    categories: int,
    processes: Processes,
    progress: Callable[[int], None] = lambda _done: None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ids, labels and features of images: the input of the linear layer that gives the logits.

    A network without such a layer is described by the spatial means of its last maps (see `places_of`).
    """
    places = places_of(model, first_images(model, images))
    if places.linear is not None:
        places = Places((), places.linear)
    ids, labels, _, features = logits_and_pooled(
        model, images, places, categories=categories, progress=progress, processes=processes
    )
    return ids, labels, features


def doubts_of(
    logits: Logits,
    second: Sequence[Logits],
    labels: Int[np.ndarray, " image"],
    believed: Bool[np.ndarray, " image"],
) -> Doubts:
    """Estimate which labels are wrong, by one network or by several.

    The probabilities of the other networks are averaged, each after scaling by its own temperature. The
    logarithms of the means and of the examined network's probabilities are added, and the share of wrong
    labels is estimated from the sums as from the logits of one network.

    Args:
        logits: The logits of the examined network.
        second: Those of each other network; NaN where it says nothing of an image.
        labels: The labels of the images.
        believed: The images to estimate from (see `label_doubts`).

    Returns:
        The estimates.
    """
    own = label_doubts(logits, labels, believed)
    if not second:
        return Doubts(own, np.full(len(labels), np.nan))
    said = log_of_mean([_scaled(each, labels, believed) for each in second])
    heard = np.isfinite(said).all(axis=1)
    together = log_softmax(logits / own.temperature, axis=1) + np.where(heard[:, None], said, 0.0)
    both = label_doubts(together, labels, believed)
    on_label = np.where(heard, said[np.arange(len(labels)), labels], np.nan)
    return Doubts(replace(own, share=both.share, wrong=both.wrong), on_label)


def _scaled(logits: Logits, labels: np.ndarray, believed: np.ndarray) -> Logits:
    """Return the probabilities of a network, scaled; NaN where it says nothing."""
    judged = ~np.isnan(logits).any(axis=1)
    known = np.where(judged[:, None], logits, 0.0)
    temperature = label_doubts(known, labels, believed & judged).temperature
    scaled = np.exp(log_softmax(known / temperature, axis=1))
    return np.where(judged[:, None], scaled, np.nan)


def log_of_mean(probabilities: Sequence[Logits]) -> Logits:
    """Average the probabilities of several networks.

    Args:
        probabilities: The probabilities by each network; NaN where it says nothing of an image.

    Returns:
        The natural logarithms of the means over the networks that say something; NaN where none does.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the mean of nothing is NaN, which is meant
        mean = np.nanmean(np.stack(probabilities), axis=0)
    return np.log(np.maximum(mean, TINY))
