"""Find layers by name, and read or change their maps through hooks that are always removed."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torchdoctor.network.outputs import as_logits
from torchdoctor.types import InputError


def find_layer(model: nn.Module, name: str) -> nn.Module:
    """Return the module called `name`; InputError suggests near names."""
    try:
        if name:
            return model.get_submodule(name)
    except AttributeError:
        pass
    modules = [known for known, _ in model.named_modules()]
    near = difflib.get_close_matches(name, modules, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"layers are named like {modules[-3:]}"
    raise InputError(f"layer {name!r} is not in this {type(model).__name__}; {hint}")


@contextmanager
def tapped(model: nn.Module, taps: Mapping[str, Callable[[Tensor], Tensor]]) -> Iterator[dict[str, int]]:
    """Replace the output m of each named layer by taps[name](m) inside the block; hooks always go again.

    Yields how often each layer was called. A tap must hand on a fresh tensor: an in-place activation
    behind the layer would otherwise overwrite what the tap stored.
    """
    calls = dict.fromkeys(taps, 0)

    def hook_for(name: str) -> Callable[[nn.Module, object, object], Tensor]:
        def hook(_module: nn.Module, _inputs: object, output: object) -> Tensor:
            calls[name] += 1
            if not isinstance(output, Tensor) or output.ndim != 4:
                found = (
                    f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
                )
                raise InputError(
                    f"layer {name!r} gives {found}; expected a 4-dimensional map [batch, channel, height, "
                    "width]: choose a convolution or a block of convolutions"
                )
            return taps[name](output)

        return hook

    handles = []
    try:
        for name in taps:
            handles.append(find_layer(model, name).register_forward_hook(hook_for(name)))
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def run_tapped(
    model: nn.Module, images: Tensor, taps: Mapping[str, Callable[[Tensor], Tensor]]
) -> Float[Tensor, "batch category"]:
    """Run the network once with taps; InputError names a layer that was not called exactly once."""
    with tapped(model, taps) as calls:
        logits = as_logits(model(images))
    for name, count in calls.items():
        if count != 1:
            raise InputError(
                f"layer {name!r} is called {count} times in one forward pass; expected once: choose another"
            )
    return logits


def keep_in(maps: dict[str, Tensor], name: str) -> Callable[[Tensor], Tensor]:
    """Return a tap that keeps a layer's map, ready to be differentiated by, and hands on a copy."""

    def tap(output: Tensor) -> Tensor:
        maps[name] = output if output.requires_grad else output.detach().requires_grad_(True)
        return maps[name].clone()

    return tap


@contextmanager
def measuring(model: nn.Module) -> Iterator[None]:
    """Hold the network in evaluation mode without parameter gradients; put both back afterwards."""
    training = {module: module.training for module in model.modules()}
    wanted = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        model.eval()
        for parameter in wanted:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, mode in training.items():
            module.training = mode
        for parameter, flag in wanted.items():
            parameter.requires_grad_(flag)


def map_shapes(model: nn.Module, images: Tensor, layers: Sequence[str]) -> dict[str, tuple[int, int, int]]:
    """Return [channel, height, width] of each layer's map for images of this size."""
    shapes: dict[str, tuple[int, int, int]] = {}

    def remember(name: str) -> Callable[[Tensor], Tensor]:
        def tap(output: Tensor) -> Tensor:
            shapes[name] = (output.shape[1], output.shape[2], output.shape[3])
            return output

        return tap

    with measuring(model), torch.no_grad():
        run_tapped(model, images[:1], {name: remember(name) for name in layers})
    return shapes
