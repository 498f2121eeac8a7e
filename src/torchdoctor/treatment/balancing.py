"""Remedies for categories with few images: shift the logits by the frequencies, or solve the head anew."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from torchdoctor.diagnosis.result import Diagnosis
from torchdoctor.images.batches import Images, TrainingImages
from torchdoctor.network.prediction import predict_logits
from torchdoctor.treatment.head_solver import balancing_weights, solve_head
from torchdoctor.treatment.heads import (
    Head,
    balanced_accuracy,
    balanced_error,
    features_of,
    head_of,
    install,
    present_head,
)
from torchdoctor.treatment.recipe import Course

TAUS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)  # of the penalty on the squared weights of a new head
UNCHOSEN_TAU, UNCHOSEN_STRENGTH = 1.0, 1e-2  # where no validation images can choose


def log_frequencies(diagnosis: Diagnosis) -> Float[np.ndarray, " category"]:
    """Return the logarithm of each category's share of the training images.

    Args:
        diagnosis: What counted the images; a category without any is taken to have one.

    Returns:
        A number for each category.
    """
    counts = np.maximum(diagnosis.confusion.sum(1), 1).astype(float)
    return np.log(counts / counts.sum())


def balance(model: nn.Module, images: TrainingImages, diagnosis: Diagnosis, seed: int) -> Course:
    """Train as the control does, then raise the logits of rare categories (Menon et al. 2021).

    From each logit `tau` times the logarithm of its category's share of the training images is subtracted,
    which the bias of the last layer takes in. Of the values of tau whose balanced accuracy on the validation
    images is within its standard error of the best, the nearest to 1 is taken, which is right for a network
    whose probabilities are right: rare categories have few validation images too.

    Args:
        model: The network; it has to end in a linear layer with a bias.
        images: The training images.
        diagnosis: Its confusion matrix says how many images each category has.
        seed: Not used.

    Returns:
        The course. Afterwards it notes tau and the balanced accuracy of every value tried.

    Raises:
        InputError: The logits come from no linear layer with a bias.
    """
    del seed
    head_of(model, images)
    shift = log_frequencies(diagnosis)

    def afterwards(
        model: nn.Module, images: TrainingImages, validation: Images | None
    ) -> Mapping[str, object]:
        layer, tau, scores = head_of(model, images), UNCHOSEN_TAU, dict[str, float]()
        if validation is not None:
            _, labels, logits = predict_logits(model, validation)
            given = logits.double().numpy()
            scores = {
                f"{one:g}": 100 * balanced_accuracy(given - one * shift, labels.numpy()) for one in TAUS
            }
            best = max(TAUS, key=lambda one: scores[f"{one:g}"])
            doubt = 100 * balanced_error(given - best * shift, labels.numpy())
            good = [one for one in TAUS if scores[f"{one:g}"] >= scores[f"{best:g}"] - doubt]
            tau = min(good, key=lambda one: abs(one - UNCHOSEN_TAU))
        with torch.no_grad():
            layer.bias -= torch.from_numpy(tau * shift).to(layer.bias)
        return {"tau": tau, "balanced_validation_accuracy": scores}

    return Course(afterwards=afterwards)


def balanced_head(model: nn.Module, images: TrainingImages, diagnosis: Diagnosis, seed: int) -> Course:
    """Train as the control does, then solve the last layer anew with all categories alike (Kang et al. 2020).

    The features of all training images are computed once, without augmentation; on them the cross-entropy,
    in which every category weighs the same, is minimised to convergence. The validation images choose by
    balanced accuracy how strongly squared weights are penalised, or that the layer stays as it is.

    Args:
        model: The network; it has to end in a linear layer with a bias.
        images: The training images.
        diagnosis: Not used.
        seed: Not used.

    Returns:
        The course. Afterwards it notes the strength, and the balanced accuracy of every strength tried.

    Raises:
        InputError: The logits come from no linear layer with a bias.
    """
    del diagnosis, seed
    head_of(model, images)

    def afterwards(
        model: nn.Module, images: TrainingImages, validation: Images | None
    ) -> Mapping[str, object]:
        layer = head_of(model, images)
        own, start = features_of(model, layer, images), present_head(layer)
        weights = balancing_weights(own.labels)

        def solved(strength: float) -> Head:
            return solve_head(own.inputs, own.labels, weights, start, l2=strength)

        if validation is None:
            install(solved(UNCHOSEN_STRENGTH), layer)
            return {"l2": UNCHOSEN_STRENGTH, "balanced_validation_accuracy": {}}
        judged = features_of(model, layer, validation)
        tried = {"as it was": start, **{f"{strength:g}": solved(strength) for strength in STRENGTHS}}
        scores = {
            name: 100 * balanced_accuracy(head.logits(judged.inputs), judged.labels)
            for name, head in tried.items()
        }
        best = max(scores, key=lambda name: scores[name])
        if best != "as it was":
            install(tried[best], layer)
        return {"l2": best, "balanced_validation_accuracy": scores}

    return Course(afterwards=afterwards)
