"""Run again only what lies behind a layer (its tail), on what an earlier forward pass left there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torchdoctor.network.gradients import NoisyTail, noisy_tail
from torchdoctor.network.hooks import Hook, find_layer, hooked
from torchdoctor.network.layouts import Layout
from torchdoctor.network.outputs import as_logits
from torchdoctor.network.taps import find_layouts, keep_in, layout_of, run_tapped

Call = tuple[str, int]  # a module's name, and how often it was called before in the same forward pass


@dataclass(frozen=True)
class Shortcut:
    """Which calls of modules need not run to get from a layer's map to the logits.

    Attributes:
        layer: The name of the layer.
        needed: Calls whose outputs the tail reads, the layer's own among them: they are remembered.
        skipped: Calls before the layer whose outputs the tail does not read.
    """

    layer: str
    needed: tuple[Call, ...]
    skipped: tuple[Call, ...]

    @property
    def own(self) -> Call:
        """The call whose output is the layer's map."""
        return (self.layer, 0)


@dataclass
class Trunk:
    """What one forward pass left behind for the tails of its layers.

    Attributes:
        model: The network.
        shortcuts: The layers whose tails can be run alone, by name.
        outputs: Copies of the outputs that tails read; derivatives by the parameters flow through them.
        shapes: The shapes of all outputs that need not be computed again, the batch's axis first.
    """

    model: nn.Module
    shortcuts: Mapping[str, Shortcut] = field(default_factory=dict)
    outputs: dict[Call, Tensor] = field(default_factory=dict)
    shapes: dict[Call, torch.Size] = field(default_factory=dict)

    def tail(self, layer: str, images: Tensor, rows: Tensor | None = None) -> Tail:
        """Return the tail of a layer for the batch of this pass, or for some of its images.

        Args:
            layer: The name of the layer, with or without a shortcut.
            images: The images of the tail [row, channel, height, width].
            rows: Which images of the pass's batch these are [row]; None: all of them.

        Returns:
            The tail.
        """
        return Tail(self, layer, images, rows)


@contextmanager
def remembering(model: nn.Module, shortcuts: Mapping[str, Shortcut]) -> Iterator[Trunk]:
    """Remember of the forward pass inside the block what the tails of layers need.

    An output is kept as a copy, because what follows may write into it.

    Args:
        model: The network; run it once inside the block.
        shortcuts: The shortcuts of the layers, by name (see `find_shortcuts`).

    Yields:
        The trunk, filled by the forward pass.
    """
    trunk = Trunk(model, shortcuts)
    needed = {call for shortcut in shortcuts.values() for call in shortcut.needed}
    calls = needed | {call for shortcut in shortcuts.values() for call in shortcut.skipped}
    names = dict.fromkeys(name for name, _ in sorted(calls))
    counts = dict.fromkeys(names, 0)

    def hook_for(name: str) -> Hook:
        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            call = (name, counts[name])
            counts[name] += 1
            if call in calls:
                trunk.shapes[call] = output.shape
            if call in needed:
                trunk.outputs[call] = output.clone()

        return hook

    with hooked((find_layer(model, name), hook_for(name)) for name in names):
        yield trunk


