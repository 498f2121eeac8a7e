"""Read or change layers' maps on the way through a network, whatever the shape of their outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torchdoctor.network.frozen import frozen_eval
from torchdoctor.network.hooks import Hook, find_layer, hooked
from torchdoctor.network.layout_probe import find_out
from torchdoctor.network.layouts import Layout, held_in, is_known, put_in, remembered
from torchdoctor.network.outputs import as_logits
from torchdoctor.types import InputError

Tap = Callable[[Tensor], Tensor]


def find_layouts(model: nn.Module, images: Tensor, layers: Sequence[str]) -> None:
    """Find out how the outputs of layers are read as maps; a layer that is known already costs nothing.

    Args:
        model: The network; it is left as it was.
        images: Normalised images [batch, channel, height, width]; only the first is run.
        layers: Names of layers.

    Raises:
        InputError: A layer does not exist.
    """
    size = (images.shape[-2], images.shape[-1])
    unknown = [name for name in layers if not is_known(find_layer(model, name), size)]
    if unknown:
        with frozen_eval(model):
            find_out(model, images[:1], unknown)


def layout_of(module: nn.Module, images: Tensor, output: Tensor, name: str = "") -> Layout:
    """Return how a layer's output is read as a map.

    Args:
        module: The layer.
        images: The network's images [batch, channel, height, width]; their size says which map is meant.
        output: The layer's output, or its shape's twin.
        name: The layer's name, for the message.

    Returns:
        The layout: the one that was found out, else a plain one for 4 dimensions.

    Raises:
        InputError: The output has no places, or not one row per image.
    """
    layout = remembered(module, (images.shape[-2], images.shape[-1]))
    if layout is not None and (layout.is_plain or tuple(output.shape[1:]) == layout.shape):
        return layout if not layout.is_plain else Layout((output.shape[2], output.shape[3]))
    if output.ndim == 4:
        return Layout((output.shape[2], output.shape[3]))
    raise InputError(_no_map(name, f"shape {tuple(output.shape)}"))


def _no_map(name: str, actual: str) -> str:
    """Say that a layer gives no map."""
    return (
        f"layer {name!r} gives {actual}; expected a 4-dimensional map [batch, channel, height, width], or "
        "tokens [batch, token, channel] that stand for places of the image: choose a convolution or a block "
        "of layers"
    )


@contextmanager
def tapped(model: nn.Module, images: Tensor, taps: Mapping[str, Tap]) -> Iterator[dict[str, int]]:
    """Replace the map m of each named layer by `taps[name](m)` inside the block.

    Args:
        model: The network.
        images: The images that it is about to be run on [batch, channel, height, width], or others of their
            size.
        taps: By layer name, a function from the layer's map [batch, channel, height, width] to the map to go
            on with. It must return a fresh tensor where it stores the map: an activation behind the layer
            that works in place would overwrite what was stored. Where tokens without a place on the image
            belong to the layer, its map is one row (see `Layout`).

    Yields:
        How often each layer has been called so far, by name.

    Raises:
        InputError: A layer does not exist, or (during a forward pass) its output is no map.
    """
    calls = dict.fromkeys(taps, 0)
    find_layouts(model, images, list(taps))

    def hook_for(name: str) -> Hook:
        def hook(module: nn.Module, _inputs: object, output: object) -> object:
            calls[name] += 1
            known = remembered(module, (images.shape[-2], images.shape[-1]))
            part = known.part if known else 0
            value = held_in(output, part)
            if not isinstance(value, Tensor):
                raise InputError(_no_map(name, type(output).__name__))
            layout = layout_of(module, images, value, name)
            return put_in(output, layout.write(taps[name](layout.read(value))), part)

        return hook

    with hooked((find_layer(model, name), hook_for(name)) for name in taps):
        yield calls


def run_tapped(model: nn.Module, images: Tensor, taps: Mapping[str, Tap]) -> Float[Tensor, "batch category"]:
    """Run the network once with taps (see `tapped`).

    Args:
        model: The network.
        images: Normalised images [batch, channel, height, width].
        taps: By layer name, what replaces the layer's map.

    Returns:
        The logits.

    Raises:
        InputError: A layer was not called exactly once, or `tapped` refuses it.
    """
    with tapped(model, images, taps) as calls:
        logits = as_logits(model(images))
    for name, count in calls.items():
        if count != 1:
            raise InputError(
                f"layer {name!r} is called {count} times in one forward pass; expected once: choose another"
            )
    return logits


def keep_in(maps: dict[str, Tensor], name: str) -> Tap:
    """Return a tap that stores a layer's map so that scores can be differentiated by it.

    Args:
        maps: Where the map [batch, channel, height, width] is stored.
        name: The key to store it under.

    Returns:
        The tap. It passes on a copy of the map.
    """

    def tap(output: Tensor) -> Tensor:
        maps[name] = output if output.requires_grad else output.detach().requires_grad_(True)
        return maps[name].clone()

    return tap


def map_shapes(model: nn.Module, images: Tensor, layers: Sequence[str]) -> dict[str, tuple[int, int, int]]:
    """Return the shapes of layers' maps for images of this size.

    Args:
        model: The network; it is left as it was.
        images: Normalised images [batch, channel, height, width]; only the first image is run.
        layers: Names of layers.

    Returns:
        [channel, height, width] of each layer's map, by name, in the order of the forward pass: a single row
        where tokens without a place belong to it (see `Layout`).

    Raises:
        InputError: A layer does not exist, is not called exactly once, or gives no map.
    """
    shapes: dict[str, tuple[int, int, int]] = {}

    def remember(name: str) -> Tap:
        def tap(output: Tensor) -> Tensor:
            if len(output) != 1:
                raise InputError(
                    f"layer {name!r} gives {len(output)} maps for one image (windows or heads in place of "
                    "the batch?): choose a layer with one map per image, such as the block around it"
                )
            shapes[name] = (output.shape[1], output.shape[2], output.shape[3])
            return output

        return tap

    with frozen_eval(model), torch.no_grad():
        run_tapped(model, images[:1], {name: remember(name) for name in layers})
    return shapes


def token_grids(model: nn.Module, images: Tensor, layers: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Return the height and width of the space of layers whose outputs are no maps as they are.

    Args:
        model: The network; it is left as it was.
        images: Normalised images [batch, channel, height, width]; only the first image is run, and only where
            a layer is not known.
        layers: Names of layers.

    Returns:
        [height, width] by name, without tokens that have no place; the space of a plain map that is the whole
        output is the map itself, and is left out.

    Raises:
        InputError: A layer does not exist.
    """
    find_layouts(model, images, layers)
    size = (images.shape[-2], images.shape[-1])
    found = {name: remembered(find_layer(model, name), size) for name in layers}
    return {name: layout.grid for name, layout in found.items() if layout and (layout.shape or layout.part)}


def grids(model: nn.Module, images: Tensor, layers: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Return the height and width of the space of layers' maps for images of this size.

    Args:
        model: The network; it is left as it was.
        images: Normalised images [batch, channel, height, width]; only the first image is run.
        layers: Names of layers.

    Returns:
        [height, width] by name, without tokens that have no place.

    Raises:
        InputError: A layer does not exist, is not called exactly once, or gives no map.
    """
    shapes = map_shapes(model, images, layers)
    known = token_grids(model, images, layers)
    return {name: known.get(name, shape[1:]) for name, shape in shapes.items()}
