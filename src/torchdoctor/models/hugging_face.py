"""Build classifiers of the library transformers, and read what their image processors do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from torchdoctor.types import InputError, first_line

SOURCE = "transformers"  # what comes before the colon in a model's name


class PlainLogits(nn.Module):
    """Lets a network of transformers return its logits alone; `plain` puts it before the network's class."""

    def forward(self, images: Tensor) -> Tensor:
        """Run the network.

        Args:
            images: Normalised images [batch, channel, height, width].

        Returns:
            The logits [batch, category].
        """
        output: Any = super().forward(pixel_values=images)
        logits: Tensor = output.logits
        return logits


def plain(network: nn.Module) -> nn.Module:
    """Let a network of transformers return its logits alone; its layers and weights keep their names.

    Args:
        network: The network; it is changed.

    Returns:
        The same network.
    """
    kind = type(network)
    network.__class__ = type(kind.__name__, (PlainLogits, kind), {"__module__": kind.__module__})
    return network


def build(name: str, classes: int, channels: int, *, pretrained: bool) -> nn.Module:
    """Build a classifier from a configuration of transformers.

    Args:
        name: `transformers:OWNER/NAME` or `transformers:FOLDER`.
        classes: The number of categories.
        channels: The number of channels of the images.
        pretrained: Whether its weights are loaded. A head of another number of categories is new then.

    Returns:
        The network in float32; it returns logits.

    Raises:
        InputError: transformers is not installed, has no classifier of that name, or its weights are for
            images of other channels.
    """
    library, source = _library(name), name.partition(":")[2]
    config = _configuration(name)
    known = int(config.num_labels)
    if known != classes:
        config.num_labels = classes
    own = int(getattr(config, "num_channels", 3))
    if own != channels:
        if pretrained:
            raise InputError(
                f"model {name!r}: its weights are for images of {own} channels, and the images have "
                f"{channels}: give --channels {own}"
            )
        config.num_channels = channels
    kind = library.AutoModelForImageClassification
    try:
        if pretrained:
            built = kind.from_pretrained(source, config=config, ignore_mismatched_sizes=known != classes)
        else:
            built = kind.from_config(config)
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"model {name!r}: transformers could not load it ({first_line(error)})") from error
    return plain(built.float())


def preparation(name: str) -> dict[str, Any]:
    """Return how the image processor of a network prepares images.

    Args:
        name: `transformers:OWNER/NAME` or `transformers:FOLDER`.

    Returns:
        `image_size` in pixels, `mean`, `std`, `resize`, `crop_share`, and `categories`, the number that the
        network knows. Without an image processor, its configuration's image size and categories.

    Raises:
        InputError: transformers is not installed, or there is no such network.
    """
    library, source = _library(name), name.partition(":")[2]
    config = _configuration(name)
    found: dict[str, Any] = {"categories": int(config.num_labels)}
    size = getattr(config, "image_size", None)
    if isinstance(size, int):
        found["image_size"] = size
    try:
        processor = library.AutoImageProcessor.from_pretrained(source)
    except (OSError, ValueError):
        return found
    normalises = getattr(processor, "do_normalize", True)
    for field, attribute, without in (("mean", "image_mean", 0.0), ("std", "image_std", 1.0)):
        values = getattr(processor, attribute, None)
        if values is not None:
            found[field] = tuple(map(float, values)) if normalises else (without,) * len(values)
    return {**found, **_size_of(processor)}


def published_classes(name: str | None) -> tuple[str, ...] | None:
    """Return the names of the categories that a network's configuration lists.

    Args:
        name: The model's name; None: not known.

    Returns:
        The names in the order of the logits; None where the network is of another library, or its
        configuration only numbers them (`LABEL_0`).

    Raises:
        InputError: transformers is not installed, or there is no such network.
    """
    if name is None or name.partition(":")[0] != SOURCE:
        return None
    labels: Mapping[int, str] = _configuration(name).id2label
    names = tuple(str(labels[number]) for number in sorted(labels))
    return None if all(text == f"LABEL_{number}" for number, text in enumerate(names)) else names


def _size_of(processor: Any) -> dict[str, Any]:
    """Return the size of the images, and how they become squares of it."""
    size, crop = _sides(getattr(processor, "size", None)), _sides(getattr(processor, "crop_size", None))
    if crop.get("height") and getattr(processor, "do_center_crop", False):
        side = int(crop["height"])
        shorter = size.get("shortest_edge") or size.get("height") or side
        return {"image_size": side, "resize": "crop", "crop_share": min(side / int(shorter), 1.0)}
    if size.get("height"):
        return {"image_size": int(size["height"]), "resize": "squash", "crop_share": 1.0}
    if size.get("shortest_edge"):
        side = int(size["shortest_edge"])
        # ConvNeXt: smaller images are a crop of a larger one.
        share = getattr(processor, "crop_pct", None) if side < 384 else None
        return {"image_size": side, "resize": "crop", "crop_share": float(share or 1.0)}
    return {}


def _sides(size: Any) -> Mapping[str, Any]:
    """Return a size as a mapping; empty where there is none."""
    given = {} if size is None else dict(size)
    return {name: given[name] for name in SIDES if given.get(name)}


SIDES = ("height", "width", "shortest_edge")


def _library(name: str) -> Any:
    """Return the library; InputError where it is not installed."""
    try:
        import transformers
    except ImportError as error:
        raise InputError(
            f"model {name!r} needs the package transformers: pip install 'torchdoctor[hf]'"
        ) from error
    return transformers


def _configuration(name: str) -> Any:
    """Return the configuration of a network."""
    library, source = _library(name), name.partition(":")[2]
    try:
        config = library.AutoConfig.from_pretrained(source)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"model {name!r}: transformers finds no configuration there ({first_line(error)}); expected "
            "transformers:OWNER/NAME of the hub, or a folder that save_pretrained wrote"
        ) from error
    if type(config) not in library.AutoModelForImageClassification._model_mapping:
        raise InputError(f"model {name!r}: {type(config).__name__} is no classifier of images")
    return config
