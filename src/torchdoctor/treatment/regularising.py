"""Remedies for over-fitted networks: stronger decay, augmentation, smoothing, averages, flat minima."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from torchdoctor.diagnosis.result import Diagnosis
from torchdoctor.images.batches import Batch, TrainingImages
from torchdoctor.randomness import key
from torchdoctor.treatment.altered_images import TriviallyAugmented
from torchdoctor.treatment.losses import classification_terms
from torchdoctor.treatment.recipe import Course, Recipe, Step

SMOOTHING = 0.1  # of the probability, given to all categories alike
AVERAGED_FROM = 0.5  # the share of the training after which weights are averaged
DECAY_TIMES, LEAST_DECAY = 10.0, 5e-3  # the weight decay is multiplied, and at least this
EMA_DECAY = 0.98
MIXUP = 0.2  # both parameters of the beta distribution that shares are drawn from
MIXED_FROM = 10  # epochs, below which mixed images do harm
RADIUS = 0.05  # how far the first of two passes moves the weights, by the norm of all of them
SHARP_FROM = 0.5  # the share of the training after which steps have two passes


def label_smoothing(model: nn.Module, images: TrainingImages, diagnosis: Diagnosis, seed: int) -> Course:
    """Train with smoothed labels: a tenth of the probability is spread evenly over all categories.

    Args:
        model: Not used.
        images: Not used.
        diagnosis: Not used.
        seed: Not used.

    Returns:
        The course: the cross-entropy with the smoothed labels.
    """
    del model, images, diagnosis, seed
    smooth = partial(functional.cross_entropy, label_smoothing=SMOOTHING)
    return Course(lambda model, batch, _step: classification_terms(model, batch, smooth)[1])


def weight_averaging(model: nn.Module, images: TrainingImages, diagnosis: Diagnosis, seed: int) -> Course:
    """Train as the control arm does, and return the mean of the weights over the second half of the steps.

    The mean is kept by `torch.optim.swa_utils.AveragedModel`.

    Args:
        model: Not used.
        images: Not used.
        diagnosis: Not used.
        seed: Not used.

    Returns:
        The course: the cross-entropy, and the share of the training after which weights are averaged.
    """
    del model, images, diagnosis, seed
    return Course(average_from=AVERAGED_FROM)


def stronger_decay(model: nn.Module, images: TrainingImages, diagnosis: Diagnosis, seed: int) -> Course:
    """Train with ten times the weight decay.

    Args:
        model: Not used.
        images: Not used.
        diagnosis: Not used.
        seed: Not used.

    Returns:
        The course: the control's with a weight decay of at least 0.005.
    """
    del model, images, diagnosis, seed
    return Course(recipe=_more_decay)


def trivial_augment(model: nn.Module, images: TrainingImages, diagnosis: Diagnosis, seed: int) -> Course:
    """Train on images that are changed more strongly (TrivialAugment; Mueller and Hutter 2021).

    Each image gets a random change of random strength, such as a rotation or another contrast, after the
    usual augmentation. Masks are hidden, as they would no longer fit.

    Args:
        model: Not used.
        images: The training images.
        diagnosis: Not used.
        seed: Not used: the changes depend on the epoch and on its seed.

    Returns:
        The course: the cross-entropy on the changed images.
    """
    del model, diagnosis, seed
    return Course(images=TriviallyAugmented(images))


def late_sam(model: nn.Module, images: TrainingImages, diagnosis: Diagnosis, seed: int) -> Course:
    """Minimise the loss nearby too, in the second half of the training (SAM; Foret et al. 2021).

    Args:
        model: Not used.
        images: Not used.
        diagnosis: Not used.
        seed: Not used.

    Returns:
        The course: the cross-entropy, with two passes in later steps.
    """
    del model, images, diagnosis, seed
    return sharpness_aware()


def sharpness_aware(radius: float = RADIUS, begin: float = SHARP_FROM) -> Course:
    """Return the course that minimises the loss nearby too.

    The gradient is computed twice: at the weights, and where a step uphill of a fixed length leads. The
    second one moves the weights.

    Args:
        radius: The length of the step uphill, as a Euclidean norm over all trained parameters.
        begin: The share of the training (0..1) after which steps have two passes.

    Returns:
        The course.
    """

    def step(step: Step) -> None:
        if step.fraction >= begin:
            uphill(step, radius)

    return Course(step=step)


def uphill(step: Step, radius: float) -> None:
    """Replace the gradient of a step by that at the weights a fixed length uphill.

    Args:
        step: The step; its gradients change, its weights stay.
        radius: The length, as a Euclidean norm over all trained parameters.
    """
    moved = [value for value in step.parameters if value.grad is not None]
    before = [value.detach().clone() for value in moved]
    with torch.no_grad():
        gradients = [value.grad for value in moved if value.grad is not None]
        length = torch.nn.utils.get_total_norm(gradients).clamp(min=1e-12)
        for value, gradient in zip(moved, gradients, strict=True):
            value += radius / length * gradient
    step.again()
    with torch.no_grad():
        for value, old in zip(moved, before, strict=True):
            value.copy_(old)


def moving_average(model: nn.Module, images: TrainingImages, diagnosis: Diagnosis, seed: int) -> Course:
    """Train as the control does, and return the moving average of the weights.

    The average is kept by `torch.optim.swa_utils`, from the first step on.

    Args:
        model: Not used.
        images: Not used.
        diagnosis: Not used.
        seed: Not used.

    Returns:
        The course: the cross-entropy, and what each step leaves of the average before it.
    """
    del model, images, diagnosis, seed
    return Course(average_from=0.0, average_decay=EMA_DECAY)


def mixup(model: nn.Module, images: TrainingImages, diagnosis: Diagnosis, seed: int) -> Course:
    """Train on weighted means of two images, and of their labels (mixup; Zhang et al. 2018).

    The share of the second image is drawn for each batch from a beta distribution (0.2, 0.2) by torchvision's
    `MixUp`. A short training gets worse by it.

    Args:
        model: Not used.
        images: Not used.
        diagnosis: It names the categories.
        seed: The shares depend on it and on the number of the step.

    Returns:
        The course: the cross-entropy with the mixed labels, on the mixed images.
    """
    del model, images
    from torchvision.transforms import v2

    return _mixed(v2.MixUp(alpha=MIXUP, num_classes=len(diagnosis.classes)), key("mixup", seed))


def cutmix(model: nn.Module, images: TrainingImages, diagnosis: Diagnosis, seed: int) -> Course:
    """Train on images with a rectangle from another image, labels mixed by area (CutMix; Yun et al. 2019).

    The area is drawn for each batch, each as likely, by torchvision's `CutMix`. A short training gets worse
    by it.

    Args:
        model: Not used.
        images: Not used.
        diagnosis: It names the categories.
        seed: The rectangles depend on it and on the number of the step.

    Returns:
        The course: the cross-entropy with the mixed labels, on the mixed images.
    """
    del model, images
    from torchvision.transforms import v2

    return _mixed(v2.CutMix(alpha=1.0, num_classes=len(diagnosis.classes)), key("cutmix", seed))


def _mixed(mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], seed: int) -> Course:
    """Return the course that trains on mixed images."""

    def terms(model: nn.Module, batch: Batch, step: int) -> Mapping[str, Tensor]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(key("mixed", seed, step))
            images, shares = mix(batch.images, batch.labels)
        return classification_terms(
            model,
            replace(batch, images=images),
            lambda logits, _labels: functional.cross_entropy(logits, shares.to(logits)),
        )[1]

    return Course(terms)


def regularise(model: nn.Module, images: TrainingImages, diagnosis: Diagnosis, seed: int) -> Course:
    """Train with stronger decay, TrivialAugment, smoothed labels and a moving average together.

    Args:
        model: Not used.
        images: The training images.
        diagnosis: Not used.
        seed: Not used.

    Returns:
        The course: that of `decay`, `augment`, `smoothing` and `ema` at once.
    """
    del model, diagnosis, seed
    smooth = partial(functional.cross_entropy, label_smoothing=SMOOTHING)
    return Course(
        lambda model, batch, _step: classification_terms(model, batch, smooth)[1],
        average_from=0.0,
        average_decay=EMA_DECAY,
        images=TriviallyAugmented(images),
        recipe=_more_decay,
    )


def _more_decay(recipe: Recipe) -> Recipe:
    """Return a recipe with a stronger weight decay."""
    return replace(recipe, weight_decay=max(DECAY_TIMES * recipe.weight_decay, LEAST_DECAY))
