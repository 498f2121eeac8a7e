"""Read weights and put them into a network, without ever running a checkpoint's code."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from torchdoctor.types import InputError

# The keys under which training scripts keep the state dict of the network.
WRAPPER_KEYS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "state_dict_ema")


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a `.safetensors` file or a `weights_only` state dict; nothing in the file is executed.

    A dict nested under the usual keys (`WRAPPER_KEYS`) is opened; `module.` and `_orig_mod.` are cut.
    Refused before anything is allocated: compressed archives, and tensors that claim more than the file.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(f"weights {str(path)!r}: no such file")
    with file.open("rb") as opened:
        start = opened.read(2)
    if file.suffix != ".safetensors" and start not in (b"PK", b"\x80\x02", b"\x80\x04"):
        raise InputError(
            f"weights {str(path)!r} are no checkpoint of torch.save (it starts with {start!r}): expected a "
            ".safetensors file or a state dict"
        )
    _refuse_compressed(file)
    try:
        if file.suffix == ".safetensors":
            found: object = load_file(file)
        else:
            found = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"weights {str(path)!r} hold more than tensors and were not opened: loading them could run code. "
            "Save model.state_dict(), or a .safetensors file"
        ) from error
    except Exception as error:  # a damaged file can make the readers fail in any way
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"weights {str(path)!r} cannot be read ({first}): expected a .safetensors file or a state dict"
        ) from error
    found = _opened(found)
    if not isinstance(found, dict) or not found or not all(isinstance(v, Tensor) for v in found.values()):
        raise InputError(f"weights {str(path)!r} hold no state dict: expected names with tensors")
    _refuse_bombs(found, file)
    return {_bare(name): value for name, value in found.items()}


def _opened(found: object) -> object:
    """Return the state dict nested in a checkpoint: under its usual keys, twice at most."""
    for _ in range(2):
        inner = [found[key] for key in WRAPPER_KEYS if isinstance(found, dict) and key in found]
        nested = next((one for one in inner if isinstance(one, dict)), None)
        if nested is None:
            break
        found = nested
    return found


def _refuse_compressed(file: Path) -> None:
    """Raise InputError for an archive whose entries are compressed: torch.save never does that."""
    if not zipfile.is_zipfile(file):
        return
    with zipfile.ZipFile(file) as archive:
        packed = [one.filename for one in archive.infolist() if one.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise InputError(
            f"weights {str(file)!r} are compressed ({packed[0]}), which torch.save never does, and were not "
            "opened: a small file could fill the memory. Save model.state_dict() again"
        )


def _refuse_bombs(state: Mapping[str, Tensor], file: Path) -> None:
    """Raise InputError for sparse tensors, and for ones whose shape claims more bytes than the file has."""
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


def _bare(name: str) -> str:
    """Cut the prefixes that wrappers add to parameter names."""
    while name.startswith(("module.", "_orig_mod.")):
        name = name.removeprefix("module.").removeprefix("_orig_mod.")
    return name


def load_into(model: nn.Module, state: Mapping[str, Tensor], origin: str) -> None:
    """Load a state dict strictly; InputError lists the first five mismatches with shapes."""
    wanted = model.state_dict()
    wrong = [
        f"{name}: {tuple(state[name].shape)} in the file, {tuple(value.shape)} in the model"
        for name, value in wanted.items()
        if name in state and state[name].shape != value.shape
    ]
    wrong += [f"{name}: missing in the file" for name in wanted if name not in state]
    wrong += [f"{name}: not in the model" for name in state if name not in wanted]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise InputError(
            f"weights {origin!r} do not fit {type(model).__name__}: {'; '.join(wrong[:5])}{more}. A head of "
            "another size means another number of categories: give the data the weights were trained for"
        )
    model.load_state_dict(dict(state))


def weights_card(path: str | Path) -> dict[str, object] | None:
    """Return what `train` wrote beside the weights (model, classes, preprocessing), or None."""
    card = Path(path).with_suffix(".json")
    if not card.is_file():
        return None
    try:
        found = json.loads(card.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{str(card)!r} beside the weights is not JSON ({error})") from error
    if not isinstance(found, dict):
        raise InputError(f"{str(card)!r} beside the weights holds {type(found).__name__}; expected an object")
    return found
