"""Put weights into a network, whatever file they came through."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from torchdoctor.network.kept_tensors import forget_kept_tensors


def load_state(model: nn.Module, state: Mapping[str, Tensor], *, strict: bool = True) -> None:
    """Load tensors by name into a network, as `torch.nn.Module.load_state_dict` does.

    A state dict of torch also carries the version of each module's layout. Files of safetensors, and plain
    dictionaries, lose these versions, and some networks (torchvision's MnasNet) refuse a state without them.
    Where the state has none, the versions of the network itself are taken.

    Args:
        model: The network; it is changed in place.
        state: The tensors by name.
        strict: Whether every name must be in both.

    Raises:
        RuntimeError: Names or shapes differ.
    """
    whole = OrderedDict(state)
    versions = getattr(state, "_metadata", None) or getattr(model.state_dict(), "_metadata", None)
    whole._metadata = versions  # type: ignore[attr-defined]
    model.load_state_dict(whole, strict=strict)
    forget_kept_tensors(model)


def same_state(first: nn.Module, second: nn.Module) -> bool:
    """Tell whether two networks hold the same numbers.

    Args:
        first: A network.
        second: Another.

    Returns:
        True where all their tensors have the same names and are equal, NaN counting as equal to NaN.
    """
    one, other = first.state_dict(), second.state_dict()
    return one.keys() == other.keys() and all(
        torch.equal(torch.nan_to_num(value), torch.nan_to_num(other[name])) for name, value in one.items()
    )
