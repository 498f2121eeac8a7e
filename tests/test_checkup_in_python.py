"""A checkup in Python runs the stages of the command on networks and images that are at hand."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import torchdoctor as td
from test_treatment import Net, data
from torchdoctor.data.loader import Loader
from torchdoctor.data.tensor_loader import tensor_loader

QUICK = {"layers": ["conv2"], "epochs": 1, "seeds": 1, "confidence": 0.0, "augment": "none"}


@pytest.fixture(scope="module")
def images():
    """48 images of 3 categories with their masks, as tensors."""
    batches = data()
    return tuple(torch.cat([getattr(one, name) for one in batches]) for name in ("images", "labels", "masks"))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Net().train()


@pytest.fixture(scope="module")
def named(model, images):
    """A checkup with named arms, in a temporary folder."""
    loader = DataLoader(TensorDataset(*images), batch_size=12, shuffle=True)
    tests = {"first": [images], "second": [images[:2]]}
    return td.checkup(
        model, loader, [images], tests, arms=["treated"], classes=["a", "b", "c"], learning_rate=0.01, **QUICK
    )


def test_named_arms_are_compared_on_every_test_split(named, model):
    assert model.training and named.treatment.names() == ("control", "treated")
    assert named.comparison.primary == "first" and set(named.comparison.splits) == {"first", "second"}
    assert named.diagnosis.classes == ("a", "b", "c") == named.comparison.classes
    assert [one["constraint"] for one in named.treatment.prescription] == ["channel", "space"]
    assert named.treatment.arm("control", 0).steps == 5  # of 12 images, 2 of them drawn for their masks
    assert named.causes.images == 48 and named.suspects.images == 48
    assert named.exit_code in (0, 3, 4) and repr(named).startswith("Checkup(treated: ")
    assert named.state.keys() == model.state_dict().keys()


def test_the_report_says_how_to_go_on_in_python(named, tmp_path):
    page = named.report(tmp_path / "report.html").read_text(encoding="utf-8")
    assert "torchdoctor.checkup(model, train, validation, test, ...)" in page
    assert "model = ...  # Net, built as for the checkup" in page
    assert "torchdoctor checkup" not in page and "torchdoctor review" not in page
    assert "the images came normalised" in page
    card = (named.folder / "model" / "README.md").read_text(encoding="utf-8")
    assert "built as for the checkup" in card and "torchdoctor predict" not in card
    with pytest.raises(td.InputError, match="exists already: give another path"):
        named.report(tmp_path / "report.html")
    with pytest.raises(td.InputError, match="folder that does not exist"):
        named.report(tmp_path / "none" / "report.html")


def test_validation_images_choose_and_the_run_folder_stays(model, images, tmp_path, blank_figures):
    said, before = [], copy.deepcopy(model.state_dict())
    pairs = list(zip(*images[:2], strict=True))
    found = td.checkup(model, pairs, None, pairs, out=tmp_path / "run", say=said.append, **QUICK)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    trials = json.loads((tmp_path / "run" / "trials.json").read_text())
    assert trials["handed_back"]["use"] in ("base", "control", found.comparison.arm)
    assert found.comparison.arm in (trials["compared"], trials["chosen"]["name"])
    assert any("choosing a cure" in one for one in said)
    assert 0 < found.causes.images < 48 and found.causes.images + found.suspects.images == 48
    assert (tmp_path / "run" / "manifest.json").is_file()
    with pytest.raises(td.InputError, match="exists already and is never overwritten"):
        td.checkup(model, pairs, None, pairs, out=tmp_path / "run", **QUICK)


def test_tensors_are_loaded_as_they_are(images):
    loader = tensor_loader([images], "train", ["a", "b", "c"], batch_size=16, augment="none")
    batch = next(iter(loader))
    assert torch.equal(batch.images, images[0][:16]) and torch.equal(batch.masks, images[2][:16])
    assert loader.with_annotations([3, 5], 2).steps_per_epoch == 4
    chosen = next(iter(loader.select([40, 7])))
    assert chosen.ids.tolist() == [40, 7] and torch.equal(chosen.images, images[0][[40, 7]])
    seen = torch.cat([one.ids for one in loader.epoch(0, 1)])
    assert sorted(seen.tolist()) == list(range(48)) and not torch.equal(seen, torch.arange(48))
    moved = next(replace(loader, augment="crop_flip").epoch(0, 1))
    assert not torch.equal(moved.images, next(loader.epoch(0, 1)).images)


def test_pictures_undo_the_normalisation_that_the_range_suggests():
    pixels = torch.randint(
        0, 256, (8, 3, 10, 14), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    pixels[0, :, 0, 0], pixels[0, :, 0, 1] = 0, 255
    mean, std = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1), torch.tensor([0.2, 0.25, 0.3]).view(3, 1, 1)
    loader = tensor_loader([((pixels / 255 - mean) / std, torch.zeros(8).long())], "train", ["a", "b"])
    assert loader.preprocessing.mean == pytest.approx((0.5, 0.4, 0.3), abs=1e-6)
    assert loader.preprocessing.std == pytest.approx((0.2, 0.25, 0.3), abs=1e-6)
    picture, mask = loader.table.read(3)
    assert np.array_equal(np.array(picture), pixels[3].permute(1, 2, 0).numpy()) and mask is None
    assert next(loader.epoch(0, 0)).images.shape == (8, 3, 10, 14)


def test_what_cannot_be_checked_up_is_refused(model, images):
    def run(train=(images,), **settings):
        return td.checkup(model, list(train), [images], [images], **{**QUICK, **settings})

    with pytest.raises(
        td.InputError, match=r"'data' is no setting of a checkup in Python; there are: .*arms"
    ):
        run(data="folder:photos")
    with pytest.raises(td.InputError, match="--epochs 0: nothing would be treated"):
        run(epochs=0)
    with pytest.raises(td.InputError, match="train: label 2, and there are 2 categories; expected 0 to 1"):
        run(classes=["a", "b"])
    with pytest.raises(td.InputError, match="gives 3 logits, and 'memory:images' has 4 categories"):
        run(classes=["a", "b", "c", "d"])
    with pytest.raises(td.InputError, match="primary 'night': no such test split; there are: test"):
        run(primary="night")
    with pytest.raises(td.InputError, match="train: there is no image"):
        run(train=())
    grey = images[0].mean(1, keepdim=True).expand(-1, 2, -1, -1)
    with pytest.raises(td.InputError, match=r"train: images of 2 channels; .* takes 3 or 1"):
        tensor_loader([(grey, images[1])], "train", ["a", "b", "c"])
    with pytest.raises(td.InputError, match=r"images of \(3, 12, 12\) and of \(3, 8, 8\); expected one size"):
        tensor_loader([images[:2], (images[0][..., :8, :8], images[1])], "train", ["a", "b", "c"])
    twice = td.Batch(images[0], images[1], torch.zeros(48).long())
    with pytest.raises(td.InputError, match="48 images have 1 different ids"):
        tensor_loader([twice], "train", ["a", "b", "c"])


def test_a_loader_of_files_is_used_as_it_is(photos):
    splits = td.load_data(f"folder:{photos}")
    assert isinstance(splits.train, Loader)
    assert tensor_loader(splits.train, "train", splits.classes) is splits.train


def test_a_checkup_in_another_launched_process_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(td.InputError, match="works in one process, and several were launched"):
        td.checkup(Net(), data(), data(), data(), **QUICK)
