"""Build a network by name: from the catalogue, torchvision, timm, the Hugging Face hub, or user code."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from torchdoctor.models import hugging_face
from torchdoctor.models.catalogue import MODELS, ModelEntry
from torchdoctor.models.packaged import from_package
from torchdoctor.models.pretrained import PRETRAINED, load_pretrained
from torchdoctor.models.stems import set_input_channels
from torchdoctor.models.weights import load_into, load_weights
from torchdoctor.network.outputs import unwrap
from torchdoctor.types import InputError, first_line

EXPECTED = (
    "torchvision:NAME, timm:NAME, hf-hub:OWNER/NAME, local-dir:PATH, transformers:NAME_OR_FOLDER, "
    "package.module:factory"
)
# Not the methods of tensors: `trunc_normal_` calls `Tensor.normal_` until all values lie within its bounds.
DRAWING = (nn.init.kaiming_normal_, nn.init.kaiming_uniform_, nn.init.normal_, nn.init.uniform_)
HALF = (torch.float16, torch.bfloat16)
TIMM_SOURCES = ("timm", "hf-hub", "local-dir")


def load_model(
    name: str,
    classes: int | Sequence[str],
    weights: str | Path | None = None,
    *,
    channels: int = 3,
    image_size: int | None = None,
) -> nn.Module:
    """Build an image classifier and, if asked for, load weights into it.

    Args:
        name: Which network: an entry of the catalogue (`vgg16`), `torchvision:resnet18`, `timm:resnet18`,
            `hf-hub:timm/resnet18.a1_in1k`, `local-dir:PATH` (a folder that timm saved),
            `transformers:OWNER/NAME` or `transformers:FOLDER` (a classifier of transformers), or
            `package.module:function`. The function is yours: it is called with `num_classes` (and
            `in_chans` if it takes that) and returns the network.
        classes: The number of categories, or their names. The network gives a logit for each.
        weights: A file of weights, or `pretrained` for the published weights. If the published head
            has another number of categories, the network's head keeps its new random weights. None:
            all weights are new.
        channels: The number of channels of the images.
        image_size: The side of the images in pixels. Networks of the catalogue adapt their first layers to
            it; None is the size that the network was designed for.

    Returns:
        The network, on the CPU.

    Raises:
        InputError: The name is unknown, a file cannot be read, or shapes do not fit; the message says
            which.

    Example:
        >>> model = load_model("small_resnet", classes=10, channels=1, image_size=28)
        >>> model.fc
        Linear(in_features=128, out_features=10, bias=True)
    """
    number = classes if isinstance(classes, int) else len(classes)
    if number < 1 or channels < 1:
        raise InputError(f"model {name!r}: {number} categories and {channels} channels; expected 1 or more")
    pretrained = weights == PRETRAINED
    built = _build(name, number, channels, image_size, pretrained=pretrained)
    if image_size is not None and any(map(is_lazy, (*built.parameters(), *built.buffers()))):
        _fill_lazy(built, name, channels, image_size)
    model = unwrap(built)
    if weights is not None and not pretrained:
        load_into(model, load_weights(weights), str(weights))
    return model


def _fill_lazy(model: nn.Module, name: str, channels: int, image_size: int) -> None:
    """Let lazy layers make their weights, by an image of the size that the network is to take."""
    modes = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, channels, image_size, image_size))
    except Exception as error:  # a network of the user's own can fail in any way
        raise InputError(
            f"model {name!r} has lazy layers, and fails on an image of {channels} x {image_size} x "
            f"{image_size}, from which they would get their shapes ({_named(error)})"
        ) from error
    for module, mode in modes.items():
        module.training = mode


class WithoutDrawing(TorchFunctionMode):
    """Leave out the drawing of random weights inside the block: weights from a file replace all of them.

    Use it for networks of the catalogue only. A network of the user's own may draw what no file holds.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Return the tensor as it is where it would be filled with random numbers.

        Args:
            func: The function of torch that is called.
            types: The types of the tensors among its arguments.
            args: Its positional arguments.
            kwargs: Its named arguments.

        Returns:
            The tensor to be filled, or what the function returns.
        """
        del types
        if func in DRAWING:
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def _entry_named(name: str) -> ModelEntry:
    """Return the entry of the catalogue with this name; InputError suggests similar names."""
    if name in MODELS:
        return MODELS[name]
    near = difflib.get_close_matches(name, list(MODELS), n=3, cutoff=0.5)
    raise InputError(
        f"model {name!r} is unknown; expected {EXPECTED} or one of {', '.join(MODELS)}"
        + (f"; did you mean {' or '.join(near)}?" if near else "")
    )


def _build(name: str, classes: int, channels: int, image_size: int | None, *, pretrained: bool) -> nn.Module:
    """Build the network called `name`."""
    source, _, rest = name.partition(":")
    if not rest:
        entry = _entry_named(name)
        model = entry.build(classes, channels, image_size)
        if pretrained:
            load_pretrained(model, entry.source, channels)
        return model
    if source == "torchvision":
        model = _torchvision(rest, classes)
        set_input_channels(model, channels)
        if pretrained:
            load_pretrained(model, name, channels)
        return model
    if source in TIMM_SOURCES:
        return _timm(name, classes, channels, pretrained=pretrained)
    if source == hugging_face.SOURCE:
        return hugging_face.build(name, classes, channels, pretrained=pretrained)
    if pretrained:
        raise InputError(
            f"--weights {PRETRAINED}: {name!r} is a factory of yours; let it load its own weights"
        )
    return _factory(source, rest, classes, channels)


def _torchvision(name: str, classes: int) -> nn.Module:
    """Build a classifier of torchvision with new weights."""
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise InputError(_unknown(f"torchvision:{name}", name, known))
    options = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
    return models.get_model(name, weights=None, num_classes=classes, **options)


def _timm(name: str, classes: int, channels: int, *, pretrained: bool) -> nn.Module:
    """Build a classifier through timm: by name in timm or on the hub, or from a folder with config.json."""
    import timm

    source, _, rest = name.partition(":")
    if source == "timm" and not timm.is_model(rest):
        raise InputError(_unknown(name, rest, timm.list_models()))
    if source == "local-dir" and not (Path(rest) / "config.json").is_file():
        raise InputError(f"model {name!r}: no config.json in {rest!r}; expected a folder that timm saved")
    try:
        packaged = from_package(rest) if source == "timm" and pretrained else {}
        return timm.create_model(
            rest if source == "timm" else name,
            pretrained=pretrained,
            num_classes=classes,
            in_chans=channels,
            **packaged,
        )
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        failed = "its pretrained weights" if pretrained else "it"
        raise InputError(f"model {name!r}: timm could not load {failed} ({first_line(error)})") from error


def _unknown(full: str, name: str, known: Sequence[str]) -> str:
    """Return the message that a name is unknown, with up to three similar names."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"model {full!r} is unknown" + (f"; did you mean {', '.join(near)}?" if near else "")


