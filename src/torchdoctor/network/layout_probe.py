"""Find out how layers' outputs lie: change the image in stripes, and see which positions answer.

A position that stands for a place answers most where the image changes there. The centre of what it answers
to therefore moves over the image as the place does, however far the layers before it reach; that of a class
token does not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float, Int, Num
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from torchdoctor.network.hooks import hooked
from torchdoctor.network.layouts import (
    Layout,
    held_in,
    is_known,
    parts_of_images,
    remember,
)

STRIPES = 16  # along each side of the image; finer ones only where positions lie in an order of their own
MOST_BESIDE = 16  # more tokens without a place than any network is known to have
MOST_PLACES = 60 * 60  # of which an order of their own is looked for
ALIKE = 0.5  # least correlation of places and the centres of what they answer to
ALIKE_IF_FEW, FEW = 0.9, 9  # the same for so few places, whose centres may lie in order by chance
CONTRAST = (
    1.5  # least answer to a place's own stripes, in mean answers, where places are looked for one by one
)
AT_ONCE = 16  # changed images in a pass


@dataclass
class Answers:
    """How much the positions of an output answer to a change in each stripe of the image.

    Attributes:
        shape: The shape of the output without the batch.
        part: Which part of the output is meant, where it is a tuple.
        parts: By the axis of the channels, the answers of each pass over the stripes.
    """

    shape: tuple[int, ...]
    part: int = 0
    parts: dict[int, list[Float[np.ndarray, "stripe position"]]] = field(default_factory=dict)

    def add(self, output: Float[Tensor, "image ..."], clean: Float[Tensor, "1 ..."]) -> None:
        """Add the answers to some stripes.

        Args:
            output: The output for images that are changed in a stripe each.
            clean: The output for the image as it is.
        """
        change = (output - clean).double().abs()
        for axis in (1, -1):
            summed = change.sum(axis).flatten(1)
            self.parts.setdefault(axis, []).append(summed.cpu().numpy())

    def of(self, axis: int) -> Float[np.ndarray, "stripe position"]:
        """Return all answers.

        Args:
            axis: The axis of the channels, 1 or -1.

        Returns:
            The absolute change of each position, summed over the channels.
        """
        return np.concatenate(self.parts[axis])


def find_out(
    model: nn.Module, images: Num[Tensor, "batch channel height width"], layers: Sequence[str]
) -> None:
    """Find out the layouts of layers, and note them.

    Args:
        model: The network, in evaluation mode.
        images: Normalised images, as the network takes them; only the first is used.
        layers: Names of layers. Those that are known stay as they are.
    """
    size = (images.shape[-2], images.shape[-1])
    modules = {name: model.get_submodule(name) for name in layers}
    modules = {name: module for name, module in modules.items() if not is_known(module, size)}
    if not modules:
        return
    for name, shape in _shapes(model, images[:1], modules).items():
        if _can_only_be_plain(shape, size):
            remember(modules.pop(name), size, Layout((shape[1], shape[2])))
    if not modules:
        return
    answers = _answers(model, images[:1], modules, (min(STRIPES, size[0]), min(STRIPES, size[1])))
    in_disorder: dict[str, nn.Module] = {}
    alike: dict[str, nn.Module] = {}
    for name, module in modules.items():
        layout = _in_order(answers[name], size) if name in answers else None
        remember(module, size, layout and replace(layout, part=answers[name].part))
        if layout is None and name in answers:
            (in_disorder if _answers_by_place(answers[name], size) else alike)[name] = module
    if in_disorder:
        _find_own_orders(model, images[:1], in_disorder, {name: answers[name].shape for name in in_disorder})
    alike = {name: module for name, module in alike.items() if len(answers[name].shape) == 2}
    if alike:
        _take_in_order(model, images[:1], alike, answers)


def _take_in_order(
    model: nn.Module, image: Tensor, modules: dict[str, nn.Module], answers: dict[str, Answers]
) -> None:
    """Take tokens row by row that all answer alike, where they are as many as a map's places.

    Attention whose weights are still even says nothing of places. A map is that of a convolution, or one with
    sides half as long, once or several times.
    """
    size = (image.shape[-2], image.shape[-1])
    convolutions: dict[str, nn.Module] = {
        name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)
    }
    grids: dict[int, tuple[int, int]] = {}
    for shape in _shapes(model, image, convolutions).values():
        height, width = shape[1:] if len(shape) == 3 else (1, 1)
        while height * width > 1:
            grids.setdefault(height * width, (height, width))
            height, width = math.ceil(height / 2), math.ceil(width / 2)
    for name, module in modules.items():
        shape, part = answers[name].shape, answers[name].part
        if shape[0] in grids:
            layout = _made(shape, -1, grids[shape[0]], np.arange(shape[0]))
            remember(module, size, replace(layout, part=part))


def _find_own_orders(
    model: nn.Module, image: Tensor, modules: dict[str, nn.Module], shapes: dict[str, tuple[int, ...]]
) -> None:
    """Find out the layouts of tokens in an order of their own, from stripes as narrow as their places."""
    size = (image.shape[-2], image.shape[-1])
    may_be = {
        name: {grid for axis, grid, _ in _grids_of(shapes[name], size) if axis == -1} for name in modules
    }
    for grid in sorted(set().union(*may_be.values()), reverse=True):
        waiting = {name: module for name, module in modules.items() if grid in may_be[name]}
        if not waiting or grid[0] * grid[1] > MOST_PLACES or grid[0] > size[0] or grid[1] > size[1]:
            continue
        for name, fine in _answers(model, image, waiting, grid).items():
            layout = _in_own_order(fine, grid)
            if layout is not None:
                remember(modules.pop(name), size, replace(layout, part=fine.part))


def _answers_by_place(answers: Answers, size: tuple[int, int]) -> bool:
    """Whether positions answer to some stripe clearly more than to the others."""
    rows = min(STRIPES, size[0])
    share = _shares(answers.of(-1))
    return bool(min(share[:rows].max(0).mean(), share[rows:].max(0).mean()) >= CONTRAST)


def _shares(values: Float[np.ndarray, "stripe position"]) -> Float[np.ndarray, "stripe position"]:
    """Return the answers relative to the mean of each stripe, then of each position."""
    share = values / np.maximum(values.mean(1, keepdims=True), 1e-300)
    shares: np.ndarray = share / np.maximum(share.mean(0, keepdims=True), 1e-300)
    return shares


def _shapes(model: nn.Module, image: Tensor, modules: dict[str, nn.Module]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of layers' outputs for one image, without the batch."""
    found: dict[str, tuple[int, ...]] = {}
    names = {module: name for name, module in modules.items()}

    def look(module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            found[names[module]] = tuple(output.shape[1:])

    with hooked((module, look) for module in names), torch.no_grad():
        model(image)
    return found


def _can_only_be_plain(shape: tuple[int, ...], size: tuple[int, int]) -> bool:
    """Whether the last two axes have the image's proportions, and the first two have not."""

    def alike(height: int, width: int) -> bool:
        return abs(height - width * size[0] / size[1]) <= 1

    return len(shape) == 3 and alike(shape[1], shape[2]) and not alike(shape[0], shape[1])


def _answers(
    model: nn.Module, image: Tensor, modules: dict[str, nn.Module], stripes: tuple[int, int]
) -> dict[str, Answers]:
    """Run the network on the image, changed in each stripe, and note how layers answer; {} if it fails."""
    found: dict[str, Answers] = {}
    outputs: dict[str, Tensor] = {}
    parts: dict[str, int] = {}
    rows: list[int] = []
    names = {module: name for name, module in modules.items()}

    def look(module: nn.Module, _inputs: object, output: object) -> None:
        holding = parts_of_images(output, rows[-1])
        if holding and names[module] not in outputs:
            value = held_in(output, holding[0])
            assert isinstance(value, Tensor)
            outputs[names[module]] = value.detach().clone()
            parts[names[module]] = holding[0]

    try:
        with hooked((module, look) for module in names), torch.no_grad():
            # Together with its copies: an image alone may be computed by other kernels.
            changed = _changed(image, stripes)
            for start in range(0, len(changed), AT_ONCE):
                part = torch.cat([image, changed[start : start + AT_ONCE]])
                outputs.clear()
                rows.append(len(part))
                model(part)
                for name, output in outputs.items():
                    if bool(torch.isfinite(output).all()):
                        answer = found.setdefault(name, Answers(tuple(output.shape[1:]), parts[name]))
                        answer.add(output[1:], output[:1])
    except Exception:  # a network that takes no such batch: what is known of axes has to do
        return {}
    return found


def _changed(image: Tensor, stripes: tuple[int, int]) -> Tensor:
    """Return the image changed in each horizontal stripe, then in each vertical one."""
    _, _, height, width = image.shape
    generator = torch.Generator().manual_seed(0)
    if image.is_floating_point():
        spread = float(image.float().std(correction=0)) or 1.0
        other = image + spread * torch.randn(image.shape, generator=generator).to(image)
    else:
        other = 255 - image
    rows = torch.arange(height, device=image.device) * stripes[0] // height
    columns = torch.arange(width, device=image.device) * stripes[1] // width
    masks = [(rows == stripe)[:, None].expand(height, width) for stripe in range(stripes[0])]
    masks += [(columns == stripe)[None].expand(height, width) for stripe in range(stripes[1])]
    return torch.cat([torch.where(mask, other, image) for mask in masks])


def _grids_of(shape: tuple[int, ...], size: tuple[int, int]) -> Iterator[tuple[int, tuple[int, int], int]]:
    """Yield (axis of the channels, height and width of the space, positions beside it) that may be."""
    for axis in (-1, 1):
        axes = shape[:-1] if axis == -1 else shape[1:]
        positions = math.prod(axes)
        if len(axes) == 2 and axes[0] * axes[1] > 1:
            yield axis, (axes[0], axes[1]), 0
        for height in range(1, size[0] + 1):
            exact = height * size[1] / size[0]
            for width in sorted({max(math.floor(exact), 1), max(math.ceil(exact), 1)}):
                beside = positions - height * width
                few = 0 <= beside <= min(MOST_BESIDE, height * width)
                if height * width > 1 and few and (height, width) != tuple(axes):
                    yield axis, (height, width), beside


def _in_order(answers: Answers, size: tuple[int, int]) -> Layout | None:
    """Return the layout that fits best among those where places lie row by row; None where none fits."""
    shape = answers.shape
    best, layout = 0.0, None
    for axis, grid, beside in sorted(_grids_of(shape, size), key=lambda each: -each[0]):
        values = answers.of(axis)
        for first in sorted({0, beside}, reverse=True):
            places = np.arange(first, first + grid[0] * grid[1])
            score = _fit(values[:, places], grid, min(STRIPES, size[0]))
            if score > max(best + 1e-6, ALIKE_IF_FEW if len(places) <= FEW else ALIKE):
                best, layout = score, _made(shape, axis, grid, places)
    return layout


def _made(
    shape: tuple[int, ...], axis: int, grid: tuple[int, int], places: Int[np.ndarray, " place"]
) -> Layout:
    """Return a layout; a plain one where the output is a map as it is."""
    if axis == 1 and shape[1:] == grid:
        return Layout(grid)
    return Layout(grid, axis, shape, tuple(int(place) for place in places))


def _fit(answers: Float[np.ndarray, "stripe place"], grid: tuple[int, int], rows: int) -> float:
    """Return how well the centres of answers follow the places: the smaller of two correlations."""
    row, column = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    scores = []
    for values, wanted in ((answers[:rows], row), (answers[rows:], column)):
        if wanted.max() == 0:
            continue
        centre = _centres(values)
        if centre is None:
            return 0.0
        scores.append(float(np.corrcoef(centre, wanted)[0, 1]))
    return min(scores)


def _centres(answers: Float[np.ndarray, "stripe place"]) -> Float[np.ndarray, " place"] | None:
    """Return the mean stripe that each place answers to; None where the places do not differ."""
    total = answers.sum(0)
    mean = float(total.mean())
    if not mean > 0:
        return None
    stripes = np.arange(len(answers))
    # A place that answers to nothing lies in the middle.
    total = np.where(total > 0, total, 1.0)
    centre = np.where(answers.sum(0) > 0, (stripes[:, None] * answers).sum(0) / total, stripes.mean())
    return None if centre.std() < 1e-9 else centre


def _in_own_order(answers: Answers, grid: tuple[int, int]) -> Layout | None:
    """Return the layout of positions that lie in an order of their own; None where there is none.

    Those that answer least to any one stripe have no place. Each other one is given the place that lies
    nearest to what it answers to, no two the same.
    """
    values, number = answers.of(-1), grid[0] * grid[1]
    if values.shape[1] < number:
        return None
    above = np.maximum(_shares(values) - 1, 0)  # what is common to all positions says nothing of their places
    by_row, by_column = above[: grid[0]], above[grid[0] :]
    peak = np.minimum(by_row.max(0), by_column.max(0))
    placed = np.argsort(-peak, kind="stable")[:number]
    row, column = np.divmod(np.arange(number), grid[1])
    down, right = _middle(by_row[:, placed]), _middle(by_column[:, placed])
    _, nearest = linear_sum_assignment((row[:, None] - down) ** 2 + (column[:, None] - right) ** 2)
    places = placed[nearest]
    clear = peak[places].mean() + 1 >= CONTRAST
    fits = clear and _fit(values[:, places], grid, grid[0]) > ALIKE_IF_FEW
    return _made(answers.shape, -1, grid, places) if fits else None


def _middle(weights: Float[np.ndarray, "stripe position"]) -> Float[np.ndarray, " position"]:
    """Return the mean stripe of each position, weighted by its answers."""
    total = np.maximum(weights.sum(0), 1e-300)
    middle: np.ndarray = (np.arange(len(weights))[:, None] * weights).sum(0) / total
    return middle
