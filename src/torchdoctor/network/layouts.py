"""Read a layer's output as channel x place, however its axes lie: maps, channels-last maps, or tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

# Their outputs are [batch, channel, height, width] by definition.
PLAIN = (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)


@dataclass(frozen=True)
class Layout:
    """How an output [batch, ...] is read as a map [batch, channel, height, width].

    Tokens without a place on the image (class, distillation and register tokens) count for the channels, not
    for the space. Where there are some, the map is a single row: the places first, row by row, then these
    tokens.

    Attributes:
        grid: The height and width of the space.
        channel_axis: The axis of the channels, 1 or -1.
        shape: The output's shape without the batch; empty for a plain map.
        places: For each place, row by row, its position among the output's axes other than the channels',
            flattened; None: the positions are the places, in order.
        part: Which part of the output is meant, where the layer gives a tuple.
    """

    grid: tuple[int, int]
    channel_axis: int = 1
    shape: tuple[int, ...] = ()
    places: tuple[int, ...] | None = None
    part: int = 0

    @property
    def is_plain(self) -> bool:
        """Whether the output is a map [batch, channel, height, width] as it is."""
        return not self.shape

    @property
    def positions(self) -> int:
        """The number of positions, with and without a place."""
        if self.is_plain:
            return self.grid[0] * self.grid[1]
        axes = self.shape[1:] if self.channel_axis == 1 else self.shape[:-1]
        return int(torch.tensor(axes).prod())

    @property
    def beside(self) -> int:
        """The number of positions without a place."""
        return self.positions - self.grid[0] * self.grid[1]

    def read(self, output: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch channel height width"]:
        """Return the map in an output.

        Args:
            output: The output of the layer.

        Returns:
            The map: the output itself where it is plain.
        """
        if self.is_plain:
            return output
        flat = output.flatten(2) if self.channel_axis == 1 else output.flatten(1, -2).transpose(1, 2)
        order = self._order()
        if order is not None:
            flat = flat[:, :, order]
        return flat.unflatten(2, (1, self.positions) if self.beside else self.grid)

    def write(self, maps: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch ..."]:
        """Return the output that holds a map: the opposite of `read`.

        Args:
            maps: The map.

        Returns:
            The output, in the shape that the layer gives.
        """
        if self.is_plain:
            return maps
        flat, order = maps.flatten(2), self._order()
        if order is not None:
            back = [0] * len(order)
            for place, position in enumerate(order):
                back[position] = place
            flat = flat[:, :, back]
        if self.channel_axis == 1:
            return flat.unflatten(2, self.shape[1:])
        return flat.transpose(1, 2).unflatten(1, self.shape[:-1])

    def _order(self) -> list[int] | None:
        """Return all positions, those with a place first; None where they lie in order already."""
        if self.places is None:
            return None
        with_place = set(self.places)
        order = [*self.places, *(each for each in range(self.positions) if each not in with_place)]
        return None if order == sorted(order) else order


def held_in(output: object, part: int = 0) -> object:
    """Return what holds the map in a layer's output.

    Args:
        output: What the layer returned.
        part: Which part is meant, where it is a tuple (see `Layout`).

    Returns:
        The part of a tuple, else the output itself.
    """
    return output[part] if isinstance(output, tuple) and len(output) > part else output


def put_in(output: object, value: Tensor, part: int = 0) -> object:
    """Return a layer's output with another map in it: the opposite of `held_in`.

    Args:
        output: What the layer returned.
        value: What takes the place of the map.
        part: Which part is meant, where the output is a tuple.

    Returns:
        The output, of the same kind.
    """
    if not isinstance(output, tuple):
        return value
    parts = (*output[:part], value, *output[part + 1 :])
    return type(output)(*parts) if hasattr(output, "_fields") else parts


def parts_of_images(output: object, images: int) -> list[int]:
    """Return which parts of a layer's output may hold a map: those with positions and a row for each image.

    Args:
        output: What the layer returned.
        images: How many images the network was given.

    Returns:
        Their numbers; [0] for an output that is one such tensor alone.
    """
    parts = output if isinstance(output, tuple) else (output,)
    return [
        number
        for number, part in enumerate(parts)
        if isinstance(part, Tensor) and part.ndim > 2 and len(part) == images
    ]


def on_grid(
    values: Float[Tensor, "*lead height width"], grid: tuple[int, int]
) -> Float[Tensor, "*lead grid_height grid_width"]:
    """Return the values at the places of a map, without those of tokens that have none.

    Args:
        values: Values at all positions of a map, as `Layout.read` orders them.
        grid: The height and width of the map's space.

    Returns:
        The values at the places.
    """
    if tuple(values.shape[-2:]) == grid:
        return values
    return values.flatten(-2)[..., : grid[0] * grid[1]].unflatten(-1, grid)


def off_grid(
    values: Float[Tensor, "*lead grid_height grid_width"], size: tuple[int, int]
) -> Float[Tensor, "*lead height width"]:
    """Return values at all positions of a map: those of its places, and 0 at tokens that have none.

    Args:
        values: Values at the places.
        size: The height and width of the map, as `Layout.read` gives it.

    Returns:
        The values at all positions.
    """
    if tuple(values.shape[-2:]) == size:
        return values
    flat = values.flatten(-2)
    beside = flat.new_zeros(*flat.shape[:-1], size[0] * size[1] - flat.shape[-1])
    return torch.cat([flat, beside], -1).unflatten(-1, size)


# By module and by the size of the images, what was found out; None: the output has no space.
_FOUND: WeakKeyDictionary[nn.Module, dict[tuple[int, ...], Layout | None]] = WeakKeyDictionary()


def remembered(module: nn.Module, size: Sequence[int]) -> Layout | None:
    """Return a layer's layout where it was found out before.

    Args:
        module: The layer.
        size: [height, width] of the images.

    Returns:
        The layout; None where there is none, or where nothing was found out.
    """
    return _FOUND.get(module, {}).get(tuple(size))


def is_known(module: nn.Module, size: Sequence[int]) -> bool:
    """Return whether a layer's layout was found out before, or needs no finding out.

    Args:
        module: The layer.
        size: [height, width] of the images.

    Returns:
        True where nothing has to be tried.
    """
    return isinstance(module, PLAIN) or tuple(size) in _FOUND.get(module, {})


def remember(module: nn.Module, size: Sequence[int], layout: Layout | None) -> None:
    """Note a layer's layout for images of a size.

    Args:
        module: The layer.
        size: [height, width] of the images.
        layout: The layout; None: its output has no space.
    """
    _FOUND.setdefault(module, {})[tuple(size)] = layout


def hand_on(network: nn.Module, copied: nn.Module) -> None:
    """Let the layers of a copy have the layouts that are known of the network.

    Args:
        network: The network.
        copied: Its copy.
    """
    for (_, module), (_, other) in zip(network.named_modules(), copied.named_modules(), strict=False):
        if module in _FOUND and type(module) is type(other):
            _FOUND[other] = dict(_FOUND[module])
