"""Put the weights of another classifier, or of a network without a head, before a new head."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from torchdoctor.models.state_names import fitted
from torchdoctor.network.state import load_state
from torchdoctor.types import InputError


def load_backbone(model: nn.Module, state: Mapping[str, Tensor], categories: int, origin: str) -> str:
    """Load everything but the head of a network; the head keeps its new weights.

    The head is the last layer that gives a number for each category, and any other such layer that the file
    has in another size or not at all. What the file has beside the network, such as its own head under
    another name, is left out.

    Args:
        model: The network with new weights; it is changed in place.
        state: The tensors by name.
        categories: The number of categories.
        origin: Where the tensors come from, for messages.

    Returns:
        A sentence on what is new and what was left out.

    Raises:
        InputError: A tensor other than the head's is missing or has another shape, or the network gives its
            logits by no linear layer or convolution.
    """
    expected = model.state_dict()
    last = [name for name, module in model.named_modules() if _gives(module, categories)]
    if not last:
        raise InputError(
            f"--new-head: {type(model).__name__} has no linear layer or convolution with {categories} "
            "outputs: its head cannot be told from the rest"
        )
    heads, own = {last[-1]}, dict[str, Tensor]()
    for _ in last:
        body = {name: value for name, value in expected.items() if name.rpartition(".")[0] not in heads}
        own = fitted(state, body, origin)
        others = {name for name in last if any(_differs(own, body, name, part) for part in PARTS)} - heads
        if not others:
            break
        heads |= others
    wrong = [
        f"{name}: {tuple(own[name].shape)} in the file, {tuple(value.shape)} in the model"
        if name in own
        else f"{name}: missing in the file"
        for name, value in body.items()
        if name not in own or own[name].shape != value.shape
    ]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise InputError(
            f"weights {origin!r} do not fit {type(model).__name__} behind a new head: {'; '.join(wrong[:5])}"
            f"{more}. Give the model that these weights are of"
        )
    load_state(model, {name: own[name] for name in body}, strict=False)
    left = sorted(name for name in own if name not in body)
    beside = (
        f"; left out of the file: {', '.join(left[:4])}{', ...' if len(left) > 4 else ''}" if left else ""
    )
    return f"the head {', '.join(sorted(heads))} starts from new weights, the rest from {origin!r}{beside}"


PARTS = ("weight", "bias")


def _gives(module: nn.Module, number: int) -> bool:
    """Whether a layer gives so many outputs."""
    if isinstance(module, nn.Linear):
        return module.out_features == number
    return isinstance(module, nn.Conv2d) and module.out_channels == number


def _differs(own: Mapping[str, Tensor], body: Mapping[str, Tensor], layer: str, part: str) -> bool:
    """Whether the file lacks a part of a layer, or has it for another number of categories."""
    name = f"{layer}.{part}"
    if name not in body:
        return False
    return name not in own or (
        own[name].shape != body[name].shape and own[name].shape[1:] == body[name].shape[1:]
    )
