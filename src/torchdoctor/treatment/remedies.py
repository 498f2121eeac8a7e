"""What else could help: remedies beside the paper's constraints, to be compared under one budget."""

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
from torchdoctor.network.outputs import as_logits
from torchdoctor.randomness import key
from torchdoctor.treatment.recipe import PLAIN, Course, Recipe, classification_terms, wide
from torchdoctor.treatment.weighting import example_of, measure_balance
from torchdoctor.types import InputError

Remedy = Callable[[nn.Module, TrainingImages, Diagnosis, int], Course]

SMOOTHING = 0.1
AVERAGED_FROM = 0.5
MOST_SWAPPED = 0.5  # of a batch


def control(model: nn.Module, images: TrainingImages, diagnosis: Diagnosis, seed: int) -> Course:
    """Train on with the loss alone: what every remedy is compared with."""
    del model, images, diagnosis, seed
    return PLAIN


def background_swap(model: nn.Module, images: TrainingImages, diagnosis: Diagnosis, seed: int) -> Course:
    """Show annotated images of a batch, at most half of it, with each other's backgrounds.

    The objects are cut out along their masks; the donor's own object is covered by its background.
    InputError without masks.
    """
    del model, diagnosis
    _need_masks(images, "swap")

    def terms(model: nn.Module, batch: Batch, step: int) -> Mapping[str, Tensor]:
        return classification_terms(model, swapped_batch(batch, seed, step))[1]

    return Course(terms)


def last_layer(model: nn.Module, images: TrainingImages, diagnosis: Diagnosis, seed: int) -> Course:
    """Train the last linear layer alone, on data without the shortcut (deep feature reweighting, DFR).

    Where masks exist that data are the annotated images, as `swap` shows them; elsewhere all images, every
    category weighing the same. It goes on from the layer's own weights, like every other arm.
    InputError for a network that does not end in a linear layer.
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
        return {"loss": functional.cross_entropy(wide(layer(features)), batch.labels, weight=balance)}

    return Course(terms)


def label_smoothing(model: nn.Module, images: TrainingImages, diagnosis: Diagnosis, seed: int) -> Course:
    """Train against labels that give a tenth of the probability to all categories alike."""
    del model, images, diagnosis, seed
    smooth = partial(functional.cross_entropy, label_smoothing=SMOOTHING)
    return Course(lambda model, batch, _step: classification_terms(model, batch, smooth)[1])


def weight_averaging(model: nn.Module, images: TrainingImages, diagnosis: Diagnosis, seed: int) -> Course:
    """Train as the control and hand back the mean of the weights of the second half of the steps."""
    del model, images, diagnosis, seed
    return Course(average_from=AVERAGED_FROM)


def input_gradients(
    model: nn.Module, images: TrainingImages, diagnosis: Diagnosis, seed: int, tau: float = 0.3
) -> Course:
    """Penalise squared input gradients on the background (right for the right reasons, RRR).

    The gradient is that of the summed log-probabilities; the weight is set so that the penalty's gradient
    norm is `tau` times the loss's. InputError without masks.
    """
    del diagnosis
    _need_masks(images, "rrr")

    def watched(
        model: nn.Module, batch: Batch, step: int
    ) -> tuple[dict[str, Float[Tensor, ""]], dict[str, Float[Tensor, ""]]]:
        del step
        terms = classification_terms(model, batch)[1]
        return terms, {"rrr": _input_penalty(model, batch)}

    found = measure_balance(model, images, watched, "rrr", Recipe(), key("rrr", seed))
    if not found.reached:
        raise InputError("arm 'rrr': its penalty reaches no trainable parameter, so training would ignore it")
    weight = tau * found.loss_norm / found.penalty_norm

    def terms(model: nn.Module, batch: Batch, step: int) -> Mapping[str, Tensor]:
        parts, penalties = watched(model, batch, step)
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
    """Return the name of the linear layer whose output the logits are; InputError where there is none."""
    called: list[str] = []
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    handles = [
        model.get_submodule(name).register_forward_hook(lambda *_given, name=name: called.append(name))
        for name in names
    ]
    training = model.training
    try:
        model.eval()
        with torch.no_grad():
            logits = as_logits(model(images))
            last = called[-1] if called else ""
            layer = model.get_submodule(last)
            if last and torch.equal(layer(_input_of(model, layer, images)), logits):
                return last
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    raise InputError(
        "arm 'dfr' trains the last linear layer, and the logits of this network come from none: leave it out"
    )


def _input_of(model: nn.Module, layer: nn.Module, images: Tensor) -> Tensor:
    """Return what a layer is given when the network sees the images."""
    given: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _module, inputs: given.append(inputs[0]))
    try:
        model(images)
    finally:
        handle.remove()
    return given[-1]


def _input_penalty(model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
    """Return the batch's mean of squared input gradients summed over each image's background."""
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
    """Return the batch with annotated images before one another's backgrounds, keyed by seed and step.

    At most half of the batch: where every image has a mask and all were swapped, a background would speak
    against its own category, and images before their own backgrounds would be lost.
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
    """Return the rows of annotated images, chosen on the CPU."""
    if batch.annotated is None or batch.masks is None:
        return torch.zeros(0, dtype=torch.int64)
    return torch.arange(len(batch.labels))[batch.annotated.cpu()]


def _has_masks(images: TrainingImages) -> bool:
    """Whether any image shows a mask."""
    return any(bool(batch.annotated.any()) for batch in images if batch.annotated is not None)


def _need_masks(images: TrainingImages, name: str) -> None:
    """Raise InputError where no image shows a mask."""
    if not _has_masks(images):
        raise InputError(
            f"arm {name!r} needs object masks and the training data has none: give data with masks or boxes, "
            "or leave the arm out"
        )
