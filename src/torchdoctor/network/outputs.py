"""Take a network as users have it: cut off wrappers, refuse what has no derivatives, read its outputs."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from torchdoctor.display.counts import count_of
from torchdoctor.types import InputError

LOGIT_NAMES = ("logits", "output", "out", "scores", "predictions", "pred")
AUXILIARY_PREFIX = "aux"
PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)
SHARDING = ("FullyShardedDataParallel", "FSDPModule")  # classes known by name: importing them takes long


def unwrap(model: nn.Module) -> nn.Module:
    """Return the plain network inside torch.compile, DataParallel and DistributedDataParallel.

    Args:
        model: A network, wrapped or not.

    Returns:
        The network without its wrappers; its parameters are the same objects.

    Raises:
        InputError: `model` is no module, or it is scripted, traced, quantised, without values (meta device),
            made in inference mode or sharded over processes: it could not be differentiated twice or trained.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"the model is {type(model).__name__}; expected a torch.nn.Module")
    while _is_wrapper(model):
        inner: object = model.module if isinstance(model, PARALLEL) else model._orig_mod
        assert isinstance(inner, nn.Module)
        model = inner
    if model._compiled_call_impl is not None:  # compiled in place by model.compile()
        model = copy.copy(model)
        model._compiled_call_impl = None
    _refuse_unusable(model)
    return model


def _is_wrapper(module: nn.Module) -> bool:
    """Return whether a module only passes on to another; torch.compile's is known by name, for speed."""
    return isinstance(module, PARALLEL) or type(module).__name__ == "OptimizedModule"


def _refuse_unusable(model: nn.Module) -> None:
    """Raise InputError for networks that hooks or derivatives cannot reach into."""
    _refuse_sharded(model)
    for name, module in model.named_modules():
        place = f"{name!r} ({type(module).__name__})" if name else type(module).__name__
        if isinstance(module, torch.jit.ScriptModule):
            raise InputError(
                f"the model is scripted or traced at {place}: its layers cannot be reached. Give the Python "
                "model that it was made from, with its state dict"
            )
        kind = type(module).__module__
        if "quantized" in kind.split(".") or kind.startswith(("bitsandbytes", "torchao")):
            raise InputError(
                f"the model is quantised at {place}: it has no derivatives. Give the float model"
            )
        if name and _is_wrapper(module):
            raise InputError(
                f"the layer {place} is wrapped inside the model: its parts would be renamed. Give the model "
                "without the wrapper"
            )
    for name, value in model.state_dict(keep_vars=True).items():
        if not isinstance(value, Tensor):
            continue
        if is_lazy(value):
            raise InputError(
                f"the model has no weights yet: {name} belongs to a lazy layer. Run the model once on images "
                "of your size, as in model(torch.zeros(1, 3, 64, 64)), where it is built"
            )
        if value.is_quantized or type(value).__module__.startswith("torchao"):
            raise InputError(
                f"the model is quantised: {name} is {value.dtype}, without derivatives. Give the float model"
            )
        if value.is_meta:
            raise InputError(
                f"the model has no values: {name} lies on the meta device. Load its weights first"
            )
        if value.is_inference():
            raise InputError(
                f"{name} was made under torch.inference_mode and cannot be differentiated: build and load "
                "the model outside of it"
            )


def _refuse_sharded(model: nn.Module) -> None:
    """Raise InputError for networks of whose parameters each process holds a part."""
    kinds = {kind.__name__ for module in model.modules() for kind in type(module).__mro__}
    reasons = {
        "FSDP": kinds & set(SHARDING),
        "DTensor": {name for name, value in model.named_parameters() if type(value).__name__ == "DTensor"},
        "DeepSpeed ZeRO-3": {name for name, value in model.named_parameters() if hasattr(value, "ds_id")},
    }
    for way, found in reasons.items():
        if found:
            raise InputError(
                f"the model's parameters are sharded over processes ({way}: {min(found)}), and evidence "
                "needs all of them in one place: load the whole state dict into the plain model. Several "
                "launched processes share the images instead"
            )


