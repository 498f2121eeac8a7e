"""The linear layer that a network ends in: find it, collect its inputs, and replace its weights."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from torchdoctor.images.batches import Batch, Images
from torchdoctor.network.frozen import frozen_eval
from torchdoctor.network.hooks import hooked
from torchdoctor.network.prediction import device_of, dtype_of
from torchdoctor.types import InputError

NO_HEAD = (
    "the logits of this network do not come straight from a linear layer with a bias, which this remedy "
    "changes: leave it out"
)


@dataclass(frozen=True)
class Features:
    """What the last layer of a network gets to see.

    Attributes:
        inputs: The inputs of the layer, one row per image.
        labels: The images' labels.
        ids: The images' ids.
    """

    inputs: Float[np.ndarray, "image feature"]
    labels: Int[np.ndarray, " image"]
    ids: Int[np.ndarray, " image"]


@dataclass(frozen=True)
class Head:
    """The weights of a linear layer.

    Attributes:
        weight: A row for each category.
        bias: A number for each category.
    """

    weight: Float[np.ndarray, "category feature"]
    bias: Float[np.ndarray, " category"]

    def logits(self, inputs: Float[np.ndarray, "image feature"]) -> Float[np.ndarray, "image category"]:
        """Compute the layer's output.

        Args:
            inputs: The layer's inputs.

        Returns:
            The logits of each image.
        """
        return inputs @ self.weight.T + self.bias


def linear_head(model: nn.Module, images: Images) -> str | None:
    """Find the linear layer with a bias whose output is the logits.

    Args:
        model: The network; it is left as it was.
        images: Images on which it is run; the first two are enough.

    Returns:
        The layer's dotted name; None where the logits come from no such layer.
    """
    example = next(iter(images)).images[:2].to(device_of(model), dtype_of(model))
    called: list[str] = []
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    hooks = ((module, lambda *_call, name=name: called.append(name)) for name, module in linear.items())
    with hooked(hooks), frozen_eval(model) as frozen, torch.no_grad():
        logits = frozen.logits(example)
        layer = linear.get(called[-1]) if called else None
        if layer is None or layer.bias is None:
            return None
        return called[-1] if torch.equal(layer(_input_of(model, layer, example)), logits) else None


def head_of(model: nn.Module, images: Images) -> nn.Linear:
    """Return the linear layer with a bias whose output is the logits.

    Args:
        model: The network; it is left as it was.
        images: Images on which it is run; the first two are enough.

    Returns:
        The layer.

    Raises:
        InputError: The logits come from no such layer.
    """
    name = linear_head(model, images)
    if name is None:
        raise InputError(NO_HEAD)
    layer: nn.Linear = model.get_submodule(name)  # type: ignore[assignment]
    return layer


def features_of(model: nn.Module, layer: nn.Module, images: Iterable[Batch]) -> Features:
    """Collect what a layer gets to see, in evaluation mode.

    Args:
        model: The network; it is left as it was.
        layer: The layer.
        images: The images; an id may come more than once.

    Returns:
        The layer's inputs in float64.

    Raises:
        InputError: There is no image.
    """
    device, dtype = device_of(model), dtype_of(model)
    inputs, labels, ids = [], [], []
    with frozen_eval(model), torch.no_grad():
        for batch in images:
            inputs.append(_input_of(model, layer, batch.images.to(device, dtype)).double().cpu().numpy())
            labels.append(batch.labels.cpu().numpy())
            ids.append(batch.ids.cpu().numpy())
    if not ids:
        raise InputError("there are no images: the source yielded no batch; check the data and its split")
    return Features(np.concatenate(inputs), np.concatenate(labels), np.concatenate(ids))


def present_head(layer: nn.Linear) -> Head:
    """Return the weights that a layer has.

    Args:
        layer: The layer.

    Returns:
        Its weights, in float64.
    """
    return Head(layer.weight.detach().double().cpu().numpy(), layer.bias.detach().double().cpu().numpy())


def install(head: Head, layer: nn.Linear) -> None:
    """Put weights into a layer.

    Args:
        head: The weights.
        layer: The layer; it is changed in place.
    """
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(head.weight))
        layer.bias.copy_(torch.from_numpy(head.bias))


def balanced_accuracy(
    logits: Float[np.ndarray, "image category"],
    groups: Int[np.ndarray, " image"],
    labels: Int[np.ndarray, " image"] | None = None,
) -> float:
    """Measure the accuracy with every category, or every group, weighing the same.

    Args:
        logits: The logits of the images.
        groups: The group of each image.
        labels: The label of each image; None: the groups are the labels.

    Returns:
        The mean over the groups that have images of the share of their images that are right, 0..1.
    """
    right = logits.argmax(1) == (groups if labels is None else labels)
    return float(np.mean([right[groups == group].mean() for group in np.unique(groups)]))


def balanced_error(logits: Float[np.ndarray, "image category"], labels: Int[np.ndarray, " image"]) -> float:
    """Return the standard error of the accuracy with every category weighing the same.

    Args:
        logits: The logits of the images.
        labels: Their labels.

    Returns:
        The square root of `sum_k r_k (1 - r_k) / n_k` over the number of categories that have images, where
        r_k is the accuracy on the n_k images of a category. To each category one right and one wrong image
        are added, so that one or two images are not taken for certain.
    """
    right = logits.argmax(1) == labels
    counted = [right[labels == label] for label in np.unique(labels)]
    shares = [(each.sum() + 1, len(each) + 2) for each in counted]
    variance = sum(hits / count * (1 - hits / count) / count for hits, count in shares)
    return float(np.sqrt(variance)) / len(counted)


def _input_of(model: nn.Module, layer: nn.Module, images: Tensor) -> Tensor:
    """Return the input of a layer when the network runs on the images."""
    layer_inputs: list[Tensor] = []
    with hooked([(layer, lambda _module, inputs: layer_inputs.append(inputs[0]))], "forward_pre"):
        model(images)
    return layer_inputs[-1]
