"""Build networks by name and load weights into them, without ever running a checkpoint's code."""

from __future__ import annotations

import difflib
import importlib
import inspect
import json
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from torchdoctor.models.small_resnet import SmallResNet
from torchdoctor.types import InputError

OWN: Mapping[str, Callable[[int], nn.Module]] = {"small_resnet": SmallResNet}


def load_model(name: str, classes: int | Sequence[str], weights: str | Path | None = None) -> nn.Module:
    """Build a classifier with one logit per category, and load weights into it.

    `name`: `torchvision:resnet18`, `timm:resnet18`, an entry of ours (`small_resnet`), or
    `package.module:factory`, called with num_classes. InputError for names, files or shapes that do
    not fit; the message repeats them.
    """
    number = classes if isinstance(classes, int) else len(classes)
    model = _build(name, number)
    if weights is not None:
        load_into(model, load_weights(weights), str(weights))
    return model


def _build(name: str, classes: int) -> nn.Module:
    """Build the network called `name`."""
    source, _, rest = name.partition(":")
    if not rest:
        if name not in OWN:
            near = difflib.get_close_matches(name, list(OWN), n=1)
            raise InputError(
                f"model {name!r} is unknown; expected torchvision:NAME, timm:NAME, package.module:factory or "
                f"one of {', '.join(OWN)}" + (f"; did you mean {near[0]}?" if near else "")
            )
        return OWN[name](classes)
    if source == "torchvision":
        return _torchvision(rest, classes)
    if source == "timm":
        return _timm(rest, classes)
    return _factory(source, rest, classes)


def _torchvision(name: str, classes: int) -> nn.Module:
    """Build one of torchvision's classifiers, without weights."""
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise InputError(_unknown(f"torchvision:{name}", name, known))
    extra = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
    return models.get_model(name, weights=None, num_classes=classes, **extra)


def _timm(name: str, classes: int) -> nn.Module:
    """Build one of timm's classifiers, without weights."""
    import timm

    if not timm.is_model(name):
        raise InputError(_unknown(f"timm:{name}", name, timm.list_models()))
    return timm.create_model(name, pretrained=False, num_classes=classes)


def _unknown(full: str, name: str, known: Sequence[str]) -> str:
    """Say that a name is unknown, with near ones."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"model {full!r} is unknown" + (f"; did you mean {', '.join(near)}?" if near else "")


def _factory(module: str, function: str, classes: int) -> nn.Module:
    """Call the user's own factory."""
    full = f"{module}:{function}"
    try:
        factory = getattr(importlib.import_module(module), function)
    except ImportError as error:
        raise InputError(
            f"model {full!r}: module {module!r} cannot be imported ({error}); expected torchvision:NAME, "
            "timm:NAME or package.module:factory with the package on PYTHONPATH"
        ) from error
    except AttributeError as error:
        raise InputError(f"model {full!r}: {module} has no {function!r}") from error
    model = factory(num_classes=classes) if _takes_classes(factory) else factory()
    if not isinstance(model, nn.Module):
        raise InputError(f"model {full!r} returned {type(model).__name__}; expected a torch.nn.Module")
    return model


def _takes_classes(factory: Callable[..., object]) -> bool:
    """Return whether a factory can be told the number of categories."""
    parameters = inspect.signature(factory).parameters.values()
    return any(one.name == "num_classes" or one.kind is one.VAR_KEYWORD for one in parameters)


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a `.safetensors` file or a `weights_only` state dict; nothing in the file is executed.

    A dict nested under state_dict, model or model_state is opened; `module.` and `_orig_mod.` are cut.
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
    for wrapper in ("state_dict", "model_state_dict", "model_state", "model"):
        if isinstance(found, dict) and isinstance(found.get(wrapper), dict):
            found = found[wrapper]
            break
    if not isinstance(found, dict) or not found or not all(isinstance(v, Tensor) for v in found.values()):
        raise InputError(f"weights {str(path)!r} hold no state dict: expected names with tensors")
    return {_bare(name): value for name, value in found.items()}


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
