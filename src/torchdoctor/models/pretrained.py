"""Load the weights that torchvision and timm publish, and the preprocessing that belongs to them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from torchdoctor.models import hugging_face
from torchdoctor.models.packaged import from_package
from torchdoctor.models.stems import grey_kernels
from torchdoctor.network.state import load_state
from torchdoctor.types import InputError

PRETRAINED = "pretrained"  # the value of `weights` that asks for the published weights
IMAGENET_CATEGORIES = 1000  # the size of the published heads


def load_pretrained(model: nn.Module, source: str, channels: int) -> None:
    """Load published weights into a network that was built from the same source.

    For images that are not RGB the kernels of the first convolution are summed over the colours (see
    `grey_kernels`). A head for another number of categories than the published head keeps its new weights.

    Args:
        model: The network; it is changed in place.
        source: `torchvision:NAME` or `timm:NAME`.
        channels: The number of channels of the images.

    Raises:
        InputError: No weights are published, they cannot be fetched, or they do not fit the network.
    """
    expected, fitting = model.state_dict(), {}
    published = _published_state(source)
    heads = {
        _module_of(entry) for entry, value in expected.items() if _is_other_head(published.get(entry), value)
    }
    for entry, value in published.items():
        if entry not in expected or _module_of(entry) in heads:
            continue
        if value.ndim == 4 and value.shape[1] == 3 and expected[entry].shape[1] == channels != 3:
            value = grey_kernels(value, channels)
        if value.shape != expected[entry].shape:
            raise InputError(
                f"the pretrained weights of {source} do not fit at {entry}: {tuple(value.shape)} in the "
                f"file, {tuple(expected[entry].shape)} in the model"
            )
        fitting[entry] = value
    missing = [entry for entry in expected if entry not in fitting and _module_of(entry) not in heads]
    if missing:
        raise InputError(f"the pretrained weights of {source} have no {', '.join(missing[:5])}")
    load_state(model, fitting, strict=False)


def _module_of(entry: str) -> str:
    """Return the name of the module that a parameter belongs to."""
    return entry.rpartition(".")[0]


def _is_other_head(published: Tensor | None, expected: Tensor) -> bool:
    """Return whether a tensor differs from the published tensor only in its number of categories."""
    if published is None or published.ndim != expected.ndim or published.ndim == 0:
        return False
    other_number = published.shape[0] == IMAGENET_CATEGORIES != expected.shape[0]
    return other_number and published.shape[1:] == expected.shape[1:]


def _published_state(source: str) -> Mapping[str, Tensor]:
    """Fetch the published weights of `torchvision:NAME` or `timm:NAME`."""
    library, _, name = source.partition(":")
    try:
        return _timm_state(name) if library == "timm" else _torchvision_state(library, name)
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"the pretrained weights of {source} could not be fetched ({reason}): check the connection, or "
            "give --weights a file"
        ) from error


def _torchvision_state(library: str, name: str) -> Mapping[str, Tensor]:
    """Return torchvision's default weights of a network."""
    if library != "torchvision":
        raise ValueError("nobody publishes weights for it")
    from torchvision import models

    return models.get_model_weights(name).DEFAULT.get_state_dict(progress=False, check_hash=True)


def _timm_state(name: str) -> Mapping[str, Tensor]:
    """Return timm's default weights of a network: those of an installed package, else downloaded ones."""
    import timm

    return timm.create_model(name, pretrained=True, **from_package(name)).state_dict()


def own_preprocessing(name: str, *, pretrained: bool) -> dict[str, Any]:
    """Return the preprocessing that the source of a network says its images need.

    Args:
        name: The name of the network, as for `load_model`.
        pretrained: Whether the published weights are used. Without them the network is trained anew, and
            only the normalisation is returned: the images keep the size of the data set.

    Returns:
        `mean` and `std` of each channel and, if `pretrained`, `image_size` in pixels and `categories`, the
        number that the published head knows. Empty where the source says nothing.
    """
    from torchdoctor.models.catalogue import MODELS

    source = MODELS[name].source if name in MODELS else name
    library, _, rest = source.partition(":")
    if library == hugging_face.SOURCE:
        return hugging_face.preparation(source)  # the size belongs to the network, not only to its weights
    if library in ("timm", "hf-hub", "local-dir"):
        configuration = _timm_configuration(library, rest)
    elif library == "torchvision" and pretrained:
        configuration = _torchvision_configuration(rest)
    else:
        return {}
    if pretrained:
        return configuration
    return {field: configuration[field] for field in ("mean", "std") if field in configuration}


def _timm_configuration(library: str, rest: str) -> dict[str, Any]:
    """Return what timm's configuration says; empty where there is none or it cannot be fetched."""
    from timm.models import get_pretrained_cfg, load_model_config_from_hf

    try:
        if library == "timm":
            pretrained_cfg = get_pretrained_cfg(rest)
            configuration = pretrained_cfg.to_dict() if pretrained_cfg is not None else {}
        elif library == "hf-hub":
            configuration = load_model_config_from_hf(rest)[0]
        else:
            stored = json.loads((Path(rest) / "config.json").read_text(encoding="utf-8"))
            configuration = stored.get("pretrained_cfg", stored)
    except (OSError, RuntimeError, ValueError):
        return {}
    if not configuration.get("mean") or not configuration.get("std"):
        return {}
    size = (configuration.get("input_size") or (3, None, None))[-1]
    return {
        "image_size": size,
        "mean": tuple(configuration["mean"]),
        "std": tuple(configuration["std"]),
        "categories": configuration.get("num_classes"),
    }


def _torchvision_configuration(name: str) -> dict[str, Any]:
    """Return what the transforms of torchvision's default weights do; empty where there are none."""
    from torchvision import models

    try:
        weights = models.get_model_weights(name).DEFAULT
        transforms = weights.transforms()
    except (ValueError, AttributeError):
        return {}
    return {
        "image_size": transforms.crop_size[0],
        "mean": tuple(transforms.mean),
        "std": tuple(transforms.std),
        "categories": len(weights.meta["categories"]),
    }
