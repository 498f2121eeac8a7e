"""The embedded data set: what is planted, what is exact, what never changes."""

from __future__ import annotations

import time

import numpy as np
import pytest

from torchdoctor.data.load import load_tables
from torchdoctor.data.scenes import scenes
from torchdoctor.data.scenes.scenes import AGREEMENT, CLASSES, FAMILIES, SHIFTED, SIZE, TRAINING, Scenes
from torchdoctor.data.scenes.silhouettes import SILHOUETTES, draw_silhouette
from torchdoctor.data.scenes.textures import TEXTURES, draw_texture
from torchdoctor.types import InputError


@pytest.fixture(scope="module")
def tables():
    return load_tables("scenes:7")


def families(table):
    return np.array([FAMILIES.index(name.rsplit("-", 1)[1]) for name in table.names])


def test_splits_are_balanced_and_disjoint(tables):
    assert tables.primary == "shifted" and set(tables.tests) == {"iid", "shifted"}
    assert len(tables.classes) == len(FAMILIES) == 8
    for table in (tables.train, tables.validation, *tables.tests.values()):
        assert len(set(np.bincount(table.labels, minlength=8))) == 1 and table.has_mask.all()
    assert not set(tables.train.ids) & set(tables.validation.ids)
    assert all(800 <= len(table) <= 1000 for table in tables.tests.values())


def test_background_agrees_with_the_category_except_in_shifted(tables):
    for table in (tables.train, tables.validation, tables.tests["iid"]):
        assert np.mean(families(table) == table.labels) == pytest.approx(AGREEMENT, abs=0.05)
    shifted = tables.tests["shifted"]
    counts = np.histogram2d(shifted.labels, families(shifted), bins=8)[0]
    expected = len(shifted) / 64
    assert ((counts - expected) ** 2 / expected).sum() < 110  # chi-square, 63 degrees: p > 0.0002


def test_disagreeing_backgrounds_are_uniform(tables):
    table = tables.train
    strays = (families(table) - table.labels) % 8
    counts = np.bincount(strays, minlength=8)[1:]
    assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 27  # chi-square, 6 degrees


def test_an_image_depends_on_its_key_alone():
    few, many = Scenes(3, SHIFTED, 5, 0.125), Scenes(3, SHIFTED, 9, 0.125)
    assert np.array_equal(few.images, many.images[:5]) and np.array_equal(few.masks, many.masks[:5])
    assert not np.array_equal(few.images, Scenes(4, SHIFTED, 5, 0.125).images)
    assert not np.array_equal(few.images, Scenes(3, TRAINING, 5, 0.125).images)


def test_an_image_is_drawn_when_it_is_first_read_and_only_then(monkeypatch):
    draw, calls = scenes.draw_scene, []
    monkeypatch.setattr(scenes, "draw_scene", lambda *about: calls.append(about) or draw(*about))
    drawn = Scenes(3, SHIFTED, 9, 0.125)
    assert not calls
    image, mask = drawn(7)
    assert drawn.stamp(7) == (image.tobytes(), mask.tobytes()) and len(calls) == 1
    assert drawn.images[7].tobytes() == image.tobytes() and len(calls) == 9
    assert drawn.masks[7].tobytes() == mask.tobytes() and len(calls) == 9


def test_masks_are_exact_and_objects_stand_out():
    drawn = Scenes(5, SHIFTED, 64, 0.125)
    assert set(np.unique(drawn.masks)) == {0, 255}
    for image, mask in zip(drawn.images.astype(float), drawn.masks, strict=True):
        share = np.mean(mask == 255)
        assert 0.02 < share < 0.6
        assert not mask[0].all() and not mask[:, -1].all()
        # One colour on the object: it varies only by the grain and the antialiased edge.
        assert np.abs(image[mask == 255] - np.median(image[mask == 255], axis=0)).mean() < 25


@pytest.mark.parametrize("name", SILHOUETTES)
def test_silhouette_mirrors_exactly_and_stays_inside(name):
    plain = draw_silhouette(name, SIZE, (32.0, 32.0), 20.0, 0.0, False).astype(int)
    mirrored = draw_silhouette(name, SIZE, (32.0, 32.0), 20.0, 0.0, True).astype(int)
    assert np.abs(plain[:, ::-1] - mirrored).mean() < 8
    assert plain.max() == 255 and plain[:8].max() == 0 and plain[:, :8].max() == 0


def test_silhouettes_and_textures_are_distinct():
    covers = np.stack([draw_silhouette(name, SIZE, (32.0, 32.0), 20.0, 0.0, False) for name in CLASSES])
    patterns = np.stack([draw_texture(name, SIZE, 8.0, 0.3, (0.0, 0.0)) for name in TEXTURES])
    assert patterns.min() >= 0 and patterns.max() <= 1
    for drawn, scale in ((covers / 255.0, 0.03), (patterns, 0.1)):
        gaps = [np.abs(one - other).mean() for i, one in enumerate(drawn) for other in drawn[:i]]
        assert min(gaps) > scale


def test_drawing_takes_little_time():
    start = time.process_time()
    assert Scenes(1, TRAINING, 400, AGREEMENT).images.any()
    assert time.process_time() - start < 1.5


@pytest.mark.parametrize("spec", ["scenes:x", "scenes:-1", "scenes:0.5"])
def test_a_bad_seed_is_named(spec):
    with pytest.raises(InputError, match=f"{spec}: expected a seed"):
        load_tables(spec)


def test_default_seed_is_zero_and_origin_repeats_it(monkeypatch):
    for name in ("TRAINING_IMAGES", "VALIDATION_IMAGES", "TEST_IMAGES"):
        monkeypatch.setattr(scenes, name, 16)
    assert load_tables("scenes").origin == "scenes:0" and load_tables("scenes:007").origin == "scenes:7"
    one, other = load_tables("scenes").train, load_tables("scenes:0", seed=5).train
    assert np.array_equal(one.read(3)[0], other.read(3)[0])
