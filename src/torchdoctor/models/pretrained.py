"""Load the weights that torchvision and timm publish, and the preprocessing that belongs to them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from torchdoctor.models.stems import grey_kernels
from torchdoctor.types import InputError

PRETRAINED = "pretrained"


def load_pretrained(model: nn.Module, source: str, channels: int) -> None:
    """Load the published weights of `torchvision:NAME` or `timm:NAME` into a network built from it.

    The stem takes the kernels summed over the colours where the images are not RGB; a head for another
    number of categories stays new. InputError where none are published or they cannot be fetched.
    """
    library, _, name = source.partition(":")
    try:
        state = _timm_state(name) if library == "timm" else _torchvision_state(library, name)
    except (OSError, RuntimeError, ValueError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"the pretrained weights of {source} could not be fetched ({first}): check the connection, or "
            "give --weights a file"
        ) from error
    wanted, fitting = model.state_dict(), {}
    heads = {_owner(entry) for entry, value in wanted.items() if _is_other_head(state.get(entry), value)}
    for entry, value in state.items():
        if entry not in wanted or _owner(entry) in heads:
            continue
        if value.ndim == 4 and value.shape[1] == 3 and wanted[entry].shape[1] == channels != 3:
            value = grey_kernels(value, channels)
        if value.shape != wanted[entry].shape:
            raise InputError(
                f"the pretrained weights of {source} do not fit at {entry}: {tuple(value.shape)} in the "
                f"file, {tuple(wanted[entry].shape)} in the model"
            )
        fitting[entry] = value
    missing = [entry for entry in wanted if entry not in fitting and _owner(entry) not in heads]
    if missing:
        raise InputError(f"the pretrained weights of {source} have no {', '.join(missing[:5])}")
    model.load_state_dict(fitting, strict=False)


def _owner(entry: str) -> str:
    """Return the module that a parameter belongs to."""
    return entry.rpartition(".")[0]


def _is_other_head(found: Tensor | None, wanted: Tensor) -> bool:
    """Return whether a tensor differs from the published one in its number of categories alone."""
    if found is None or found.ndim != wanted.ndim or found.ndim == 0:
        return False
    return found.shape[0] == 1000 != wanted.shape[0] and found.shape[1:] == wanted.shape[1:]


def _torchvision_state(library: str, name: str) -> Mapping[str, Tensor]:
    """Return torchvision's default weights of a network."""
    if library != "torchvision":
        raise ValueError("nobody publishes weights for it")
    from torchvision import models

    return models.get_model_weights(name).DEFAULT.get_state_dict(progress=False, check_hash=True)


def _timm_state(name: str) -> Mapping[str, Tensor]:
    """Return timm's default weights of a network."""
    import timm

    return timm.create_model(name, pretrained=True).state_dict()


def own_preprocessing(name: str, *, pretrained: bool) -> dict[str, Any]:
    """Return the preprocessing in the model's own configuration: mean, std and, if pretrained, image_size.

    With `pretrained`, `categories` is the number that the published head knows. A network to be trained
    anew keeps the size of the data. Empty where the model has no configuration.
    """
    from torchdoctor.models.catalogue import MODELS

    source = MODELS[name].source if name in MODELS else name
    library, _, rest = source.partition(":")
    if library in ("timm", "hf-hub", "local-dir"):
        found = _timm_configuration(library, rest)
    elif library == "torchvision" and pretrained:
        found = _torchvision_configuration(rest)
    else:
        return {}
    return found if pretrained else {name: found[name] for name in ("mean", "std") if name in found}


def _timm_configuration(library: str, rest: str) -> dict[str, Any]:
    """Return what timm's configuration says; empty where it cannot be had."""
    from timm.models import get_pretrained_cfg, load_model_config_from_hf

    try:
        if library == "timm":
            configuration = get_pretrained_cfg(rest)
            found = configuration.to_dict() if configuration is not None else {}
        elif library == "hf-hub":
            found = load_model_config_from_hf(rest)[0]
        else:
            stored = json.loads((Path(rest) / "config.json").read_text(encoding="utf-8"))
            found = stored.get("pretrained_cfg", stored)
    except (OSError, RuntimeError, ValueError):
        return {}
    if not found.get("mean") or not found.get("std"):
        return {}
    size = (found.get("input_size") or (3, None, None))[-1]
    return {
        "image_size": size,
        "mean": tuple(found["mean"]),
        "std": tuple(found["std"]),
        "categories": found.get("num_classes"),
    }


def _torchvision_configuration(name: str) -> dict[str, Any]:
    """Return what the transforms of torchvision's default weights do."""
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
