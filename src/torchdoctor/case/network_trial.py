"""Try a network out on two training images, and choose the layers to diagnose."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torchdoctor.case.settings import Settings
from torchdoctor.data.load import Splits
from torchdoctor.models.catalogue import MODELS
from torchdoctor.network.checks import TO_TRAIN, Finding, check_model, try_out
from torchdoctor.network.default_layers import default_layers
from torchdoctor.network.frozen import frozen_eval
from torchdoctor.network.layers import chosen_layers
from torchdoctor.network.outputs import as_logits
from torchdoctor.network.prediction import device_of
from torchdoctor.network.taps import map_shapes
from torchdoctor.types import InputError, first_line

TryOut = Callable[[str, nn.Module, Splits, tuple[str, ...]], tuple[str, ...]]


def layers_of(
    settings: Settings, name: str, model: nn.Module, data: Splits, try_out: TryOut, *, to_train: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Choose the layers to diagnose, and try the network out on them.

    Args:
        settings: What was asked for.
        name: The name of the model, for messages.
        model: The network, in evaluation mode.
        data: The images.
        try_out: Raises InputError for networks that the run cannot use, and returns notes on others.
        to_train: Whether the network is only trained, for which no layer is needed.

    Returns:
        The layers asked for, or the default layers, from first to last; none where the network is only
        trained and no layer can be diagnosed. And notes on the network.

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
    notes: tuple[str, ...] = ()
    try:
        chosen = _chosen(settings, name, model, example)
    except InputError as error:
        if not to_train or settings.layers != "auto":
            raise
        chosen, notes = (), (f"this network is trained, but it cannot be diagnosed as it is: {error}",)
    return chosen, notes + try_out(name, model, data, chosen)


def _chosen(settings: Settings, name: str, model: nn.Module, example: Tensor) -> tuple[str, ...]:
    """Return the layers asked for, or the default ones, from first to last."""
    if settings.layers != "auto":
        chosen = chosen_layers(model, example, settings.layers)
        return tuple(map_shapes(model, example, chosen))
    return MODELS[name].layers if name in MODELS else default_layers(model, example)


def _logits_of(name: str, model: nn.Module, example: Tensor) -> int:
    """Return the number of logits; InputError where the model cannot run on the data's images at all."""
    try:
        with frozen_eval(model), torch.no_grad():
            return as_logits(model(example)).shape[1]
    except InputError:
        raise
    except Exception as error:  # a model of the user's own can fail in any way
        raise InputError(
            f"--model {name!r} fails on an image of shape {list(example.shape[1:])} [channel, "
            f"height, width] ({first_line(error)}): check --channels and --image-size"
        ) from error


def try_out_network(name: str, model: nn.Module, data: Splits, layers: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse networks on which a diagnosis or a treatment would fail or have no meaning.

    Frozen parameters are left to the treatment: a diagnosis does without them.

    Args:
        name: The name of the model, for messages.
        model: The network, in evaluation mode.
        data: The data; the first two training images are tried.
        layers: The layers to be diagnosed and constrained.

    Returns:
        An empty tuple: there are no notes.

    Raises:
        InputError: If `check_model` finds an error; the message holds all that it found.
    """
    _refuse(name, check_model(model, trial_images(model, data), layers))
    return ()


def try_out_training(name: str, model: nn.Module, data: Splits, layers: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse networks that cannot be trained; what only a diagnosis or a treatment needs becomes a note.

    Args:
        name: The name of the model, for messages.
        model: The network, in evaluation mode.
        data: The data; the first two training images are tried.
        layers: The layers that a diagnosis would look at; none: they are not tried out.

    Returns:
        Sentences about what a diagnosis or a treatment of these layers would be refused for.

    Raises:
        InputError: If a trial that training needs finds an error.
    """
    images = trial_images(model, data)
    _refuse(name, try_out(model, images, layers, TO_TRAIN))
    found = check_model(model, images, layers) if layers else ()
    return tuple(
        f"this network is trained, but a diagnosis of its layers {', '.join(layers)} would be refused: "
        f"{finding.message}"
        for finding in found
        if finding.level == "error" and finding.check not in TO_TRAIN
    )


def _refuse(name: str, findings: Sequence[Finding]) -> None:
    """Raise InputError where there is an error; frozen parameters are left to the treatment."""
    errors = [finding for finding in findings if finding.level == "error"]
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
