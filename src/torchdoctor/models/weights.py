"""Read weights and put them into a network, without ever running code that a checkpoint contains."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from torchdoctor.models.class_names import names_beside, names_in
from torchdoctor.network.state import load_state
from torchdoctor.types import InputError

# The keys under which training scripts keep the state dict of the network.
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
)

# The prefixes that wrappers put before the names, and the counters that tools add beside the parameters.
WRAPPER_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.")
COUNTERS = ("n_averaged", "total_ops", "total_params")


@dataclass(frozen=True)
class Checkpoint:
    """What a file of weights holds.

    Attributes:
        state: The tensors by their names in the network.
        classes: The names of the categories in the order of the logits, where the file or a configuration
            beside it says them.
        note: Which of several sets of weights was taken; None where there is only one.
    """

    state: dict[str, Tensor]
    classes: tuple[str, ...] | None = None
    note: str | None = None


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """Read the state dict of a network from a file (see `read_checkpoint`).

    Args:
        path: As in `read_checkpoint`.

    Returns:
        The tensors by their names in the network.

    Raises:
        InputError: As in `read_checkpoint`.
    """
    return read_checkpoint(path).state


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a file of weights; no code in the file is executed.

    A state dict that is nested in a checkpoint under a key of `WRAPPER_KEYS` is taken out of it. The prefixes
    `module.` and `_orig_mod.`, which wrappers such as `DataParallel` add, are cut off the names.

    Args:
        path: A `.safetensors` file, or a file written by `torch.save` that holds only tensors.

    Returns:
        The state dict, with the names of the categories and a note.

    Raises:
        InputError: The file is missing, damaged, no checkpoint, or holds more than tensors; or it is
            compressed, or claims larger tensors than it has bytes, both of which could fill the memory.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(f"weights {str(path)!r}: no such file")
    with file.open("rb") as stream:
        start = stream.read(2)
    if file.suffix != ".safetensors" and start not in (b"PK", b"\x80\x02", b"\x80\x04"):
        raise InputError(
            f"weights {str(path)!r} are no checkpoint of torch.save (it starts with {start!r}): expected a "
            ".safetensors file or a state dict"
        )
    _refuse_compressed(file)
    whole = _read_checkpoint(file, path)
    state, taken, left = _innermost(whole)
    if not isinstance(state, dict) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise InputError(f"weights {str(path)!r} hold no state dict: expected names with tensors")
    _refuse_oversized(state, file)
    note = (
        f"weights {str(path)!r} hold several sets of weights: {taken} was taken, not {', '.join(left)}"
        if left
        else None
    )
    state = {_without_wrappers(name): value for name, value in state.items()}
    return Checkpoint(state, names_in(whole) or names_beside(file), note)


def _read_checkpoint(file: Path, path: str | Path) -> object:
    """Read a checkpoint file as tensors only; `path` is how the user called it."""
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"weights {str(path)!r} hold more than tensors and were not opened: loading them could run code. "
            "Save model.state_dict(), or a .safetensors file"
        ) from error
    except Exception as error:  # a damaged file can make the readers fail in any way
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"weights {str(path)!r} cannot be read ({reason}): expected a .safetensors file or a state dict"
        ) from error


def _innermost(checkpoint: object) -> tuple[object, str, list[str]]:
    """Return the state dict nested in a checkpoint under its usual keys, at most two levels deep.

    And the key that it was taken from, and the keys of other sets of weights beside it.
    """
    taken, left = "", list[str]()
    for _ in range(2):
        if not isinstance(checkpoint, dict):
            break
        keys = [key for key in WRAPPER_KEYS if isinstance(checkpoint.get(key), dict)]
        if not keys:
            break
        taken, left = keys[0], left + keys[1:]
        checkpoint = checkpoint[taken]
    return checkpoint, taken, left


def _refuse_compressed(file: Path) -> None:
    """Raise InputError for an archive whose entries are compressed: torch.save never does that."""
    if not zipfile.is_zipfile(file):
        return
    with zipfile.ZipFile(file) as archive:
        compressed = [
            entry.filename for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED
        ]
    if compressed:
        raise InputError(
            f"weights {str(file)!r} are compressed ({compressed[0]}), which torch.save never does, and were "
            "not opened: a small file could fill the memory. Save model.state_dict() again"
        )


def _refuse_oversized(state: Mapping[str, Tensor], file: Path) -> None:
    """Raise InputError for sparse tensors, and for shapes that claim more bytes than the file has."""
    size = file.stat().st_size
    for name, value in state.items():
        if value.layout != torch.strided or value.is_quantized:
            kind = value.dtype if value.is_quantized else value.layout
            raise InputError(f"weights {str(file)!r}: {name} is {kind}; expected dense float tensors")
        if value.numel() * value.element_size() > size:
            raise InputError(
                f"weights {str(file)!r}: {name} claims the shape {tuple(value.shape)}, more than the "
                f"{size:,} bytes of the file; expected a state dict as torch.save writes it"
            )


def _without_wrappers(name: str) -> str:
    """Cut off the prefix of parallel training, and the one of compiling wherever it stands."""
    name = name.replace("_orig_mod.", "")
    while name.startswith("module."):
        name = name.removeprefix("module.")
    return name


def fitted(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state under the names of the network, where tools only added or left out names.

    A prefix is cut off only where every parameter of the network then has its tensor. Without a prefix,
    nothing but counters of tools is left out; beside a prefix, what stands outside it (the loss, metrics).
    Counters of batch-norms that the file lacks are taken from the network, as PyTorch itself does for them.

    Args:
        state: The tensors as the file names them.
        expected: The tensors as the network names them; their shapes may differ.

    Returns:
        The tensors by their names in the network where they can be told, else as the file names them.
    """
    counters = {name: v for name, v in expected.items() if name.split(".")[-1] == "num_batches_tracked"}
    needed = expected.keys() - counters.keys()
    own = {n: v for n, v in state.items() if n in expected or n.split(".")[-1] not in COUNTERS}
    if not needed <= own.keys():
        for prefix in _prefixes():
            inner = {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}
            inner = {n: v for n, v in inner.items() if n in expected or n.split(".")[-1] not in COUNTERS}
            if needed and needed <= inner.keys():
                own = inner
                break
        else:
            own = _below_another_prefix(state, needed) or own
    if needed <= own.keys():
        own = {**{name: value for name, value in counters.items() if name not in own}, **own}
    return own


