"""Copy a network as users have it: with computed tensors among its attributes."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from types import FunctionType, ModuleType
from typing import Any, TypeVar

from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


def copy_of(network: Network, memo: dict[int, Any] | None = None) -> Network:
    """Copy a network with all its weights, also where attributes hold results of an earlier forward pass.

    PyTorch refuses to copy a computed tensor (one that carries a graph), such as feature maps that a network
    keeps, or a weight that spectral or weight normalisation computes. The copy has their values without the
    graph.

    Args:
        network: The network; it is left as it was.
        memo: What stands for objects that are not copied, by `id`, as in `copy.deepcopy`; None: nothing.

    Returns:
        The copy, in the same mode.
    """
    known = {} if memo is None else memo
    for tensor in _computed_tensors(network):
        known[id(tensor)] = _value_of(tensor)
    return copy.deepcopy(network, known)


def _value_of(tensor: Tensor) -> Tensor | None:
    """Return a tensor's values; None where it belongs to a vmap or another transform that has ended."""
    try:
        return tensor.detach().clone()
    except RuntimeError:
        return None


def _computed_tensors(root: object) -> Iterator[Tensor]:
    """Yield the tensors with a graph that attributes of an object hold, at any depth."""
    waiting, seen = [root], set[int]()
    while waiting:
        found = waiting.pop()
        if id(found) in seen or isinstance(found, (type, FunctionType, ModuleType)):
            continue
        seen.add(id(found))
        if isinstance(found, Tensor):
            if not found.is_leaf:
                yield found
        elif isinstance(found, Mapping):
            waiting += found.values()
        elif isinstance(found, (list, tuple, set)):
            waiting += found
        elif hasattr(found, "__dict__"):
            waiting += vars(found).values()
