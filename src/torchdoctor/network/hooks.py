"""Find layers by name, and read or change their maps through hooks that are always removed."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torchdoctor.network.frozen import frozen_eval
from torchdoctor.network.outputs import as_logits
from torchdoctor.types import InputError

HookKind = Literal["forward", "forward_pre"]
Hook = Callable[..., Any]
Tap = Callable[[Tensor], Tensor]


def find_layer(model: nn.Module, name: str) -> nn.Module:
    """Return the module with a dotted name.

    Args:
        model: The network.
        name: The name as in `model.named_modules()`, such as `layer3.0.conv2`.

    Returns:
        The module.

    Raises:
        InputError: There is no such module; the message suggests similar names.
    """
    try:
        if name:
            return model.get_submodule(name)
    except AttributeError:
        pass
    modules = [known for known, _ in model.named_modules()]
    similar = difflib.get_close_matches(name, modules, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(similar)}?" if similar else f"layers are named like {modules[-3:]}"
    raise InputError(f"layer {name!r} is not in this {type(model).__name__}; {hint}")


@contextmanager
def hooked(hooks: Iterable[tuple[nn.Module, Hook]], kind: HookKind = "forward") -> Iterator[None]:
    """Register hooks on modules for the length of a block, and remove them however the block ends.

    Every hook of this package is registered here.

    Args:
        hooks: Pairs of a module and the function to register on it. It is called as PyTorch calls hooks:
            `(module, inputs, output)` for `forward`, `(module, inputs)` for `forward_pre`.
        kind: `forward` runs after the module's forward pass, `forward_pre` before it.

    Yields:
        Nothing.
    """
    with ExitStack() as handles:
        for module, hook in hooks:
            register = module.register_forward_hook if kind == "forward" else module.register_forward_pre_hook
            handles.callback(register(hook).remove)
        yield


@contextmanager
def tapped(model: nn.Module, taps: Mapping[str, Tap]) -> Iterator[dict[str, int]]:
    """Replace the output m of each named layer by `taps[name](m)` inside the block.

    Args:
        model: The network.
        taps: By layer name, a function from the layer's map [batch, channel, height, width] to the map to go
            on with. It must return a fresh tensor where it stores the map: an activation behind the layer
            that works in place would overwrite what was stored.

    Yields:
        How often each layer has been called so far, by name.

    Raises:
        InputError: A layer does not exist, or (during a forward pass) its output is no 4-dimensional tensor.
    """
    calls = dict.fromkeys(taps, 0)

    def hook_for(name: str) -> Hook:
        def hook(_module: nn.Module, _inputs: object, output: object) -> Tensor:
            calls[name] += 1
            if not isinstance(output, Tensor) or output.ndim != 4:
                actual = (
                    f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
                )
                raise InputError(
                    f"layer {name!r} gives {actual}; expected a 4-dimensional map [batch, channel, height, "
                    "width]: choose a convolution or a block of convolutions"
                )
            return taps[name](output)

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
    with tapped(model, taps) as calls:
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
        [channel, height, width] of each layer's map, by name, in the order of the forward pass.

    Raises:
        InputError: A layer does not exist, is not called exactly once, or gives no 4-dimensional map.
    """
    shapes: dict[str, tuple[int, int, int]] = {}

    def remember(name: str) -> Tap:
        def tap(output: Tensor) -> Tensor:
            shapes[name] = (output.shape[1], output.shape[2], output.shape[3])
            return output

        return tap

    with frozen_eval(model), torch.no_grad():
        run_tapped(model, images[:1], {name: remember(name) for name in layers})
    return shapes
