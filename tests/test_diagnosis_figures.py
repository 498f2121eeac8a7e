"""The pictures of a diagnosis hold the right numbers, and draw any name literally."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from fake_results import fake_diagnosis, fake_explanation, fake_robustness
from test_figures import texts
from test_report import HOSTILE
from torchdoctor.diagnosis.sparsity import sparsity
from torchdoctor.display.overlays import overlays
from torchdoctor.report.pictures import figure_files


def test_sparsity_shows_every_diagnosed_category_and_their_median():
    diagnosis = fake_diagnosis(empty=(2,))
    (axes,) = diagnosis.sparsity_figure().axes
    line = axes.lines[0].get_ydata()
    for place, layer in enumerate(diagnosis.layers):
        shares = 100 * np.delete(sparsity(layer.correlation), 2)
        dots = axes.collections[place].get_offsets()[:, 1]
        np.testing.assert_allclose(sorted(dots), sorted(shares))
        assert line[place] == np.median(shares)
    assert [one.get_text() for one in axes.get_xticklabels()] == [one.name for one in diagnosis.layers]


def test_many_layers_keep_their_labels_apart():
    layers = tuple((f"features.{number}.conv", 8) for number in range(90))
    figure = fake_diagnosis(layers=layers).sparsity_figure()
    figure.draw_without_rendering()
    assert len(figure.axes[0].get_xticklabels()) <= 40


def test_noise_curves_show_means_and_ranges():
    found = fake_robustness()
    (axes,) = found.figure().axes
    for line, values in zip(axes.lines, (found.normal, found.restored, found.fooled), strict=True):
        np.testing.assert_allclose(line.get_ydata(), values.mean(1))
    shown = " ".join(texts(axes.figure))
    assert "one of 2 layers at a time, 3 repeats" in shown and "ε = 8/255 fooled 83 %" in shown
    assert "back at the true label" in shown


def test_an_explanation_shows_each_kernel_beside_what_is_usual():
    explanation = fake_explanation("cat", "dog")
    image = np.random.default_rng(0).random((32, 32, 3))
    figure = explanation.figure(image, image[..., 0] > 0.5, cam=np.ones((32, 32)))
    bars = figure.axes[-1].patches
    assert [bar.get_width() for bar in bars] == [2.5, 1.5]
    marks = [one.get_offsets()[:, 0] for one in figure.axes[-1].collections]
    assert any(np.array_equal(one, [0.4, 0.6]) for one in marks)
    shown = texts(figure)
    assert "layer3.conv2[17]" in shown and "Grad-CAM" in shown
    assert any("it becomes cat: they decide" in one.replace("\n", " ") for one in shown)
    still = texts(fake_explanation("cat", "dog", because=False).figure(image))
    assert (
        any("stays dog: they do not decide" in one.replace("\n", " ") for one in still)
        and "Grad-CAM" not in still
    )
    nothing = texts(fake_explanation("cat", "dog").figure(image, cam=np.zeros((32, 32))))
    assert "Grad-CAM: nothing positive" in nothing


def test_overlays_have_one_scale_for_each_layer():
    image = np.full((16, 16, 3), 0.5)
    low, high = np.full((16, 16), 0.25), np.full((16, 16), 1.0)
    figure = overlays([("one", image), ("two", image)], [[("a", low), ("b", low)], [("a", high), ("b", low)]])
    drawn = [axes.images[0].get_array() for axes in figure.axes]
    assert len(drawn) == 6
    assert not np.allclose(drawn[1], drawn[4])  # a quarter of the layer's top, and the top
    np.testing.assert_allclose(drawn[2], drawn[5])


def test_hostile_names_are_drawn_literally_and_files_repeat():
    image = np.zeros((8, 8, 3))
    for name in HOSTILE:
        figure = overlays([(name, image)], [[(name, image[..., 0])]])
        files = figure_files(figure)
        assert set(files) == {"png", "svg"} and files == figure_files(figure)
        assert Image.open(io.BytesIO(files["png"])).size[0] > 500
        assert b"<script" not in files["svg"] and b"<img" not in files["svg"]
