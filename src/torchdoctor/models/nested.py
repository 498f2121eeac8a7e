"""Find the state dict of a network among the other things that a checkpoint holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from torchdoctor.types import InputError

# The keys under which training scripts keep the state dict of the network, the likeliest first.
WRAPPER_KEYS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
    "network",
    "state_dict_ema",
    "model_ema",
    "ema",
    "ema_state_dict",
    "net_state_dict",
    "model_weights",
    "weights",
    "module",
    "params",
    "params_ema",
)
DEEPEST = 3  # dictionaries in one another, of which the innermost is the state dict
NAMED = 8  # keys that a message names


@dataclass(frozen=True)
class Found:
    """The state dict in a checkpoint.

    Attributes:
        state: The tensors by their names.
        taken: The key that it was taken from; empty where the file is the state dict.
        left: The keys of other sets of weights beside it.
    """

    state: Mapping[str, Tensor]
    taken: str = ""
    left: tuple[str, ...] = ()


def state_in(checkpoint: object, origin: str) -> Found:
    """Find the state dict, bare or nested.

    It is taken from a key of `WRAPPER_KEYS`, else from the only key that holds one.

    Args:
        checkpoint: What was read from a file.
        origin: How the user called the file, for the message.

    Returns:
        The state dict, and what lies beside it.

    Raises:
        InputError: There is none, or several are there under keys that do not say which is the network.
    """
    taken, left, found = "", tuple[str, ...](), checkpoint
    for _ in range(DEEPEST):
        if not isinstance(found, dict) or _all_tensors(found):
            break
        named = [key for key in WRAPPER_KEYS if isinstance(found.get(key), dict)]
        usual = [key for key in named if _holds_weights(found[key])] or named
        holding = [str(key) for key, value in found.items() if _holds_weights(value)]
        if not usual and len(holding) > 1:
            raise InputError(
                f"weights {origin!r} hold several sets of weights ({_few(holding)}) under keys that do not "
                "say which is the network: save one of them alone, or under 'state_dict'"
            )
        keys = usual or holding
        if not keys:
            break
        taken, left = keys[0], (*left, *keys[1:])
        left += tuple(key for key in holding if key not in keys)
        found = next(value for key, value in found.items() if str(key) == taken)
    if not isinstance(found, dict) or not found or not _all_tensors(found):
        raise InputError(
            f"weights {origin!r} hold no state dict: expected names with tensors{_what(found, taken)}. Save "
            "model.state_dict()"
        )
    return Found(found, taken, left)


def _all_tensors(found: Mapping[object, object]) -> bool:
    """Return whether a dictionary holds nothing but tensors."""
    return all(isinstance(value, Tensor) for value in found.values())


def _holds_weights(found: object, depth: int = DEEPEST) -> bool:
    """Return whether something is a state dict, with a tensor of two or more sides, or holds one."""
    if not isinstance(found, dict) or not found or not all(isinstance(key, str) for key in found):
        return False
    if _all_tensors(found):
        return any(value.ndim > 1 for value in found.values())
    return depth > 1 and any(_holds_weights(value, depth - 1) for value in found.values())


def _what(found: object, taken: str) -> str:
    """Say what was found where a state dict was expected."""
    place = f" under {taken!r}" if taken else ""
    if isinstance(found, dict):
        if not found:
            return f", found nothing{place}"
        odd = [f"{key} ({type(v).__name__})" for key, v in found.items() if not isinstance(v, Tensor)]
        return f", found{place} {_few(odd)}"
    return f", found{place} a {type(found).__name__}"


def _few(names: list[str]) -> str:
    """Name the first few."""
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
