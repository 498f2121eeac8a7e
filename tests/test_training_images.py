"""Test images stay test images: no seed of a training moves them, and cards list what weights have seen."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from torch import nn

from pictures import scene
from torchdoctor.case.config import settings_from
from torchdoctor.case.preparation import prepare
from torchdoctor.case.surroundings import new_folder
from torchdoctor.case.training_images import NOT_KNOWN
from torchdoctor.data.fingerprints import image_hashes
from torchdoctor.data.load import load_tables
from torchdoctor.files.writing import write_json, write_weights
from torchdoctor.models.loading import WithoutDrawing, load_model
from torchdoctor.types import InputError


@pytest.fixture
def folder(tmp_path):
    """Forty different photographs of two categories, undivided."""
    for number in range(40):
        place = tmp_path / "photos" / ("red" if number % 2 else "blue")
        place.mkdir(parents=True, exist_ok=True)
        scene(number)[0].save(place / f"{number:02d}.png")
    return tmp_path / "photos"


def case_of(folder, verb="train", **more):
    about = {
        "model": "small_resnet",
        "data": f"folder:{folder}",
        "image_size": 32,
        "layers": "last:1",
        **more,
    }
    return prepare(settings_from(about), verb, needs_weights=verb != "train")


def saved(case, place, *, card=True):
    """Write the weights of a case as `train` does, and return their file."""
    write_weights(place / "w.safetensors", case.model.state_dict())
    if card:
        write_json(place / "w.json", case.card)
    return str(place / "w.safetensors")


def test_the_division_depends_on_the_files_and_the_split_seed_alone(folder):
    tests = [case_of(folder, seed=seed).data.tests["test"].table.names for seed in (0, 1, 2)]
    assert tests[0] == tests[1] == tests[2]
    assert case_of(folder, split_seed=1).data.tests["test"].table.names != tests[0]


def test_a_card_lists_the_training_images_and_other_divisions_are_refused(folder, tmp_path):
    case = case_of(folder)
    assert case.card["trained_on"]["images"] == len(case.data.train) < 40
    weights = saved(case, tmp_path)
    assert case_of(folder, "checkup", weights=weights, seed=3).notes == ()
    with pytest.raises(
        InputError, match=r"of the 8 images of the test split 'test' were training images.*png"
    ):
        case_of(folder, "checkup", weights=weights, split_seed=1)
    assert case_of(folder, "diagnose", weights=weights, split_seed=1).notes == ()  # it looks at no test image


def test_a_copy_of_a_training_image_under_another_name_is_found(folder, tmp_path):
    case = case_of(folder)
    weights = saved(case, tmp_path)
    other = tmp_path / "other"
    for split, shift in (("train", 50), ("test", 70)):
        for number in range(8):
            place = other / split / ("red" if number % 2 else "blue")
            place.mkdir(parents=True, exist_ok=True)
            scene(number + shift)[0].save(place / f"{number}.png")
    assert case_of(other, "checkup", weights=weights).notes == ()
    seen = folder / case.data.train.table.names[0]
    shutil.copy(seen, other / "test" / seen.parent.name / "copy.png")
    with pytest.raises(InputError, match=r"1 of the 9 images of the test split .test.*copy\.png"):
        case_of(other, "treat", weights=weights)


def test_an_image_that_the_data_itself_has_twice_is_left_to_the_check_of_the_data(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "two" / "train")
    (tmp_path / "two" / "test" / "red").mkdir(parents=True)
    (tmp_path / "two" / "test" / "blue").mkdir()
    shutil.copy(folder / "red" / "01.png", tmp_path / "two" / "test" / "red" / "01.png")
    scene(99)[0].save(tmp_path / "two" / "test" / "blue" / "99.png")
    case = case_of(tmp_path / "two", validation_share=0.05)
    assert (
        case_of(tmp_path / "two", "checkup", weights=saved(case, tmp_path), validation_share=0.05).notes == ()
    )


def test_weights_without_a_card_are_named_only_where_the_test_images_were_divided_off(folder, tmp_path):
    weights = saved(case_of(folder), tmp_path, card=False)
    case = case_of(folder, "checkup", weights=weights)
    assert case.notes[-1] == NOT_KNOWN == case.facts["notes"][-1]
    assert NOT_KNOWN not in case_of(folder, "diagnose", weights=weights).notes


def test_treated_weights_list_what_their_base_has_seen_too(folder, tmp_path):
    weights = saved(case_of(folder, limit=3), tmp_path)
    first = json.loads((tmp_path / "w.json").read_text())["trained_on"]["images"]
    more = case_of(folder, "treat", weights=weights).card["trained_on"]["images"]
    assert first == 6 and more == len(case_of(folder).data.train)


def test_a_damaged_card_is_refused(folder, tmp_path):
    weights = saved(case_of(folder), tmp_path)
    card = json.loads((tmp_path / "w.json").read_text())
    write_json(tmp_path / "w.json", {**card, "trained_on": {"images": 3, "hashes": "no base64!"}})
    with pytest.raises(InputError, match="trained_on"):
        case_of(folder, "checkup", weights=weights)


def test_drawn_scenes_are_told_apart_without_drawing_them(monkeypatch):
    from torchdoctor.data.scenes import scenes

    monkeypatch.setattr(scenes, "draw_scene", lambda *_about: pytest.fail("an image was drawn"))
    tables = load_tables("scenes:3")
    every = [image_hashes(table) for table in (tables.train, tables.validation, *tables.tests.values())]
    assert len(np.unique(np.concatenate(every))) == sum(map(len, every)) == 2000 + 400 + 2 * 960


def test_two_runs_of_the_same_second_have_folders_of_their_own():
    assert len({new_folder("train") for _ in range(20)}) == 20


def test_weights_from_a_file_replace_all_that_a_network_of_the_catalogue_draws(folder, tmp_path):
    case = case_of(folder)
    again = case_of(folder, "diagnose", weights=saved(case, tmp_path), seed=5)
    for name, value in again.model.state_dict().items():
        assert torch.equal(value, case.model.state_dict()[name]), name


@pytest.mark.parametrize("name", ["googlenet"])
def test_a_network_that_draws_until_values_lie_within_bounds_is_built_without_drawing_the_rest(name):
    with WithoutDrawing():
        model = load_model(name, 2, image_size=32)
    assert all(module.weight.shape for module in model.modules() if isinstance(module, nn.Conv2d))
    for shape in ((64,), (32, 16)):  # of memory that holds anything
        garbage = torch.full(shape, 1e6)
        with WithoutDrawing():
            nn.init.trunc_normal_(garbage)
        assert garbage.abs().max() <= 2