def _factory(module: str, function: str, classes: int, channels: int) -> nn.Module:
    """Call the user's own factory, with `num_classes` and `in_chans` where it takes them."""
    full = f"{module}:{function}"
    factory = _imported(full, module, function)
    arguments = {"num_classes": classes, "in_chans": channels}
    if channels == 3 and not _has_parameter(factory, "in_chans"):
        del arguments["in_chans"]
    try:
        model = factory(**{name: value for name, value in arguments.items() if _accepts(factory, name)})
    except InputError:
        raise
    except SystemExit as error:
        raise InputError(f"model {full!r}: the factory ended the program {_left(error)}") from error
    except Exception as error:  # a factory of the user's own can fail in any way
        raise InputError(
            f"model {full!r}: the factory raised {_named(error)}; it is called with num_classes (and "
            "in_chans if it takes that), and must return the network"
        ) from error
    if not isinstance(model, nn.Module):
        raise InputError(f"model {full!r} returned {type(model).__name__}; expected a torch.nn.Module")
    odd = next(
        (p.dtype for p in model.parameters() if p.is_floating_point() and p.dtype != torch.float32), None
    )
    if odd is not None:
        precision = "half" if odd in HALF else "another"
        raise InputError(
            f"model {full!r} is in {precision} precision ({odd}); expected float32: leave .half(), .double() "
            "or .to(...) out"
        )
    return model


def _imported(full: str, module: str, function: str) -> Callable[..., Any]:
    """Return the user's factory; InputError says whether it is missing or its module fails."""
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"model {full!r}: module {module!r} cannot be imported ({error}); expected {EXPECTED}, with the "
            "package on PYTHONPATH"
        ) from error
    except SystemExit as error:
        raise InputError(
            f"model {full!r}: module {module!r} ended the program on import {_left(error)}; put what it does "
            "as a script, such as reading a command line, below if __name__ == '__main__'"
        ) from error
    except Exception as error:  # a module of the user's own can fail in any way
        raise InputError(f"model {full!r}: module {module!r} fails on import: {_named(error)}") from error
    if not callable(factory := getattr(found, function, None)):
        missing = "has no" if factory is None else "holds no function or class"
        raise InputError(f"model {full!r}: {module} {missing} {function!r}")
    return factory


def _left(error: SystemExit) -> str:
    """Return how code left the program: with a number or a last word."""
    return f"(sys.exit({error.code!r}))"


def _named(error: BaseException) -> str:
    """Return the kind of an error and the first line of its message."""
    return f"{type(error).__name__}: {first_line(error)}"


def _has_parameter(factory: Callable[..., object], name: str) -> bool:
    """Return whether a factory has a parameter of that name."""
    return name in inspect.signature(factory).parameters


def _accepts(factory: Callable[..., object], name: str) -> bool:
    """Return whether a factory accepts a keyword argument of that name."""
    parameters = inspect.signature(factory).parameters.values()
    return _has_parameter(factory, name) or any(
        parameter.kind is parameter.VAR_KEYWORD for parameter in parameters
    )
