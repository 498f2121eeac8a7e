"""An object is cut out of its box by its colours."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from torchdoctor import InputError
from torchdoctor.review.cut_out import Borders, cut_out
from torchdoctor.review.cut_out import _borders as borders_of
from torchdoctor.review.cut_out import _minimum_cut as minimum_cut

SIDE = 64
OBJECT, GROUND = (0.8, 0.3, 0.2), (0.2, 0.5, 0.7)


def disc(height, width, middle, radius):
    rows, columns = np.mgrid[:height, :width] + 0.5
    return (rows - middle[0]) ** 2 + (columns - middle[1]) ** 2 <= radius**2


def drawn(mask, colours=(OBJECT, GROUND), noise=0.05):
    """Draw an object before a ground; return the image, 0 to 1."""
    image = np.where(mask, *np.array(colours)[:, :, None, None])
    image = image + np.random.default_rng(0).normal(0, noise, image.shape)
    return image.clip(0, 1).astype(np.float32)


def box_around(mask, loose=0.0):
    """Return the box around a mask, wider by a share of its sides where the image has room."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    left, top, right, bottom = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    across, down = loose * (right - left), loose * (bottom - top)
    return (
        float(max(left - across, 0)), float(max(top - down, 0)),
        float(min(right + across, mask.shape[1])), float(min(bottom + down, mask.shape[0])),
    )  # fmt: skip


def overlap(mask, wanted):
    return (mask & wanted).sum() / (mask | wanted).sum()


RING = disc(SIDE, SIDE, (30, 30), 16)
CROSS = np.zeros((SIDE, SIDE), bool)
CROSS[14:50, 27:37] = CROSS[27:37, 14:50] = True
CORNER = disc(SIDE, SIDE, (4, 60), 14)


@pytest.mark.parametrize("loose", [0.0, 0.1], ids=["tight", "loose"])
@pytest.mark.parametrize("mask", [RING, CROSS, CORNER], ids=["disc", "cross", "at the border"])
def test_an_object_of_another_colour_is_cut_out(mask, loose):
    box = box_around(mask, loose)
    cut = cut_out(drawn(mask), box)
    assert overlap(cut, mask) > 0.9
    assert np.array_equal(cut, cut_out(drawn(mask), box))  # the same again
    left, top, right, bottom = np.floor(box[:2]).astype(int).tolist() + np.ceil(box[2:]).astype(int).tolist()
    outside = np.ones_like(mask)
    outside[top:bottom, left:right] = False
    assert not (cut & outside).any()


def test_colours_may_be_several_and_grey():
    generator = np.random.default_rng(1)
    stripes = np.where((np.arange(SIDE) // 4 % 2)[None, :, None], (0.1, 0.5, 0.2), (0.6, 0.7, 0.3))
    image = np.broadcast_to(stripes, (SIDE, SIDE, 3)).copy()
    image[RING] = np.array([(0.8, 0.2, 0.2), (0.9, 0.9, 0.9)])[generator.integers(0, 2, RING.sum())]
    assert overlap(cut_out(image.transpose(2, 0, 1).astype(np.float32), box_around(RING)), RING) > 0.9
    grey = drawn(RING, ((0.7,) * 3, (0.3,) * 3))[:1].repeat(3, 0)
    assert overlap(cut_out(grey, box_around(RING)), RING) > 0.9


def test_a_box_that_is_the_whole_image_leaves_the_corners_to_go_by():
    assert overlap(cut_out(drawn(RING), (0, 0, SIDE, SIDE)), RING) > 0.9


def test_a_large_image_is_reduced_and_its_mask_has_its_size():
    mask = disc(300, 500, (150, 250), 90)
    cut = cut_out(drawn(mask), box_around(mask, 0.1))
    assert cut.shape == (300, 500) and overlap(cut, mask) > 0.95


@pytest.mark.parametrize("box", [(10, 10, 50, 40), (0, 0, SIDE, SIDE), (3, 3, 3.5, 3.5), (63.2, 0, 64, 64)])
def test_an_image_of_one_colour_gives_some_mask_in_the_box(box):
    image = np.full((3, SIDE, SIDE), 0.4, np.float32)
    cut = cut_out(image, box)
    assert cut.any() and cut.shape == (SIDE, SIDE)
    assert cut[int(box[1]) : int(np.ceil(box[3])), int(box[0]) : int(np.ceil(box[2]))].sum() == cut.sum()


def test_a_single_pixel_has_a_mask():
    assert cut_out(np.zeros((3, 1, 1), np.float32), (0, 0, 1, 1)).tolist() == [[True]]


@pytest.mark.parametrize(
    "box",
    [
        (10, 10, 10, 20), (20, 10, 10, 20), (-1, 0, 5, 5), (0, 0, 65, 5), (0, 0, 5, 64.5), (1, 2, 3),
        (0, 0, float("nan"), 5), (0, 0, "5", 5), (False, 0, True, 5),
    ],
)  # fmt: skip
def test_a_box_that_is_none_is_refused(box):
    with pytest.raises(InputError, match=r"box \[.*\]: expected left, top, right and bottom in pixels"):
        cut_out(drawn(RING), box)


@pytest.mark.parametrize("seed", range(5))
def test_the_cut_is_the_cheapest_of_all(seed):
    generator = np.random.default_rng(seed)
    borders = borders_of(generator.random((3, 4, 3)))
    free = np.ones((3, 4), bool)
    free[0] = False
    gain = generator.normal(0, 15, 8)

    def cost(mask):
        parted = mask[borders.first] != mask[borders.second]
        return borders.costs[parted].sum() - gain[mask[free.ravel()]].sum()

    masks = []
    for bits in itertools.product((False, True), repeat=8):
        mask = np.zeros(12, bool)
        mask[free.ravel()] = bits
        masks.append(mask)
    found = minimum_cut(gain, borders, free.ravel())
    assert cost(found) <= min(map(cost, masks)) + 0.2  # the flow has whole hundredths


def test_neighbours_are_eight_and_borders_of_equal_colours_cost_most():
    colours = np.zeros((3, 3, 3))
    colours[:, 2] = 1
    borders = borders_of(colours)
    assert isinstance(borders, Borders) and len(borders.first) == 6 + 6 + 4 + 4
    pairs = {frozenset(pair): cost for *pair, cost in zip(
        borders.first.tolist(), borders.second.tolist(), borders.costs.tolist(), strict=True
    )}  # fmt: skip
    assert len(pairs) == 20
    assert pairs[frozenset((0, 1))] == 10 and pairs[frozenset((0, 4))] == pytest.approx(10 / 2**0.5)
    assert pairs[frozenset((1, 2))] < 6.5