def as_logits(output: object) -> Float[Tensor, "batch category"]:
    """Return the logits out of what a forward pass returned.

    Args:
        output: A tensor; a dict, dataclass or named tuple with a field such as `logits`; or a tuple or list
            whose first matrix they are. A vector of floats holds one logit of each image; a single number is
            the vector of one image, as `squeeze` leaves it.

    Returns:
        The logits. A single logit z for two categories becomes (-z/2, z/2), whose softmax is the sigmoid
        of z.

    Raises:
        InputError: There are none in it; the message says what the network returned instead.
    """
    if isinstance(output, Tensor):
        logits = output.reshape(-1, 1) if _is_score(output) else output
        if logits.ndim == 2:
            # One logit z for two categories: softmax(-z/2, z/2) is sigmoid(z), and neither score is constant.
            return logits if logits.shape[1] != 1 else torch.cat([-logits / 2, logits / 2], 1)
        hint = ""
        if output.ndim < 2:
            hint = f" of {output.dtype}, which are no logits: return the scores, not the category they choose"
        raise InputError(
            f"the model returned shape {tuple(output.shape)}{hint}; expected one tensor of logits, shape "
            "[batch, category], or [batch] where one logit tells two categories apart"
        )
    named = _fields(output)
    for name in LOGIT_NAMES:
        if isinstance(named.get(name), Tensor):
            return as_logits(named[name])
    matrices = {name: part for name, part in named.items() if isinstance(part, Tensor) and part.ndim == 2}
    main = [matrix for name, matrix in matrices.items() if not name.startswith(AUXILIARY_PREFIX)]
    if main and (len(main) == 1 or isinstance(output, tuple | list)):
        return as_logits(main[0])
    scores = [part for part in named.values() if isinstance(part, Tensor) and part.ndim and _is_score(part)]
    if len(scores) == 1 and not matrices:
        return as_logits(scores[0])
    content = ", ".join(f"{name}: {_described(part)}" for name, part in named.items()) or "nothing in it"
    raise InputError(
        f"the model returned {type(output).__name__} ({content}); expected logits, shape [batch, category], "
        f"alone, first in a tuple, or in a field called {' or '.join(LOGIT_NAMES[:2])}"
    )


def _is_score(output: Tensor) -> bool:
    """Whether an output holds one logit of each image, without an axis of categories."""
    return output.ndim < 2 and output.is_floating_point()


def one_row_each(logits: Float[Tensor, "row category"], images: int) -> None:
    """Refuse logits that are not one row for each image.

    Args:
        logits: The logits.
        images: How many images the network was given.

    Raises:
        InputError: The numbers differ.
    """
    if len(logits) == images:
        return
    squeezed = images == 1 and len(logits) > 1
    remedy = (
        "does forward end in squeeze(), which takes the axis of a single image away? Write squeeze(1), or "
        "leave it out"
        if squeezed
        else "does forward join images, or return something else than logits?"
    )
    raise InputError(
        f"{count_of(images, 'image')} gave {count_of(len(logits), 'row')} of logits; expected one row per "
        f"image: {remedy}"
    )


def auxiliary_logits(output: object) -> tuple[Float[Tensor, "batch category"], ...]:
    """Return the logits of auxiliary heads.

    Args:
        output: What a forward pass returned.

    Returns:
        The matrices in it whose field's name begins with `aux`, each [batch, category]; often none.
    """
    if isinstance(output, Tensor):
        return ()
    named = _fields(output)
    return tuple(
        part
        for name, part in named.items()
        if name.startswith(AUXILIARY_PREFIX) and isinstance(part, Tensor) and part.ndim == 2
    )


def _fields(output: object) -> Mapping[str, object]:
    """Return the parts of an output by name, or by position where they have none."""
    if isinstance(output, Mapping):
        return {str(name): value for name, value in output.items()}
    if hasattr(output, "_asdict"):
        return dict(output._asdict())
    if isinstance(output, tuple | list):
        return {str(place): value for place, value in enumerate(output)}
    if dataclasses.is_dataclass(output):
        return {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
    return {name: value for name in LOGIT_NAMES if (value := getattr(output, name, None)) is not None}


def _described(value: object) -> str:
    """Name a part of an output by its shape or type."""
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def same_for_all(model: nn.Module, images: Num[Tensor, "batch channel height width"]) -> bool:
    """Tell whether a network gives an image and the image turned upside down exactly the same logits.

    Args:
        model: The network in evaluation mode; it is left as it was.
        images: Images as the network takes them.

    Returns:
        True for a network that does not look at its images, such as one whose last layer is 0.
    """
    with torch.no_grad():
        return torch.equal(as_logits(model(images)), as_logits(model(images.flip(-2))))
