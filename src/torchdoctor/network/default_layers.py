"""Choose the layers to diagnose where the user names none: the ends of a network's last stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Num
from torch import Tensor, nn

from torchdoctor.display.counts import count_of
from torchdoctor.network.candidates import Sighting, sightings
from torchdoctor.network.cut_off import why_no_layer
from torchdoctor.network.flops import compute_before
from torchdoctor.network.outputs import unwrap
from torchdoctor.types import InputError

LATE = 0.5  # of a stage's arithmetic: a convolution with more behind it in its stage is not the stage's end


@dataclass(frozen=True)
class Choice:
    """A layer that is diagnosed where the user names none.

    Attributes:
        name: Its dotted name in the network.
        reason: Why it was chosen, in one phrase.
    """

    name: str
    reason: str


def default_layers(
    model: nn.Module, images: Num[Tensor, "batch channel height width"], number: int = 3
) -> tuple[str, ...]:
    """Choose the ends of the last stages: see `default_choices`.

    Args:
        model: The network; it is left as it was.
        images: Normalised images, as the network takes them; only the first image is run.
        number: How many layers to choose.

    Returns:
        At most `number` names, in the order of the forward pass.

    Raises:
        InputError: No layer with a map feeds the logits, or the network cannot be used.

    Example:
        >>> import torch
        >>> from torchdoctor import default_layers
        >>> convolutions = [torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 6, 3)]
        >>> tail = [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(6, 2)]
        >>> network = torch.nn.Sequential(*convolutions, *tail)
        >>> default_layers(network, torch.rand(1, 3, 8, 8), number=1)
        ('2',)
    """
    return tuple(choice.name for choice in default_choices(model, images, number))


def default_choices(
    model: nn.Module, images: Num[Tensor, "batch channel height width"], number: int = 3
) -> tuple[Choice, ...]:
    """Choose the ends of the last stages, and say why.

    A stage is what works on maps of one size. Its end is its last convolution on the longest way through it
    (no shortcut and no branch that pools), or its last block of layers where much of the stage comes behind
    its last convolution. A layer has to hold places of the image of which more than one acts on the logits.
    Convolutions whose channels are the logits are passed over, and so is the first convolution, unless too
    few others are left. A network with fewer stages fills up: with the convolutions nearest the end, or with
    blocks at even distances.

    Args:
        model: The network; it is left as it was.
        images: Normalised images, as the network takes them; only the first image is run.
        number: How many layers to choose.

    Returns:
        At most `number` layers, in the order of the forward pass.

    Raises:
        InputError: No layer with a map feeds the logits, or the network cannot be used.
    """
    seen = sightings(model, images)
    if not seen:
        raise InputError(why_no_layer(model, images))
    usable = _usable(seen, number)
    blocks = [each for each in usable if each.is_block]
    done: Mapping[str, int] = {}
    if blocks:
        done = compute_before(unwrap(model), images[:1], [each.candidate.name for each in usable])[0]
    stages: dict[tuple[int, int], list[Sighting]] = {}
    for each in usable:
        stages.setdefault(each.grid, []).append(each)
    if blocks:  # convolutions on other sizes come before the first stage of blocks
        stages = {grid: members for grid, members in stages.items() if any(each.is_block for each in members)}
    last = {grid: _last_call(members, usable) for grid, members in stages.items()}
    in_order = sorted(stages, key=lambda grid: last[grid])[-number:]
    chosen: dict[str, str] = {}
    for grid in in_order:
        end = _end_of_stage(stages[grid], done, usable)
        kind = "block" if end.is_block else "convolution"
        where = f"the last {kind} of the stage with maps of {grid[0]} x {grid[1]}"
        chosen[end.candidate.name] = where + (", the first of the network" if end.is_stem else "")
    _fill_up(chosen, blocks, usable, number)
    names = [each.candidate.name for each in usable]
    return tuple(Choice(name, chosen[name]) for name in sorted(chosen, key=names.index))


def _usable(seen: Sequence[Sighting], number: int) -> list[Sighting]:
    """Return the layers to choose from; what is passed over comes back where nothing else is there."""
    space = [each for each in seen if each.has_space] or list(seen)
    space = [each for each in space if not _holds_pairs(each, seen)] or space
    space = [each for each in space if not each.is_projection] or space
    mixing = [each for each in space if each.mixes] or space
    no_classifier = [each for each in mixing if not each.is_classifier] or mixing
    behind = [each for each in no_classifier if not each.is_stem]
    return behind if len(behind) >= number else no_classifier


def _holds_pairs(layer: Sighting, seen: Sequence[Sighting]) -> bool:
    """Whether a map holds pairs of places, as in attention: each side has all places of the map before it."""
    before = [each.grid for each in seen[: seen.index(layer)] if each.grid != layer.grid]
    height, width = before[-1] if before else (1, 1)
    return min(height, width) > 2 and layer.grid == (height * width, height * width)


def _last_call(members: Sequence[Sighting], usable: Sequence[Sighting]) -> int:
    """Return the place of the last of some layers in the order of the forward pass."""
    return max(place for place, each in enumerate(usable) if each in members)


def _end_of_stage(stage: Sequence[Sighting], done: Mapping[str, int], usable: Sequence[Sighting]) -> Sighting:
    """Return the layer at the end of a stage."""
    convolutions = [each for each in stage if not each.is_block]
    blocks = [each for each in stage if each.is_block]
    deepest = max(each.depth for each in convolutions) if convolutions else 0
    last = [each for each in convolutions if each.depth == deepest]
    if not blocks:
        return last[-1]
    if not last:
        return blocks[-1]
    places = [usable.index(each) for each in stage]
    before = [
        place
        for place, each in enumerate(usable[: usable.index(blocks[0])])
        if each.is_block and each not in blocks
    ]  # a layer of an earlier stage can have a map of this size too
    first = min(place for place in places if place > max(before, default=-1))
    start = done[usable[first - 1].candidate.name] if first else 0
    end = done[stage[-1].candidate.name]
    behind = end - done[last[-1].candidate.name]
    return blocks[-1] if last[-1].is_stem or behind > LATE * (end - start) else last[-1]


def _fill_up(
    chosen: dict[str, str], blocks: Sequence[Sighting], usable: Sequence[Sighting], number: int
) -> None:
    """Add layers until there are enough: blocks at even distances, or the convolutions nearest the end."""
    if len(chosen) >= number:
        return
    few = f"the network has {count_of(len(chosen), 'stage')}"
    if blocks:
        places = [round((place + 1) * len(blocks) / number) - 1 for place in range(number)]
        even = [blocks[max(place, 0)] for place in places]
        for each in [*reversed(even), *reversed(blocks)]:
            inside = any(name.startswith(f"{each.candidate.name}.") for name in chosen)
            if len(chosen) < number and not inside:
                chosen.setdefault(each.candidate.name, f"a block at an even distance: {few}")
        return
    deepest, main = 0, list[Sighting]()
    for each in usable:
        if each.depth >= deepest:
            main.append(each)
            deepest = each.depth
    for each in [*reversed(main), *reversed(usable)]:
        if len(chosen) < number:
            stem = ", the first of the network" if each.is_stem else ""
            chosen.setdefault(each.candidate.name, f"a convolution near the end{stem}: {few}")