def _below_another_prefix(state: Mapping[str, Tensor], needed: Set[str]) -> dict[str, Tensor] | None:
    """Return the tensors below the one prefix under which the network is complete; None where none is."""
    some = next(iter(needed), "")
    complete = []
    for prefix in sorted({name.removesuffix(some) for name in state if some and name.endswith("." + some)}):
        inner = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        if needed <= inner.keys():
            complete.append({name: v for name, v in inner.items() if name.split(".")[-1] not in COUNTERS})
    return complete[0] if len(complete) == 1 else None


def _prefixes() -> list[str]:
    """Return the prefixes of wrappers, alone and one inside another."""
    return [*WRAPPER_PREFIXES, *(outer + inner for outer in WRAPPER_PREFIXES for inner in WRAPPER_PREFIXES)]


def load_into(model: nn.Module, state: Mapping[str, Tensor], origin: str) -> None:
    """Load a state dict into a network; every name and shape must match.

    Names that tools add are seen through: prefixes of wrappers with what stands beside them, counters, and
    the batch-norms of older files without their counter of batches.

    Args:
        model: The network; it is changed in place.
        state: The tensors by name.
        origin: Where the tensors come from, for the error message.

    Raises:
        InputError: Names or shapes differ; the message lists the first five differences.
    """
    expected = model.state_dict()
    state = fitted(state, expected)
    wrong = [
        f"{name}: {tuple(state[name].shape)} in the file, {tuple(value.shape)} in the model"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    wrong += [f"{name}: missing in the file" for name in expected if name not in state]
    wrong += [f"{name}: not in the model" for name in state if name not in expected]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        hint = (
            "A head of another size means another number of categories: give the data the weights were "
            "trained for"
            if any("in the model" in line and " in the file, " in line for line in wrong)
            else "Save the state dict of this network alone, under the names it has here"
        )
        raise InputError(
            f"weights {origin!r} do not fit {type(model).__name__}: {'; '.join(wrong[:5])}{more}. {hint}"
        )
    load_state(model, state)


def weights_card(path: str | Path) -> dict[str, object] | None:
    """Read the description that the command `train` writes beside a file of weights.

    Args:
        path: The file of weights; its description has the same name with the ending `.json`.

    Returns:
        The description (model, categories, preprocessing), or None where there is none.

    Raises:
        InputError: The description is no JSON object.
    """
    card_file = Path(path).with_suffix(".json")
    if not card_file.is_file():
        return None
    try:
        card = json.loads(card_file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{str(card_file)!r} beside the weights is not JSON ({error})") from error
    if not isinstance(card, dict):
        raise InputError(
            f"{str(card_file)!r} beside the weights holds {type(card).__name__}; expected an object"
        )
    return card
