"""Other remedies than the paper's constraints, so that all can be compared with the same control.

A remedy is a function of the network, the training images, the diagnosis and a seed. It returns a `Course`:
what is minimised at each step of the training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from torchdoctor.diagnosis.result import Diagnosis
from torchdoctor.images.backgrounds import swapped_backgrounds
from torchdoctor.images.batches import Batch, TrainingImages, take
from torchdoctor.network.frozen import frozen_eval
from torchdoctor.network.hooks import hooked
from torchdoctor.network.outputs import as_logits
from torchdoctor.network.workarounds import second_derivatives
from torchdoctor.randomness import key
from torchdoctor.treatment.recipe import PLAIN, Course, Recipe, at_least_float32, classification_terms
from torchdoctor.treatment.weighting import example_of, measure_balance
from torchdoctor.types import InputError

Remedy = Callable[[nn.Module, TrainingImages, Diagnosis, int], Course]

SMOOTHING = 0.1  # of the probability, given to all categories alike
AVERAGED_FROM = 0.5  # the share of the training after which weights are averaged
MOST_SWAPPED = 0.5  # the share of a batch whose backgrounds may be swapped


def control(model: nn.Module, images: TrainingImages, diagnosis: Diagnosis, seed: int) -> Course:
    """Train on with the classification loss alone: every remedy is compared with this arm.

    Args:
        model: Not used.
        images: Not used.
        diagnosis: Not used.
        seed: Not used.

    Returns:
        The course: the cross-entropy.
    """
    del model, images, diagnosis, seed
    return PLAIN


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


def last_layer(model: nn.Module, images: TrainingImages, diagnosis: Diagnosis, seed: int) -> Course:
    """Train the last linear layer alone (deep feature reweighting, DFR; Kirichenko et al. 2022).

    Where masks exist, on annotated images with swapped backgrounds (see `background_swap`); elsewhere on all
    images, with every category weighted alike. Training starts from the layer's present weights.

    Args:
        model: The network; it has to end in a linear layer.
        images: The training images.
        diagnosis: Its confusion matrix says how many images each category has.
        seed: Together with the step, decides which backgrounds are swapped.

    Returns:
        The course: the cross-entropy, which reaches the last layer only.

    Raises:
        InputError: The logits do not come from a linear layer.
    """
    head = last_linear(model, example_of(model, images))
    masked = _has_masks(images)
    counts = torch.from_numpy(diagnosis.confusion.sum(axis=1)).clamp(min=1).float()
    weights = counts.sum() / (len(counts) * counts)

    def terms(model: nn.Module, batch: Batch, step: int) -> Mapping[str, Tensor]:
        model.eval()
        rows = _annotated_rows(batch)
        if masked:
            batch = take(swapped_batch(batch, seed, step), rows) if len(rows) else batch
        layer = model.get_submodule(head)
        with torch.no_grad():
            features = _input_of(model, layer, batch.images)
        balance = None if masked else weights.to(features)
        return {
            "loss": functional.cross_entropy(at_least_float32(layer(features)), batch.labels, weight=balance)
        }

    return Course(terms)


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


REMEDIES: Mapping[str, Remedy] = {
    "control": control,
    "swap": background_swap,
    "dfr": last_layer,
    "smoothing": label_smoothing,
    "averaging": weight_averaging,
    "rrr": input_gradients,
}
NEED_MASKS = frozenset({"swap", "rrr"})
USE_MASKS = NEED_MASKS | {"dfr"}


def last_linear(model: nn.Module, images: Tensor) -> str:
    """Find the linear layer whose output is the logits.

    Args:
        model: The network; it is left as it was.
        images: A few images [batch, channel, height, width] on which it is run.

    Returns:
        The layer's dotted name.

    Raises:
        InputError: The logits do not come from a linear layer.
    """
    called: list[str] = []
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    hooks = ((module, lambda *_call, name=name: called.append(name)) for name, module in linear.items())
    with hooked(hooks), frozen_eval(model) as frozen, torch.no_grad():
        logits = frozen.logits(images)
        last = called[-1] if called else ""
        layer = model.get_submodule(last)
        if last and torch.equal(layer(_input_of(model, layer, images)), logits):
            return last
    raise InputError(
        "arm 'dfr' trains the last linear layer, and the logits of this network come from none: leave it out"
    )


def _input_of(model: nn.Module, layer: nn.Module, images: Tensor) -> Tensor:
    """Return the input of a layer when the network runs on the images."""
    layer_inputs: list[Tensor] = []
    with hooked([(layer, lambda _module, inputs: layer_inputs.append(inputs[0]))], "forward_pre"):
        model(images)
    return layer_inputs[-1]


@second_derivatives()
def _input_penalty(model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
    """Return the squared input gradients summed over each image's background, averaged over the batch."""
    rows = _annotated_rows(batch)
    if len(rows) == 0 or batch.masks is None:
        return batch.images.new_zeros(())
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.autocast(batch.images.device.type, enabled=False):
            images = batch.images[rows].detach().requires_grad_(True)
            scores = as_logits(model(images)).log_softmax(1).sum()
            (gradient,) = torch.autograd.grad(scores, [images], create_graph=True)
        outside = 1 - batch.masks[rows].to(gradient)
        return (outside * gradient).square().sum() / len(batch.labels)
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


def _has_masks(images: TrainingImages) -> bool:
    """Return whether any image has a mask."""
    return any(bool(batch.annotated.any()) for batch in images if batch.annotated is not None)


def _need_masks(images: TrainingImages, name: str) -> None:
    """Raise InputError where no image has a mask."""
    if not _has_masks(images):
        raise InputError(
            f"arm {name!r} needs object masks and the training data has none: give data with masks or boxes, "
            "or leave the arm out"
        )
