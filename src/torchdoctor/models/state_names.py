"""See through the names that tools add to those of a network's tensors."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from torchdoctor.types import InputError

# What compiling, sharding and checkpointing of activations put before names, wherever it stands in them.
INNER_PREFIXES = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_forward_module.")
COUNTERS = ("n_averaged", "total_ops", "total_params")  # what tools add beside the parameters


def without_wrappers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Cut off the prefix of parallel training, and what stands in `INNER_PREFIXES` wherever it stands.

    Args:
        state: The tensors as a file names them.

    Returns:
        The tensors by shorter names; as they were where two would have the same name.
    """
    shorter = {_without_wrappers(name): value for name, value in state.items()}
    return shorter if len(shorter) == len(state) else dict(state)


def _without_wrappers(name: str) -> str:
    """Cut off what wrappers add to a name."""
    for prefix in INNER_PREFIXES:
        name = name.replace(prefix, "")
    while name.startswith("module."):
        name = name.removeprefix("module.")
    return name


def fitted(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], origin: str) -> dict[str, Tensor]:
    """Return a state under the names of the network, where tools only added or left out names.

    A prefix is cut off only where every parameter of the network then has its tensor. Without a prefix,
    nothing but counters of tools is left out; beside a prefix, what stands outside it (the loss, metrics).
    Counters of batch-norms that the file lacks are taken from the network, as PyTorch itself does for them.

    Args:
        state: The tensors as the file names them.
        expected: The tensors as the network names them; their shapes may differ.
        origin: Where the tensors come from, for the error message.

    Returns:
        The tensors by their names in the network where they can be told, else as the file names them.

    Raises:
        InputError: The network is there several times, below different prefixes.
    """
    counters = {name: v for name, v in expected.items() if name.split(".")[-1] == "num_batches_tracked"}
    needed = {name: value for name, value in expected.items() if name not in counters}
    own = _without_counters(state, expected)
    if not needed.keys() <= own.keys():
        plainer = {name.replace(".module.", "."): value for name, value in state.items()}
        one_to_one = len(plainer) == len(state)
        own = (
            _below_a_prefix(state, expected, needed, origin)
            or (_below_a_prefix(plainer, expected, needed, origin) if one_to_one else None)
            or own
        )
    if needed.keys() <= own.keys():
        own = {**{name: value for name, value in counters.items() if name not in own}, **own}
    return own


def _without_counters(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leave out the counters of tools that the network does not have."""
    return {n: v for n, v in state.items() if n in expected or n.split(".")[-1] not in COUNTERS}


def _below_a_prefix(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], needed: Mapping[str, Tensor], origin: str
) -> dict[str, Tensor] | None:
    """Return the tensors below the prefix under which the network is complete; None where it nowhere is."""
    some = min(needed, default="")
    complete = {
        prefix: inner
        for prefix in sorted({name.removesuffix(some) for name in state if _ends_in(name, some)})
        if needed.keys() <= (inner := _below(state, expected, prefix)).keys()
    }
    of_its_shapes = {
        prefix: inner
        for prefix, inner in complete.items()
        if all(inner[name].shape == value.shape for name, value in needed.items())
    }
    found = of_its_shapes or complete
    if len(found) > 1:
        raise InputError(
            f"weights {origin!r} do not fit one network: they hold it {len(found)} times, below "
            f"{', '.join(map(repr, found))}. Save the state dict of the one that is meant alone"
        )
    return next(iter(found.values()), None)


def _ends_in(name: str, some: str) -> bool:
    """Return whether a name is another one, bare or below a prefix."""
    return bool(some) and (name == some or name.endswith("." + some))


def _below(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors below a prefix, by the rest of their names."""
    inner = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    return _without_counters(inner, expected)
