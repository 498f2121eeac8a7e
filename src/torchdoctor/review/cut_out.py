"""Cut an object out of a box by its colours (GrabCut).

The method is that of Rother, Kolmogorov and Blake, "GrabCut" (SIGGRAPH 2004): colour models of object and
background, and a minimum cut on the grid of pixels, in turn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from PIL import Image
from scipy.cluster.vq import ClusterError, kmeans2
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, maximum_flow
from scipy.special import logsumexp

from torchdoctor.review.proposals import largest_place
from torchdoctor.types import InputError

LONGEST = 128  # pixels of the longer side of what is cut; larger images are reduced
AROUND = 0.5  # of the box's sides: how far around the box the background is looked at
GAUSSIANS = 5  # of each colour model
ROUNDS = 5  # of colour models and cuts
SMOOTHNESS = 10.0  # what a border between two pixels of one colour costs, in logarithms of densities
LEAST_VARIANCE = 1e-4  # that is added to each Gaussian's; colours are 0 to 1
CAPACITY = 100  # whole units of flow for a cost of 1
LEAST_SHARE = 0.02  # of the box: where less is left, the box itself is proposed
STEPS = ((0, 1), (1, 0), (1, 1), (1, -1))  # down and to the right, to half of a pixel's eight neighbours

Colours = Float[np.ndarray, "pixels 3"]
Marked = Bool[np.ndarray, "height width"]


@dataclass(frozen=True)
class ColourModel:
    """A mixture of Gaussians.

    Attributes:
        shares: The share of each Gaussian.
        means: Their means.
        factors: The inverse Cholesky factors of their covariances.
    """

    shares: Float[np.ndarray, " gaussians"]
    means: Float[np.ndarray, "gaussians 3"]
    factors: Float[np.ndarray, "gaussians 3 3"]

    def log_densities(self, colours: Colours) -> Float[np.ndarray, "gaussians pixels"]:
        """Return the logarithm of each Gaussian's part in the density of colours.

        Args:
            colours: The colours.

        Returns:
            The logarithms, up to a number that is the same for all colour models.
        """
        away = np.einsum("gij,gpj->gpi", self.factors, colours[None] - self.means[:, None])
        heights = np.log(self.shares) + np.log(np.diagonal(self.factors, axis1=1, axis2=2)).sum(1)
        return heights[:, None] - (away**2).sum(2) / 2


@dataclass(frozen=True)
class Borders:
    """Pairs of neighbours, and what it costs to part them.

    Attributes:
        first: The numbers of the pixels of which each is one of a pair.
        second: The numbers of their neighbours.
        costs: The cost of each pair, the higher the more equal their colours.
    """

    first: Int[np.ndarray, " pairs"]
    second: Int[np.ndarray, " pairs"]
    costs: Float[np.ndarray, " pairs"]


def cut_out(image: Float[np.ndarray, "3 height width"], box: Sequence[Any]) -> Marked:
    """Propose a mask of the object in a box.

    `Differs from the paper:` only the ellipse in the box counts as object at first, because the corners of a
    box seldom show the object; of the cut the largest connected part is taken, and its holes are filled.

    Args:
        image: The image, 0 to 1.
        box: Left, top, right and bottom, in pixels from the upper left corner of the image; it may come from
            anywhere.

    Returns:
        True on the object: within the box, and never nothing. The whole box where the colours of object and
        background do not differ. The same image and box have the same mask.

    Raises:
        InputError: The box is none, has no area, or leaves the image.
    """
    height, width = image.shape[1:]
    left, top, right, bottom = _pixels(box, width, height)
    across, down = math.ceil(AROUND * (right - left)), math.ceil(AROUND * (bottom - top))
    seen = (
        max(left - across, 0), max(top - down, 0), min(right + across, width), min(bottom + down, height)
    )  # fmt: skip
    part = image[:, seen[1] : seen[3], seen[0] : seen[2]].transpose(1, 2, 0)
    box_there = (left - seen[0], top - seen[1], right - seen[0], bottom - seen[1])
    scale = min(1.0, LONGEST / max(part.shape[:2]))
    size = max(round(scale * part.shape[1]), 1), max(round(scale * part.shape[0]), 1)
    picture = Image.fromarray((255 * part.clip(0, 1)).round().astype(np.uint8))
    reduced = np.asarray(picture.resize(size, Image.Resampling.BOX), np.float64) / 255
    shares = size[0] / part.shape[1], size[1] / part.shape[0]
    inside = np.zeros(reduced.shape[:2], bool)
    inside[
        math.floor(box_there[1] * shares[1]) : math.ceil(box_there[3] * shares[1]),
        math.floor(box_there[0] * shares[0]) : math.ceil(box_there[2] * shares[0]),
    ] = True
    cut = largest_place(_cut(reduced, inside))
    mask = np.zeros((height, width), bool)
    if cut.sum() >= LEAST_SHARE * inside.sum():
        scaled = Image.fromarray(cut.astype(np.float32)).resize(picture.size, Image.Resampling.BILINEAR)
        marked = np.asarray(scaled)[box_there[1] : box_there[3], box_there[0] : box_there[2]] >= 0.5
        mask[top:bottom, left:right] = marked
    if not mask.any():
        mask[top:bottom, left:right] = True
    return mask


def _pixels(box: Sequence[Any], width: int, height: int) -> tuple[int, int, int, int]:
    """Return the pixels that a box covers, in part at least: left, top, right, bottom."""
    numbers = all(isinstance(one, int | float) and not isinstance(one, bool) for one in box)
    if len(box) == 4 and numbers:
        left, top, right, bottom = box
        if 0 <= left < right <= width and 0 <= top < bottom <= height:
            return math.floor(left), math.floor(top), math.ceil(right), math.ceil(bottom)
    raise InputError(
        f"box {list(box)!r}: expected left, top, right and bottom in pixels, with 0 <= left < right <= "
        f"{width} and 0 <= top < bottom <= {height}; draw the box anew"
    )


def _cut(colours: Float[np.ndarray, "height width 3"], inside: Marked) -> Marked:
    """Return the object; `inside` says where it may be."""
    flat, free = colours.reshape(-1, 3), inside.ravel()
    borders = _borders(colours)
    mask = _ellipse(inside).ravel()
    models: dict[bool, ColourModel] = {}
    for _ in range(ROUNDS):
        if mask.all() or not mask.any():
            break
        models = {side: _fitted(flat[mask == side], models.get(side)) for side in (True, False)}
        fits = {side: logsumexp(model.log_densities(flat[free]), axis=0) for side, model in models.items()}
        before, mask = mask, _minimum_cut(fits[True] - fits[False], borders, free)
        if (before == mask).all():
            break
    return mask.reshape(inside.shape)


def _ellipse(inside: Marked) -> Marked:
    """Return the ellipse that touches the sides of a box."""
    distances = []
    for axis in (0, 1):
        places = np.flatnonzero(inside.any(1 - axis))
        middle, half = (places[0] + places[-1]) / 2, (places[-1] - places[0] + 1) / 2
        distances.append(((np.arange(inside.shape[axis]) - middle) / half) ** 2)
    return inside & (distances[0][:, None] + distances[1][None] <= 1)


def _fitted(colours: Colours, earlier: ColourModel | None) -> ColourModel:
    """Fit a Gaussian to the colours that each Gaussian of an earlier model explains best."""
    parts = _clusters(colours) if earlier is None else earlier.log_densities(colours).argmax(0)
    groups = [colours[parts == part] for part in np.unique(parts)]
    covariances = [np.cov(group.T, bias=True) + LEAST_VARIANCE * np.eye(3) for group in groups]
    return ColourModel(
        np.array([len(group) for group in groups]) / len(colours),
        np.stack([group.mean(0) for group in groups]),
        np.linalg.inv(np.linalg.cholesky(np.stack(covariances))),
    )


def _clusters(colours: Colours) -> Int[np.ndarray, " pixels"]:
    """Part colours into clusters, fewer than `GAUSSIANS` where there are fewer colours."""
    distinct = len(np.unique(colours, axis=0))
    for count in range(min(GAUSSIANS, distinct), 1, -1):
        try:
            parts: np.ndarray = kmeans2(colours, count, minit="++", missing="raise", rng=0)[1]
            return parts
        except ClusterError:  # a cluster lost all its colours
            continue
    return np.zeros(len(colours), np.int32)


def _borders(colours: Float[np.ndarray, "height width 3"]) -> Borders:
    """Return the pairs of neighbours, eight to a pixel, and what it costs to part them."""
    height, width = colours.shape[:2]
    flat, numbers = colours.reshape(-1, 3), np.arange(height * width).reshape(height, width)
    first, second, lengths = [], [], []
    for down, right in STEPS:
        pixels = numbers[: height - down, max(-right, 0) : width - max(right, 0)].ravel()
        first.append(pixels)
        second.append(pixels + down * width + right)
        lengths.append(np.full(len(pixels), math.hypot(down, right)))
    ends = np.concatenate(first), np.concatenate(second)
    squares = ((flat[ends[0]] - flat[ends[1]]) ** 2).sum(1)
    mean = float(squares.mean()) if squares.size else 0.0
    equal = np.exp(-squares / (2 * mean)) if mean > 0 else np.ones_like(squares)
    return Borders(*ends, SMOOTHNESS * equal / np.concatenate(lengths))


def _minimum_cut(
    gain: Float[np.ndarray, " free_pixels"], borders: Borders, free: Bool[np.ndarray, " pixels"]
) -> Bool[np.ndarray, " pixels"]:
    """Return the cheapest object among the free pixels.

    Args:
        gain: By how much object explains the colour of each free pixel better than background.
        borders: The pairs of neighbours.
        free: The pixels that may be object; the others are background, and together are the sink of the flow.

    Returns:
        True on the object.
    """
    count = len(gain)
    source, sink = count, count + 1
    node = np.full(len(free), sink)
    node[free] = np.arange(count)
    first, second, pixels = node[borders.first], node[borders.second], np.arange(count)
    starts = np.concatenate([first, second, np.full(count, source), pixels])
    ends = np.concatenate([second, first, pixels, np.full(count, sink)])
    most = 2 * len(STEPS) * SMOOTHNESS  # more than all borders of a pixel cost, so more changes nothing
    gain = gain.clip(-most, most)
    costs = np.concatenate([borders.costs, borders.costs, gain.clip(min=0), -gain.clip(max=0)])
    kept = starts != sink
    capacities = np.rint(CAPACITY * costs[kept]).astype(np.int32)
    places = starts[kept].astype(np.int32), ends[kept].astype(np.int32)
    graph = csr_array((capacities, places), shape=(count + 2, count + 2))
    rest = graph - maximum_flow(graph, source, sink).flow
    rest.data[rest.data < 0] = 0
    rest.eliminate_zeros()
    reached = breadth_first_order(rest, source, return_predecessors=False)
    is_object = np.zeros(count + 2, bool)
    is_object[reached] = True
    mask = np.zeros(len(free), bool)
    mask[free] = is_object[:count]
    return mask
