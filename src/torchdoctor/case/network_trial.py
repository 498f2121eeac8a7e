"""Try a network out on two training images, and choose the layers to diagnose."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torchdoctor.case.settings import Settings
from torchdoctor.data.load import Splits
from torchdoctor.models.catalogue import MODELS
from torchdoctor.network.checks import check_model
from torchdoctor.network.frozen import frozen_eval
from torchdoctor.network.hooks import map_shapes
from torchdoctor.network.layers import chosen_layers, default_layers
from torchdoctor.network.outputs import as_logits
from torchdoctor.network.prediction import device_of
from torchdoctor.types import InputError

TryOut = Callable[[str, nn.Module, Splits, tuple[str, ...]], None]


def layers_of(
    settings: Settings, name: str, model: nn.Module, data: Splits, try_out: TryOut
) -> tuple[str, ...]:
    """Choose the layers to diagnose, and try the network out on them.

    Args:
        settings: What was asked for.
        name: What the model is called.
        model: The network, in evaluation mode.
        data: The images.
        try_out: What refuses networks that cannot be diagnosed or treated.

    Returns:
        The layers asked for, or the default layers, from first to last.

    Raises:
        InputError: The network does not run on the images, has another number of logits than there are
            categories, or cannot be diagnosed at the layers.
    """
    example = example_of(model, data)
    logits = _logits_of(name, model, example)
    if logits != len(data.classes):
        raise InputError(
            f"--model {name!r} gives {logits} logits, and {settings.data!r} has {len(data.classes)} "
            "categories: give a model with a logit for each category"
        )
    if settings.layers != "auto":
        chosen = chosen_layers(model, example, settings.layers)
        chosen = tuple(map_shapes(model, example, chosen))  # first to last
    else:
        chosen = MODELS[name].layers if name in MODELS else default_layers(model, example)
    try_out(name, model, data, chosen)
    return chosen


def _logits_of(name: str, model: nn.Module, example: Tensor) -> int:
    """Return the number of logits; InputError where the model cannot run on the data's images at all."""
    try:
        with frozen_eval(model), torch.no_grad():
            return as_logits(model(example)).shape[1]
    except InputError:
        raise
    except Exception as error:  # a model of the user's own can fail in any way
        said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"--model {name!r} fails on an image of shape {list(example.shape[1:])} [channel, "
            f"height, width] ({said}): check --channels and --image-size"
        ) from error


def try_out_network(name: str, model: nn.Module, data: Splits, layers: tuple[str, ...]) -> None:
    """Refuse networks on which diagnosis or treatment would fail or mean nothing.

    Frozen parameters are left to the treatment: a diagnosis does without them.

    Args:
        name: What the model is called in the message.
        model: The network, in evaluation mode.
        data: The data; the first two training images are tried.
        layers: The layers to be diagnosed and constrained.

    Raises:
        InputError: If `check_model` finds an error; the message holds all that it found.
    """
    images = trial_images(model, data)
    errors = [finding for finding in check_model(model, images, layers) if finding.level == "error"]
    serious = [finding.message for finding in errors if finding.check != "trainable"]
    if serious:
        raise InputError(f"--model {name!r}: {'; '.join(serious)}")


def trial_images(model: nn.Module, data: Splits) -> Float[Tensor, "2 channel height width"]:
    """Return the two images on which a network is tried.

    Args:
        model: The network.
        data: The data.

    Returns:
        The first two training images, where the network lies.
    """
    ids = data.train.table.ids[:2].tolist()
    return torch.cat([batch.images for batch in data.train.select(ids)]).to(device_of(model))


def example_of(model: nn.Module, data: Splits) -> Float[Tensor, "1 channel height width"]:
    """Return a training image on the device of the network.

    Args:
        model: The network.
        data: The images.

    Returns:
        The first training image, in a batch of its own.
    """
    first = next(iter(data.train.select([int(data.train.table.ids[0])])))
    return first.images.to(device_of(model))
