"""Remedies against misleading backgrounds: a last layer from balanced images, more weight on errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn import functional

from torchdoctor.diagnosis.result import Diagnosis
from torchdoctor.images.backgrounds import across_categories
from torchdoctor.images.batches import Batch, Images, TrainingImages
from torchdoctor.network.prediction import predict_logits
from torchdoctor.randomness import key
from torchdoctor.treatment.cure import Cure
from torchdoctor.treatment.head_solver import balancing_weights, solve_head
from torchdoctor.treatment.heads import (
    Features,
    Head,
    balanced_accuracy,
    features_of,
    head_of,
    install,
    present_head,
)
from torchdoctor.treatment.losses import classification_terms
from torchdoctor.treatment.recipe import Course

L1 = (3e-2, 1e-2, 3e-3, 1e-3)  # strengths of the penalty on absolute weights, the sparsest layer first
AVERAGED = 5  # layers, each from another balanced choice of images
ERROR_WEIGHT = 5.0  # of a training image that the network gets wrong, relative to the others
LEAST_OF_GROUP = 16  # images of a group in such a choice, where it has them


def grouped(cure: Cure, groups: Mapping[int, str]) -> Cure:
    """Return `dfr` with the groups that the user's data names, such as the background of each image.

    Args:
        cure: The remedy.
        groups: The group of each held-out image, by its id; an image of a category and a group is as rare as
            the two are together.

    Returns:
        The remedy, which then swaps no backgrounds.
    """

    def remedy(model: nn.Module, images: TrainingImages, diagnosis: Diagnosis, seed: int) -> Course:
        del diagnosis
        return _course(model, images, seed, groups)

    remedy.__doc__ = last_layer.__doc__
    return replace(cure, remedy=remedy)


def last_layer(model: nn.Module, images: TrainingImages, diagnosis: Diagnosis, seed: int) -> Course:
    """Train as the control does, then solve the last layer on held-out images (DFR; Kirichenko et al. 2022).

    The held-out images are the validation images, or the training images where there are none. Where they
    have masks, each also stands before the background of another category, and a group is a category before
    its own background or before another; elsewhere it is a category. Where the data names groups (see
    `grouped`), it is a category in one of them. Half of the images choose how strongly
    absolute weights are penalised. Then layers are solved to convergence, each on another choice of images
    in which all groups are alike, and averaged.

    A network judged by the same validation images looks better on them than it is.

    Args:
        model: The network; it has to end in a linear layer with a bias.
        images: The training images.
        diagnosis: Not used.
        seed: Decides which backgrounds are swapped and which images are chosen.

    Returns:
        The course. Afterwards it notes the strength, the groups, and where the images came from.

    Raises:
        InputError: The logits come from no linear layer with a bias.
    """
    del diagnosis
    return _course(model, images, seed, {})


def _course(model: nn.Module, images: TrainingImages, seed: int, named: Mapping[int, str]) -> Course:
    """Return the course of `last_layer`, with the groups of images by their ids where they are named."""
    head_of(model, images)

    def afterwards(
        model: nn.Module, images: TrainingImages, validation: Images | None
    ) -> Mapping[str, object]:
        held_out = images if validation is None else validation
        layer = head_of(model, images)
        shown, groups = _shown(model, layer, held_out, seed, {} if validation is None else named)
        start = present_head(layer)
        strength = _strength(shown, groups, start, seed)
        heads = [
            _solved(shown, groups, _balanced_rows(groups, seed, draw), start, strength)
            for draw in range(AVERAGED)
        ]
        weight = np.mean([head.weight for head in heads], axis=0)
        install(Head(weight, np.mean([head.bias for head in heads], axis=0)), layer)
        return {
            "l1": strength,
            "groups": len(np.unique(groups)),
            "images": len(np.unique(shown.ids)),
            "held_out": "training images" if validation is None else "validation images",
        }

    return Course(afterwards=afterwards)


def _shown(
    model: nn.Module, layer: nn.Module, images: Images, seed: int, named: Mapping[int, str]
) -> tuple[Features, Int[np.ndarray, " image"]]:
    """Return the features of images, and the group of each; without named groups before both backgrounds."""
    own = features_of(model, layer, images)
    if named:
        numbers = {name: number for number, name in enumerate(sorted(set(named.values())))}
        place = np.array([numbers[named[image]] for image in own.ids.tolist()], dtype=np.int64)
        return own, len(numbers) * own.labels + place
    swapped = across_categories(images, key("dfr", seed))
    if not swapped:
        return own, own.labels
    other = features_of(model, layer, swapped)
    both = Features(
        *(
            np.concatenate([getattr(part, name) for part in (own, other)])
            for name in ("inputs", "labels", "ids")
        )
    )
    return both, 2 * both.labels + (np.arange(len(both.labels)) >= len(own.labels))


def _strength(shown: Features, groups: Int[np.ndarray, " image"], start: Head, seed: int) -> float:
    """Choose the penalty: solve on half of the images, and judge on the other half."""
    ids = np.unique(shown.ids)
    chosen = np.random.default_rng(key("half", seed)).permutation(ids)[: max(len(ids) // 2, 1)]
    first = np.isin(shown.ids, chosen)
    if first.all() or not first.any():
        return L1[1]
    scores = {}
    for strength in L1:
        head = _solved(shown, groups, np.flatnonzero(first), start, strength)
        scores[strength] = balanced_accuracy(
            head.logits(shown.inputs[~first]), groups[~first], shown.labels[~first]
        )
    return max(L1, key=lambda strength: scores[strength])


def _solved(
    shown: Features, groups: Int[np.ndarray, " image"], rows: Int[np.ndarray, " row"], start: Head, l1: float
) -> Head:
    """Solve the layer on some of the images, every group weighing the same."""
    weights = balancing_weights(groups[rows])
    return solve_head(shown.inputs[rows], shown.labels[rows], weights, start, l1=l1)


def _balanced_rows(groups: Int[np.ndarray, " image"], seed: int, draw: int) -> Int[np.ndarray, " row"]:
    """Draw as many images of every group as the smallest has, but not below `LEAST_OF_GROUP`."""
    _, counts = np.unique(groups, return_counts=True)
    most = max(int(counts.min()), LEAST_OF_GROUP)
    generator = np.random.default_rng(key("dfr draw", seed, draw))
    rows = [generator.permutation(np.flatnonzero(groups == group))[:most] for group in np.unique(groups)]
    return np.sort(np.concatenate(rows))


def weighed_errors(model: nn.Module, images: TrainingImages, diagnosis: Diagnosis, seed: int) -> Course:
    """Train with more weight on training images that the network gets wrong (JTT; Liu et al. 2021).

    Where backgrounds mislead, these are mostly images whose background speaks for another category; no masks
    are needed. Each such image weighs `ERROR_WEIGHT` times as much as another. Wrong labels are errors too,
    so where many labels are wrong this remedy does harm.

    Args:
        model: The network that the arm starts from; its errors are found once, before the training.
        images: The training images, looked at without augmentation.
        diagnosis: Not used.
        seed: Not used.

    Returns:
        The course, with the number of errors as a fact.
    """
    del diagnosis, seed
    ids, labels, logits = predict_logits(model, images)
    wrong = ids[logits.argmax(1) != labels]

    def terms(model: nn.Module, batch: Batch, step: int) -> Mapping[str, Tensor]:
        del step
        missed = torch.isin(batch.ids.cpu(), wrong).to(batch.labels.device)
        weight = 1.0 + (ERROR_WEIGHT - 1.0) * missed

        def loss(logits: Tensor, labels: Tensor) -> Tensor:
            each = functional.cross_entropy(logits, labels, reduction="none")
            return (weight * each).sum() / weight.sum()

        return classification_terms(model, batch, loss)[1]

    return Course(terms, facts=({"errors": len(wrong), "images": len(ids)},))
