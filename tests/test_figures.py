"""Figures hold the right numbers in the right places, and draw any name literally."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.text import Text

from fake_results import CLASSES, fake_comparison, fake_diagnosis, with_first, with_more_arms
from torchdoctor.display.gains import arm_colours
from torchdoctor.display.matrices import kernel_order, normalised_rows
from torchdoctor.display.overlays import DIM, overlay
from torchdoctor.display.style import BLUE, ORANGE, literal
from torchdoctor.proof.split_result import Gain


def texts(figure) -> list[str]:
    """Return everything written in a figure, as it is shown, after drawing it once."""
    figure.draw_without_rendering()
    return [text.get_text().replace(r"\$", "$") for text in figure.findobj(match=Text)]


def test_rows_are_scaled_between_their_extremes():
    values = np.array([[1.0, 3.0, 2.0], [5.0, 5.0, 5.0]])
    assert normalised_rows(values).tolist() == [[0.0, 1.0, 0.5], [0.0, 0.0, 0.0]]


def test_kernels_are_ordered_by_owner_then_strength():
    rows = np.array([[0.1, 0.9, 0.2, 1.0], [1.0, 0.3, 0.4, 0.0], [0.9, 0.0, 0.8, 0.0]])
    known = np.array([True, True, True])
    assert kernel_order(rows, known, 4).tolist() == [3, 1, 0, 2]
    assert kernel_order(rows, known, 3).tolist() == [3, 1, 0]
    assert kernel_order(rows, np.array([True, True, False]), 4).tolist() == [3, 1, 0, 2]
    assert kernel_order(rows, np.array([False, True, True]), 4).tolist() == [0, 1, 3, 2]


def test_the_heat_map_shows_the_ordered_normalised_correlation():
    diagnosis = fake_diagnosis(empty=(2,))
    found = diagnosis.layer("layer3.conv2")
    rows = normalised_rows(found.correlation)
    figure = diagnosis.correlation_figure("layer3.conv2")
    shown = figure.axes[0].images[0].get_array()
    order = kernel_order(rows, diagnosis.counts > 0, 128)
    np.testing.assert_allclose(shown, rows[:, order])
    owners = rows[:, order].argmax(0)
    assert (np.diff(owners) >= 0).all()
    for owner in np.unique(owners):
        assert (np.diff(rows[owner, order[owners == owner]]) <= 0).all()
    dots = figure.axes[0].collections[0].get_offsets()
    assert {tuple(dot) for dot in dots.tolist()} == {
        (column, row) for row, column in np.argwhere(found.correlated[:, order])
    }
    assert texts(figure).count("not diagnosed") == 1


def test_the_heat_map_says_when_kernels_are_left_out():
    figure = fake_diagnosis().correlation_figure("layer3.conv2", most_kernels=40)
    assert figure.axes[0].images[0].get_array().shape == (8, 40)
    assert "the 40 of 128 kernels with the highest maximum" in figure.axes[0].get_title(loc="left")


def test_a_hundred_categories_keep_their_names_apart():
    classes = tuple(f"category {number}" for number in range(100))
    diagnosis = fake_diagnosis(classes, empty=(7, 60), layers=(("features.28", 64),))
    figure = diagnosis.correlation_figure("features.28")
    figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in figure.axes[0].get_yticklabels()]
    assert len(boxes) == 100
    assert all(above.y0 >= below.y1 - 1 for above, below in pairwise(boxes))


def test_the_confusion_matrix_holds_shares_in_percent():
    diagnosis = fake_diagnosis()
    shown = diagnosis.confusion_figure().axes[0].images[0].get_array()
    np.testing.assert_allclose(np.asarray(shown).sum(1), 100.0)
    np.testing.assert_allclose(np.diag(shown), diagnosis.accuracy)


def test_gains_are_sorted_coloured_by_sign_and_missing_ones_are_a_dash():
    comparison = fake_comparison()
    gains = (1.0, -2.0, 3.0, math.nan, 0.5, -0.5, 8.0, 2.0)
    split = with_first(comparison.splits["shifted"], gain_per_category=gains)
    figure = replace(comparison, splits={"shifted": split}).category_gains_figure("shifted")
    left, right = figure.axes
    assert [bar.get_width() for bar in right.patches] == [8.0, 3.0, 2.0, 1.0, 0.5, -0.5, -2.0, 0.0]
    names = [label.get_text() for label in left.get_yticklabels()]
    assert names == ["frog", "boat", "truck", "airplane", "deer", "dog", "bird", "cat"]
    from matplotlib.colors import to_rgba

    assert right.patches[0].get_facecolor() == to_rgba(BLUE)
    assert right.patches[6].get_facecolor() == to_rgba(ORANGE)
    written = [text.get_text() for text in right.texts]
    assert written == ["+8.0", "+3.0", "+2.0", "+1.0", "+0.5", "−0.5", "−2.0", "-"]
    base = comparison.splits["shifted"].per_category["base"]
    assert [bar.get_width() for bar in left.patches] == [base[CLASSES.index(name)] for name in names]


def test_the_summary_shows_every_seed_and_the_interval():
    comparison = fake_comparison()
    figure = comparison.accuracy_figure()
    left, right = figure.axes
    seeds = [dots.get_offsets()[:, 0].tolist() for dots in left.collections]
    for split in comparison.splits.values():
        assert list(split.accuracy["treated"]) in seeds
        assert [pytest.approx(np.mean(split.accuracy["control"]))] in seeds
    gain = comparison.splits["shifted"].first.gain
    assert list(right.lines[0].get_xdata()) == [gain.low, gain.high]
    assert "+12.4 (+10.0 to +14.8)" in texts(figure)


@pytest.mark.parametrize("gain", [Gain(5.0, -math.inf, math.inf, 0.4, "-"), Gain(*[math.nan] * 4, "-")])
def test_an_unknown_interval_can_be_drawn(gain):
    comparison = fake_comparison()
    split = with_first(comparison.splits["shifted"], gain=gain)
    split = replace(split, accuracy={"base": (math.nan,), "control": (1.0,), "treated": ()})
    replace(comparison, splits={"shifted": split}).accuracy_figure().draw_without_rendering()


def test_overlay_of_nothing_is_the_dimmed_grey_image():
    image = np.random.default_rng(0).uniform(size=(5, 7, 3))
    grey = DIM * (image @ np.array([0.299, 0.587, 0.114]))
    for maximum in (1.0, 0.0, math.nan):
        shown = overlay(image, np.zeros((5, 7)), maximum)
        np.testing.assert_allclose(shown, np.repeat(grey[..., None], 3, axis=2))


def test_overlay_keeps_to_the_given_scale():
    image = np.full((2, 2, 3), 0.5)
    summed = np.array([[0.0, 0.5], [1.0, 2.0]])
    on_two, on_one = overlay(image, summed, 2.0), overlay(image, summed / 2, 1.0)
    np.testing.assert_allclose(on_two, on_one)
    np.testing.assert_allclose(overlay(image, summed, 1.0)[1, 1], overlay(image, summed, 1.0)[1, 0])
    from matplotlib import colormaps

    np.testing.assert_allclose(on_two[1, 1], colormaps["viridis"](1.0)[:3])
    assert not np.allclose(on_two[1, 0], on_two[1, 1])
    assert on_two.min() >= 0 and on_two.max() <= 1


def test_names_are_drawn_literally():
    names = (
        "$a$",
        "$\\frac{1}{0$x$",
        "a$",
        "new\nline",
        "<img onerror=alert(1)>",
        "</script>",
        "x" * 99,
        "é",
    )
    diagnosis = fake_diagnosis(names)
    comparison = fake_comparison(classes=names)
    found = texts(diagnosis.correlation_figure("layer3.conv2"))
    assert {"$a$", "$\\frac{1}{0$x$", "a$", "new line", "</script>"} <= set(found)
    for figure in (diagnosis.confusion_figure(), comparison.category_gains_figure("shifted")):
        assert "$a$" in texts(figure)
    assert literal("abcdefghijklmnopq", 10) == "abcdef…opq"


def test_no_figure_enters_pyplot():
    import sys

    fake_comparison().accuracy_figure()
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or pyplot.get_fignums() == []


def test_every_arm_has_its_own_colour_and_interval():
    comparison = with_more_arms(fake_comparison(), ("swap", "dfr"))
    figure = comparison.accuracy_figure()
    assert len(set(arm_colours(list(comparison.splits["shifted"].accuracy), comparison.arm).values())) == 5
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["base", "control", "treated", "swap", "dfr"]
    intervals = [text.get_text() for text in figure.axes[1].texts]
    assert len(intervals) == 3 * len(comparison.splits)
