"""List the layers of a network that can be diagnosed: convolutions, and blocks whose outputs hold maps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Num
from torch import Tensor, nn

from torchdoctor.network.flops import compute_before
from torchdoctor.network.frozen import frozen_eval
from torchdoctor.network.graph_steps import Attention, Depths
from torchdoctor.network.hooks import hooked
from torchdoctor.network.layouts import held_in, on_grid, parts_of_images, put_in
from torchdoctor.network.outputs import unwrap
from torchdoctor.network.taps import find_layouts, layout_of
from torchdoctor.network.zero_weights import without_zero_weights

LIST = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
ELSEWHERE = 0.5  # of the arithmetic: where more lies outside of convolutions, the same
UNCOVERED = 0.1  # of the arithmetic: where more lies behind the last convolution, blocks are candidates too


@dataclass(frozen=True)
class Candidate:
    """A layer that can be diagnosed.

    Attributes:
        name: Its dotted name in the network.
        shape: [channel, height, width] of its map, without tokens that have no place on the image.
    """

    name: str
    shape: tuple[int, int, int]


@dataclass(frozen=True)
class Sighting:
    """What one forward pass and its derivatives show of a candidate.

    Attributes:
        candidate: The layer.
        is_block: Whether it is a block of layers, not a convolution.
        depth: How many layers with weights lie on the longest way from the image to its map, itself included.
        is_stem: Whether it reads the image with no other layer with weights before it, as a patch embedding.
        has_space: Whether the logits depend on its map at more than one place, as far as can be seen.
        is_classifier: Whether each of its channels is a logit before it is averaged.
        mixes: Whether its map at a place depends on more places than one of the block before it; a block that
            only asks the places for a class token passes them on.
        is_projection: Whether it is a convolution inside attention, whose map is queries, keys or values: see
            `Attention`.
    """

    candidate: Candidate
    is_block: bool
    depth: int
    is_stem: bool
    has_space: bool
    is_classifier: bool
    mixes: bool = True
    is_projection: bool = False

    @property
    def grid(self) -> tuple[int, int]:
        """The height and width of its map."""
        return self.candidate.shape[1:]


def candidate_layers(
    model: nn.Module, images: Num[Tensor, "batch channel height width"]
) -> tuple[Candidate, ...]:
    """List the layers that can be diagnosed.

    These give one map per image, are called once in a forward pass, and feed the logits: the convolutions,
    and, in networks that do most of their work elsewhere, such as transformers, the blocks of layers.

    Args:
        model: The network; it is left as it was.
        images: Normalised images, as the network takes them; only the first image is run.

    Returns:
        The layers in the order of the forward pass; empty if there are none.

    Raises:
        InputError: The network cannot be used (see `unwrap`), or returns no logits.

    Example:
        >>> import torch
        >>> from torchdoctor import candidate_layers
        >>> convolutions = [torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 6, 3)]
        >>> tail = [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(6, 2)]
        >>> network = torch.nn.Sequential(*convolutions, *tail)
        >>> for candidate in candidate_layers(network, torch.rand(1, 3, 8, 8)):
        ...     print(candidate.name, candidate.shape)
        0 (4, 6, 6)
        2 (6, 4, 4)
    """
    return tuple(sighting.candidate for sighting in sightings(model, images))


def sightings(model: nn.Module, images: Num[Tensor, "batch channel height width"]) -> tuple[Sighting, ...]:
    """Look at every layer that can be diagnosed.

    Args:
        model: The network; it is left as it was.
        images: Normalised images, as the network takes them; only the first image is run.

    Returns:
        The layers in the order of the forward pass.

    Raises:
        InputError: The network cannot be used (see `unwrap`), or returns no logits.
    """
    model = without_zero_weights(unwrap(model))
    convolutions: dict[nn.Module, str] = {
        module: name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)
    }
    seen = _look(model, images[:1], convolutions)
    blocks = _blocks(model)
    if not blocks or not _leaves_much(model, images[:1], seen):
        return seen
    find_layouts(model, images, list(blocks.values()))
    return _look(model, images[:1], {**convolutions, **blocks})


def _leaves_much(model: nn.Module, image: Tensor, seen: tuple[Sighting, ...]) -> bool:
    """Whether much of the arithmetic lies behind the last convolution with a map, or in no convolution."""
    names = [each.candidate.name for each in seen if each.grid != (1, 1)]
    if not names:
        return True
    done = compute_before(model, image, names)[0]
    own = 0
    for each in seen:
        module = model.get_submodule(each.candidate.name)
        assert isinstance(module, nn.Conv2d)
        own += 2 * module.weight.numel() * each.grid[0] * each.grid[1]
    behind = max(done[name] for name in names) < (1 - UNCOVERED) * done[""]
    return behind or own < (1 - ELSEWHERE) * done[""]


def _blocks(model: nn.Module) -> dict[nn.Module, str]:
    """Return members of lists of modules: with several layers, others of their kind beside, none inside."""
    found: dict[nn.Module, str] = {}
    for name, module in model.named_modules():
        if not isinstance(module, LIST):
            continue
        kinds = Counter(type(child) for child in module.children())
        for part, child in module.named_children():
            repeated = kinds[type(child)] > 1
            layers = sum(parameter.ndim > 1 for parameter in child.parameters())
            if (
                repeated
                and not isinstance(child, LIST)
                and layers > 1
                and any(True for _ in child.children())
            ):
                found[child] = f"{name}.{part}".lstrip(".")
    return {
        module: name
        for module, name in found.items()
        if not any(inner in found for inner in module.modules() if inner is not module)
    }


def _look(model: nn.Module, image: Tensor, names: Mapping[nn.Module, str]) -> tuple[Sighting, ...]:
    """Run the network once, differentiate random sums of its logits by every output, and describe these."""
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []
    passed_on: list[Tensor] = []

    def remember(module: nn.Module, _inputs: object, output: object) -> object:
        holding = parts_of_images(output, len(image)) if isinstance(output, tuple) else [0]
        value = held_in(output, holding[0]) if len(holding) == 1 else None  # of several, none is the map
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return output
        leaf = value if value.requires_grad else value.detach().requires_grad_(True)
        calls.append((module, value, leaf))
        passed_on.append(leaf.clone())
        return put_in(output, passed_on[-1], holding[0])

    with hooked((module, remember) for module in names), frozen_eval(model) as frozen, torch.enable_grad():
        logits = frozen.logits(image)
        leaves = [leaf for _, _, leaf in calls]
        weights = torch.linspace(1.0, 2.0, logits.shape[1]).to(logits)
        together: list[Tensor | None] = [None] * len(leaves)
        first = list(together)
        if leaves and logits.requires_grad:
            together = _derivatives((logits * weights).sum(), leaves)
            first = _derivatives(logits[:, 0].sum(), leaves)
    depth_of, attention, counts = Depths(), Attention(logits), dict[nn.Module, int]()
    for module, _, _ in calls:
        counts[module] = counts.get(module, 0) + 1
    found: list[Sighting] = []
    before: dict[tuple[int, int], tuple[nn.Module, Tensor]] = {}  # by size of the map, the last block
    rows = zip(calls, passed_on, together, first, strict=True)
    for (module, value, leaf), output, gradient, of_first in rows:
        if gradient is None or counts[module] > 1 or len(value) != len(image):
            continue
        facts = _described(module, names[module], image, leaf, gradient, of_first)
        if facts is None:
            continue
        candidate, has_space, is_classifier = facts
        is_block, depth = not isinstance(module, nn.Conv2d), depth_of(value.grad_fn)
        grid = candidate.shape[1:]
        mixes = not is_block or grid not in before or _mixes(module, value, *before[grid], image)
        if is_block:
            before[grid] = module, leaf
        found.append(
            Sighting(
                candidate=candidate,
                is_block=is_block,
                depth=depth,
                is_stem=depth <= 1 if is_block else not value.requires_grad,
                has_space=has_space,
                is_classifier=is_classifier and logits.shape[1] > 1 and value.shape[1] == logits.shape[1],
                mixes=mixes,
                is_projection=not is_block and attention.projects(output),
            )
        )
    return tuple(found)


def _mixes(module: nn.Module, value: Tensor, block: nn.Module, leaf: Tensor, image: Tensor) -> bool:
    """Whether a block's map at its middle place depends on more places than one of another block's output."""
    layout = layout_of(module, image, value)
    at_places = on_grid(layout.read(value), layout.grid).flatten(2)
    middle = at_places[:, :, at_places.shape[2] // 2]
    weights = torch.linspace(1.0, 2.0, middle.shape[1]).to(middle)
    (slopes,) = _derivatives((middle * weights).sum(), [leaf])
    if slopes is None:
        return True
    other = layout_of(block, image, leaf)
    if value.shape == leaf.shape and torch.equal(value, leaf):  # weights that start at 0 hide what it does
        return True
    return int((on_grid(other.read(slopes), other.grid) != 0).any(1).sum()) != 1


def _derivatives(score: Tensor, leaves: list[Tensor]) -> list[Tensor | None]:
    """Return the derivative of a score by each tensor; None where it does not depend on it."""
    return list(torch.autograd.grad(score, leaves, allow_unused=True, retain_graph=True))


def _described(
    module: nn.Module, name: str, image: Tensor, leaf: Tensor, gradient: Tensor, of_first: Tensor | None
) -> tuple[Candidate, bool, bool] | None:
    """Return the candidate, whether it has space, whether one channel alone makes the first logit."""
    if leaf.ndim != 4 and isinstance(module, nn.Conv2d):
        return None
    try:
        layout = layout_of(module, image, leaf, name)
    except Exception:  # no space
        return None
    grid = layout.grid
    slopes = on_grid(layout.read(gradient), grid)
    places = int((slopes != 0).any(1).sum())
    has_space = grid[0] * grid[1] > 1 and places != 1 and (isinstance(module, nn.Conv2d) or places > 1)
    one_channel = of_first is not None and int((layout.read(of_first) != 0).flatten(2).any(2).sum()) <= 1
    return Candidate(name, (slopes.shape[1], *grid)), has_space, one_channel
