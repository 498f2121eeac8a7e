"""The remedies that look at object masks: swapped backgrounds, and a penalty on input gradients outside."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torchdoctor.diagnosis.result import Diagnosis
from torchdoctor.images.backgrounds import swapped_backgrounds
from torchdoctor.images.batches import Batch, TrainingImages
from torchdoctor.network.kept_tensors import without_kept_tensors
from torchdoctor.network.outputs import as_logits
from torchdoctor.network.workarounds import second_derivatives
from torchdoctor.randomness import key
from torchdoctor.treatment.losses import classification_terms
from torchdoctor.treatment.masked_images import has_masks
from torchdoctor.treatment.recipe import Course, Recipe
from torchdoctor.treatment.sharing import share_of
from torchdoctor.treatment.weighting import measure_balance
from torchdoctor.types import InputError

MOST_SWAPPED = 0.5  # the share of a batch whose backgrounds may be swapped


def background_swap(model: nn.Module, images: TrainingImages, diagnosis: Diagnosis, seed: int) -> Course:
    """Train on images whose objects stand before the background of another image.

    At every step up to half of the batch is changed this way, annotated images only. Objects are cut out
    along their masks. In the image that gives its background, the own object is covered by background.

    Args:
        model: Not used.
        images: The training images; some need masks.
        diagnosis: Not used.
        seed: Together with the step, decides which images are changed and who gets which background.

    Returns:
        The course: the cross-entropy on the changed batch.

    Raises:
        InputError: No image has a mask.
    """
    del model, diagnosis
    _need_masks(images, "swap")

    def terms(model: nn.Module, batch: Batch, step: int) -> Mapping[str, Tensor]:
        return classification_terms(model, swapped_batch(batch, seed, step))[1]

    return Course(terms)


def input_gradients(
    model: nn.Module, images: TrainingImages, diagnosis: Diagnosis, seed: int, tau: float = 0.3
) -> Course:
    """Penalise squared input gradients on the background (right for the right reasons; Ross et al. 2017).

    The gradient is that of the log-probabilities, summed over the categories, by the input pixels. The
    penalty's weight is set so that the norm of its gradient by the weights is `tau` times that of the loss.

    Args:
        model: The network; its weights are left as they are.
        images: The training images; some need masks.
        diagnosis: Not used.
        seed: Seeds the measurement of the two gradient norms.
        tau: The penalty's gradient norm as a share of the loss's.

    Returns:
        The course: the cross-entropy plus the penalty. `facts` holds its weight.

    Raises:
        InputError: No image has a mask, or the penalty does not depend on any trainable parameter.
    """
    del diagnosis
    _need_masks(images, "rrr")

    def loss_and_penalties(
        model: nn.Module, batch: Batch, step: int
    ) -> tuple[dict[str, Float[Tensor, ""]], dict[str, Float[Tensor, ""]]]:
        del step
        terms = classification_terms(model, batch)[1]
        return terms, {"rrr": _input_penalty(model, batch)}

    balance = measure_balance(model, images, loss_and_penalties, "rrr", Recipe(), key("rrr", seed))
    if not balance.reached:
        raise InputError("arm 'rrr': its penalty reaches no trainable parameter, so training would ignore it")
    weight = tau * balance.loss_norm / balance.penalty_norm

    def terms(model: nn.Module, batch: Batch, step: int) -> Mapping[str, Tensor]:
        parts, penalties = loss_and_penalties(model, batch, step)
        return {**parts, "rrr": weight * penalties["rrr"]}

    return Course(terms, facts=({"penalty": "rrr", "weight": weight, "tau": tau},))


@second_derivatives()
def _input_penalty(model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
    """Return the squared input gradients summed over each image's background, averaged over the batch."""
    share = share_of(batch, model)
    return share.total(_background_gradients(model, share.of(batch)) / len(batch.labels))


def _background_gradients(model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
    """Return the squared input gradients summed over the images and their backgrounds."""
    rows = _annotated_rows(batch)
    if len(rows) == 0 or batch.masks is None:
        return batch.images.new_zeros(())
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with without_kept_tensors(model), torch.autocast(batch.images.device.type, enabled=False):
            images = batch.images[rows].detach().requires_grad_(True)
            scores = as_logits(model(images)).log_softmax(1).sum()
            (gradient,) = torch.autograd.grad(scores, [images], create_graph=True)
        outside = 1 - batch.masks[rows].to(gradient)
        return (outside * gradient).square().sum()
    finally:
        for module, mode in training.items():
            module.training = mode


def swapped_batch(batch: Batch, seed: int, step: int) -> Batch:
    """Give annotated images of a batch each other's backgrounds.

    At most half of the batch is changed. If every image had a mask and all were swapped, no image would keep
    its own background, and a background would become evidence against its own category.

    Args:
        batch: Images [batch, channel, height, width] with masks [batch, 1, height, width], 1 on the object.
        seed: The arm's seed.
        step: The step; seed and step together decide which images are changed and how.

    Returns:
        A new batch; the same batch where fewer than two images are annotated.
    """
    rows = _annotated_rows(batch)
    if len(rows) < 2 or batch.masks is None:
        return batch
    generator = torch.Generator().manual_seed(key("swap", seed, step))
    most = max(int(MOST_SWAPPED * len(batch.labels)), 2)
    if len(rows) > most:
        rows = rows[torch.randperm(len(rows), generator=generator)[:most].sort().values]
    by = int(torch.randint(1, len(rows), (), generator=generator))
    donors = torch.arange(len(rows)).roll(by).to(batch.images.device)
    masks = batch.masks[rows].to(batch.images)
    images = batch.images.clone()
    images[rows] = swapped_backgrounds(batch.images[rows], masks, donors)
    return Batch(images, batch.labels, batch.ids, batch.masks, batch.annotated)


def _annotated_rows(batch: Batch) -> Tensor:
    """Return the places of annotated images in the batch, as a tensor on the CPU."""
    if batch.annotated is None or batch.masks is None:
        return torch.zeros(0, dtype=torch.int64)
    return torch.arange(len(batch.labels))[batch.annotated.cpu()]


def _need_masks(images: TrainingImages, name: str) -> None:
    """Raise InputError where no image has a mask."""
    if not has_masks(images):
        raise InputError(
            f"arm {name!r} needs object masks and the training data has none: give data with masks or boxes, "
            "or leave the arm out"
        )