@dataclass(frozen=True)
class Tail:
    """What lies between a layer's map and the logits, for the batch of one forward pass.

    Where the layer has a shortcut, only what lies behind it runs, on the map that the pass left there;
    elsewhere the whole network runs again. The network's mode is the caller's affair: in evaluation mode both
    give the same.

    Attributes:
        trunk: What the forward pass left behind.
        layer: The name of the layer.
        images: The images [row, channel, height, width].
        rows: Which images of the pass's batch these are [row]; None: all of them.
    """

    trunk: Trunk
    layer: str
    images: Tensor
    rows: Tensor | None = None

    @property
    def model(self) -> nn.Module:
        """The network."""
        return self.trunk.model

    @property
    def shortcut(self) -> Shortcut | None:
        """What need not run again; None: everything must."""
        return self.trunk.shortcuts.get(self.layer)

    def noisy(self, noise: Float[Tensor, "draw row channel height width"]) -> NoisyTail:
        """Run the tail with each draw of noise added to the layer's map (the inside of Eq. 4).

        Args:
            noise: What is added, in units of the map; it is made to require a gradient.

        Returns:
            The scores, the noise and the noisy maps. Derivatives by the parameters of the trunk flow through
            what was remembered.

        Raises:
            InputError: The layer has no shortcut, and is not called once or gives no 4-dimensional map.
        """
        if self.shortcut is None:
            return noisy_tail(self.model, self.images, self.layer, noise)
        noise = noise.requires_grad_(True)
        own, layout = self._own_map(noise.dtype)
        maps = own[None] + noise
        answers = {**self._answers(noise), self.shortcut.own: layout.write(maps.flatten(0, 1)).clone()}
        with _answered(self.model, answers):
            logits = as_logits(self.model(self._blank(maps.shape[0] * maps.shape[1])))
        return NoisyTail(logits.unflatten(0, tuple(noise.shape[:2])), noise, maps, "shared trunk")

    def clean(self, behind: Sequence[str] = ()) -> tuple[Float[Tensor, "row category"], dict[str, Tensor]]:
        """Run the tail without noise.

        Args:
            behind: Names of further layers whose maps are wanted; they lie behind this one.

        Returns:
            The scores, and the maps of this layer and of those behind it [row, channel, height, width], by
            name; the scores can be differentiated by them.

        Raises:
            InputError: A layer is not called once in what runs, or gives no 4-dimensional map.
        """
        maps: dict[str, Tensor] = {}
        if self.shortcut is None:
            taps = {layer: keep_in(maps, layer) for layer in (self.layer, *behind)}
            return run_tapped(self.model, self.images, taps), maps
        own, layout = self._own_map(self.images.dtype)
        maps[self.layer] = own if own.requires_grad else own.requires_grad_(True)
        answers = {**self._answers(own[None]), self.shortcut.own: layout.write(own).clone()}
        find_layouts(self.model, self.images, behind)
        with _answered(self.model, answers):
            taps = {layer: keep_in(maps, layer) for layer in behind}
            return run_tapped(self.model, self._blank(len(own)), taps), maps

    @contextmanager
    def alone(self) -> Iterator[tuple[Float[Tensor, "row channel height width"], Tensor]]:
        """Let the network answer from the layer's map on, inside the block.

        Yields:
            The map that was remembered, and images to call the network with: it does not look at them.

        Raises:
            RuntimeError: The layer has no shortcut.
        """
        if self.shortcut is None:
            raise RuntimeError(f"layer {self.layer!r} has no shortcut: its tail cannot be run alone")
        own, layout = self._own_map(self.images.dtype)
        answers = {**self._answers(own[None]), self.shortcut.own: layout.write(own)}
        with _answered(self.model, answers):
            yield own, self._blank(len(own))

    def _own_map(self, dtype: torch.dtype) -> tuple[Tensor, Layout]:
        """Return the layer's remembered map, and how its output holds it."""
        find_layouts(self.model, self.images, [self.layer])
        output = self._chosen(self.trunk.outputs[(self.layer, 0)], dtype)
        layout = layout_of(find_layer(self.model, self.layer), self.images, output, self.layer)
        return layout.read(output), layout

    def _chosen(self, output: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the chosen rows of a remembered output in the penalty's type."""
        return (output if self.rows is None else output[self.rows]).to(dtype)

    def _blank(self, number: int) -> Tensor:
        """Return as many images as the tail has rows, for a network that does not look at them."""
        return self.images[:1].expand(number, *self.images.shape[1:])

    def _answers(self, noise: Tensor) -> dict[Call, Tensor]:
        """Return what each call but the layer's own answers, once per draw: its output, or anything."""
        shortcut, trunk = self.shortcut, self.trunk
        assert shortcut is not None
        draws, batch = noise.shape[:2]
        answers = {
            call: self._chosen(trunk.outputs[call], noise.dtype).repeat(
                draws, *[1] * (trunk.outputs[call].ndim - 1)
            )
            for call in shortcut.needed
            if call != shortcut.own
        }
        for call in shortcut.skipped:
            answers[call] = noise.new_empty((draws * batch, *trunk.shapes[call][1:]))
        return answers


@contextmanager
def _answered(model: nn.Module, answers: Mapping[Call, Tensor]) -> Iterator[None]:
    """Let modules answer their first calls at once instead of running, inside the block."""
    names = dict.fromkeys(name for name, _ in answers)
    modules = {name: find_layer(model, name) for name in names}
    before = {name: module.__dict__.get("forward") for name, module in modules.items()}
    try:
        for name, module in modules.items():
            prepared = [answers[call] for call in sorted(answers) if call[0] == name]
            module.forward = _answering(prepared, module.forward)
        yield
    finally:
        for name, module in modules.items():
            if before[name] is None:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = before[name]


def _answering(prepared: list[Tensor], forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a forward function that gives the prepared answers in their order, and runs only after them."""

    def answer(*inputs: object, **named: object) -> Tensor:
        return prepared.pop(0) if prepared else forward(*inputs, **named)

    return answer
