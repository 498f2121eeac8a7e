"""Read weights and put them into a network, without ever running code that a checkpoint contains."""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from torchdoctor.models.class_names import names_beside, names_in
from torchdoctor.models.nested import state_in
from torchdoctor.models.state_names import fitted, without_wrappers
from torchdoctor.network.state import load_state
from torchdoctor.types import InputError

# Files that archives have which hold a program instead of tensors.
PROGRAMS = re.compile(r"[^/]*/(code/|serialized_exported_program|models/[^/]*\.json)")


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

    A state dict that is nested in a checkpoint is taken out of it (see `nested.state_in`). Prefixes such as
    `module.` and `_orig_mod.`, which wrappers such as `DataParallel` add, are cut off the names.

    Args:
        path: A `.safetensors` file, or a file written by `torch.save` that holds only tensors.

    Returns:
        The state dict, with the names of the categories and a note.

    Raises:
        InputError: The file is missing, damaged, no checkpoint, or holds more than tensors; or it is
            compressed, or claims larger tensors than it has bytes, both of which could fill the memory; or it
            is a program.
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
    _refuse_programs_and_compressed(file)
    whole = _read_checkpoint(file, path)
    found = state_in(whole, str(path))
    _refuse_oversized(found.state, file)
    several = f"weights {str(path)!r} hold several sets of weights: {found.taken} was taken, not "
    note = several + ", ".join(found.left) if found.left else None
    return Checkpoint(without_wrappers(found.state), names_in(whole) or names_beside(file), note)


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


def _refuse_programs_and_compressed(file: Path) -> None:
    """Raise InputError for programs, and for an archive with compressed entries: torch.save makes none."""
    if not zipfile.is_zipfile(file):
        return
    with zipfile.ZipFile(file) as archive:
        if any(PROGRAMS.match(entry.filename) for entry in archive.infolist()):
            raise InputError(
                f"weights {str(file)!r} are a program (TorchScript or torch.export) and were not opened: "
                "running it could do anything. Load it where you trust it, and save its state_dict()"
            )
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


def load_into(model: nn.Module, state: Mapping[str, Tensor], origin: str) -> None:
    """Load a state dict into a network; every name and shape must match.

    Names that tools add are seen through: prefixes of wrappers with what stands beside them, counters, and
    the batch-norms of older files without their counter of batches.

    Args:
        model: The network; it is changed in place.
        state: The tensors by name.
        origin: Where the tensors come from, for the error message.

    Raises:
        InputError: Names or shapes differ, and the message lists the first five differences; or the network
            is there several times.
    """
    expected = model.state_dict()
    state = fitted(state, expected, origin)
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
