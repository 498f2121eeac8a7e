"""Copy a network as users have it: with computed tensors and functions among its attributes."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FunctionType, ModuleType
from typing import Any, TypeVar

import torch
from jaxtyping import Num
from torch import Tensor, nn

from torchdoctor.network.closures import Rebinding, holders
from torchdoctor.network.frozen import frozen_eval
from torchdoctor.network.layouts import hand_on
from torchdoctor.network.outputs import as_logits
from torchdoctor.types import InputError

Network = TypeVar("Network", bound=nn.Module)
OWN = ("_modules", "_parameters", "_buffers")  # attributes of every module that hold its parts
NAMED = 3  # attributes that a message names


def copy_of(network: Network, memo: dict[int, Any] | None = None) -> Network:
    """Copy a network with all its weights, also where attributes hold results of an earlier forward pass.

    PyTorch refuses to copy a computed tensor (one that carries a graph), such as feature maps that a network
    keeps, or a weight that spectral or weight normalisation computes. The copy has their values without the
    graph. Functions among the attributes and hooks whose closures hold parts of the network hold those of the
    copy there.

    Args:
        network: The network; it is left as it was.
        memo: What stands for objects that are not copied, by `id`, as in `copy.deepcopy`; None: nothing.

    Returns:
        The copy, in the same mode.

    Raises:
        InputError: Something among the attributes cannot be copied; the message names it.
    """
    known = {} if memo is None else memo
    for tensor in _computed_tensors(network):
        known[id(tensor)] = _value_of(tensor)
    given = dict(known)
    try:
        copied = copy.deepcopy(network, known)
    except Exception as error:  # an odd attribute can fail in any way
        named = _not_copied(network, given)
        if not named:
            raise
        reason = (str(error).splitlines() or [repr(error)])[0]
        raise InputError(
            f"{type(network).__name__} cannot be copied, and copies are what is tried and treated: "
            f"{', '.join(named[:NAMED])} is in the way ({reason}). Keep it outside "
            "of the network, or leave it out in __getstate__"
        ) from error
    Rebinding(known).everywhere()
    hand_on(network, copied)
    return copied


def _not_copied(network: nn.Module, known: Mapping[int, Any]) -> list[str]:
    """Name the attributes that cannot be copied."""
    parts = {id(part): part for part in (*network.modules(), *network.parameters(), *network.buffers())}
    found = []
    for name, module in network.named_modules():
        for attribute, value in vars(module).items():
            try:
                if attribute not in OWN:
                    copy.deepcopy(value, {**parts, **known})
            except Exception:  # as above
                place = f"{type(module).__name__}{f' ({name})' if name else ''}"
                found.append(f"the attribute {attribute!r} of {place} ({type(value).__name__})")
    return found


def flaw_of_copy(
    network: nn.Module, copied: nn.Module, images: Num[Tensor, "batch channel height width"]
) -> str | None:
    """Say why a copy of a network is none of its own: it fails, or goes on using the original's weights.

    Args:
        network: The network; it is left as it was.
        copied: Its copy, in evaluation mode.
        images: A few images as the network takes them.

    Returns:
        A sentence; None where the copy does as the network does.
    """
    because = holders(copied, network)
    named = f": {', '.join(because[:NAMED])} still means the original" if because else ""
    advice = (
        "Let forward and hooks use the modules of the network that they are given, not one kept elsewhere"
    )
    with torch.no_grad():
        try:
            before = as_logits(copied(images.clone()))
        except Exception as error:  # a network of the user's own can fail in any way
            return (
                f"a copy of the network fails where the network itself runs ({type(error).__name__}: {error})"
                f"{named}. {advice}"
                if because and _runs(network, images)
                else None
            )
        if not bool(torch.isfinite(before).all()):
            return None
        try:
            with _spoiled(network):
                after = as_logits(copied(images.clone()))
        except Exception:  # tensors that cannot be spoiled, or a network that fails by itself
            return None
    if bool(torch.isfinite(after).all()):
        return None
    through = named or ", through a global variable or an object that is not copied"
    return f"a copy of the network goes on using weights of the original{through}. {advice}"


def _runs(network: nn.Module, images: Tensor) -> bool:
    """Return whether a network runs on images."""
    try:
        with frozen_eval(network) as frozen:
            frozen.logits(images)
    except Exception:  # as above
        return False
    return True


@contextmanager
def _spoiled(network: nn.Module) -> Iterator[None]:
    """Let the weights of a network be no numbers inside the block."""
    tensors = [each for each in (*network.parameters(), *network.buffers()) if each.is_floating_point()]
    kept = [each.data for each in tensors]
    try:
        for each in tensors:
            each.data = each.data.new_full((), float("nan")).expand(each.shape)
        yield
    finally:
        for each, data in zip(tensors, kept, strict=True):
            each.data = data


def _value_of(tensor: Tensor) -> Tensor | None:
    """Return a tensor's values; None where it belongs to a vmap or another transform that has ended."""
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return None
    try:
        return tensor.detach().clone()
    except RuntimeError:
        return None


def _computed_tensors(root: object) -> Iterator[Tensor]:
    """Yield the tensors with a graph, or of a vmap, that attributes of an object hold, at any depth."""
    waiting, seen = [root], set[int]()
    while waiting:
        found = waiting.pop()
        if id(found) in seen or isinstance(found, (type, FunctionType, ModuleType)):
            continue
        seen.add(id(found))
        if isinstance(found, Tensor):
            if not found.is_leaf or torch._C._functorch.is_functorch_wrapped_tensor(found):
                yield found
        elif isinstance(found, Mapping):
            waiting += found.values()
        elif isinstance(found, (list, tuple, set)):
            waiting += found
        elif hasattr(found, "__dict__"):
            waiting += vars(found).values()
