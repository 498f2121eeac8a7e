"""Loaders: batches in order, keyed epochs, masks that follow their images."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from pictures import RAW, is_red, same, scene, table_of, write_split
from torchdoctor.data import decoder, shared_memory
from torchdoctor.data import loader as loader_module
from torchdoctor.data import pixels as pixels_module
from torchdoctor.data.load import load_data
from torchdoctor.data.loader import Loader
from torchdoctor.data.pixels import Preprocessing, fit
from torchdoctor.data.settings import DataSettings
from torchdoctor.data.table import ImageTable
from torchdoctor.images.batches import TrainingImages
from torchdoctor.types import InputError


def test_a_loader_is_training_images_in_table_order():
    loader = Loader(table_of(21), RAW, batch_size=8)
    assert isinstance(loader, TrainingImages) and len(loader) == 21
    batches = list(loader)
    assert [len(batch.ids) for batch in batches] == [8, 8, 5]
    assert torch.cat([batch.ids for batch in batches]).tolist() == list(range(21))
    first = np.asarray(scene(0)[0]).transpose(2, 0, 1) / np.float32(255)
    assert np.allclose(batches[0].images[0], first, atol=1e-6)
    assert all(same(one, other) for one, other in zip(batches, loader, strict=True))


def test_normalisation_is_that_of_the_formula():
    preprocessing = Preprocessing(32, (0.5, 0.25, 0.1), (0.2, 0.5, 2.0))
    batch = next(iter(Loader(table_of(3), preprocessing)))
    raw = next(iter(Loader(table_of(3), RAW))).images
    expected = (raw - torch.tensor(preprocessing.mean).view(3, 1, 1)) / torch.tensor(preprocessing.std).view(
        3, 1, 1
    )
    assert torch.allclose(batch.images, expected, atol=1e-5)
    assert Preprocessing.from_json(json.loads(json.dumps(preprocessing.to_json()))) == preprocessing
    with pytest.raises(InputError, match="std above 0"):
        Preprocessing.from_json({"image_size": 8, "mean": [0, 0, 0], "std": [0, 1, 1]})


@pytest.mark.parametrize("kept", [True, False])
def test_masks_follow_the_augmentation(kept, monkeypatch):
    monkeypatch.setattr(pixels_module, "CACHE_BYTES", 2**30 if kept else 0)
    loader = Loader(table_of(20), RAW, batch_size=7)
    for batch in loader.epoch(2, 9):
        assert torch.equal(is_red(batch.images), batch.masks)
    plain = {int(i): m for batch in loader for i, m in zip(batch.ids, batch.masks, strict=True)}
    moved = {int(i): m for batch in loader.epoch(2, 9) for i, m in zip(batch.ids, batch.masks, strict=True)}
    assert sum(torch.equal(plain[one], moved[one]) for one in plain) < 5


def test_an_image_is_moved_as_torchvision_moves_it_under_its_key():
    loader = Loader(table_of(9), RAW, batch_size=4)
    transform = v2.Compose([v2.RandomCrop(32, padding=4, padding_mode="reflect"), v2.RandomHorizontalFlip()])
    for batch in loader.epoch(1, 4):
        for image, identity in zip(batch.images, batch.ids.tolist(), strict=True):
            with torch.random.fork_rng(devices=[]):
                key = np.random.SeedSequence([4, 1, identity, 0]).generate_state(1, np.uint64)[0]
                torch.manual_seed(int(key))
                expected = transform(fit(scene(identity)[0], None, 32)[0])
            assert torch.allclose(image, expected / 255, atol=1e-6)


def test_augmentation_can_be_less_or_none():
    plain = next(iter(Loader(table_of(12), RAW))).images
    none = next(Loader(table_of(12), RAW, augment="none").epoch(0, 0))
    assert none.ids.tolist() != list(range(12)) and torch.equal(none.images, plain[none.ids])
    crop = next(Loader(table_of(12), RAW, augment="crop").epoch(0, 0))
    padded = torch.nn.functional.pad(plain, (4, 4, 4, 4), mode="reflect")
    windows = padded.unfold(2, 32, 1).unfold(3, 32, 1)
    for image, identity in zip(crop.images, crop.ids.tolist(), strict=True):
        matches = (windows[identity] == image[:, None, None]).all(dim=(0, 3, 4))
        assert matches.sum() == 1


def test_epochs_are_keyed(monkeypatch):
    loader = Loader(table_of(23), RAW, batch_size=5).with_annotations(range(0, 23, 4), 2)
    state = torch.get_rng_state()
    here = list(loader.epoch(3, 1))
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(99)
    assert all(same(one, other) for one, other in zip(here, loader.epoch(3, 1), strict=True))
    orders = {tuple(torch.cat([b.ids for b in loader.epoch(n, s)]).tolist()) for n in (0, 1) for s in (0, 1)}
    assert len(orders) == 4
    monkeypatch.setattr(pixels_module, "CACHE_BYTES", 0)
    for workers in (0, 2):
        other = Loader(loader.table, RAW, 5, workers, annotated=loader.annotated, annotated_per_batch=2)
        assert all(same(a, b) for a, b in zip(here, other.epoch(3, 1), strict=True))


def test_annotated_images_are_balanced_and_alone_show_masks():
    chosen = [1, 4, 6, 10, 13]
    loader = Loader(table_of(20), RAW, batch_size=6).with_annotations(chosen, 2)
    assert loader.steps_per_epoch == 5
    regular, drawn = [], []
    for number in range(5):
        batches = list(loader.epoch(number, 0))
        assert len(batches) == 5
        for batch in batches:
            assert batch.annotated.tolist() == [identity in chosen for identity in batch.ids.tolist()]
            assert torch.equal(batch.masks, is_red(batch.images) * batch.annotated.view(-1, 1, 1, 1))
            drawn += batch.ids[-2:].tolist()
        regular.append(sorted(identity for batch in batches for identity in batch.ids[:-2].tolist()))
    assert all(one == list(range(20)) for one in regular)
    assert sorted(drawn) == sorted(chosen * 10)


def test_no_mask_means_none_and_a_last_single_image_is_merged():
    loader = Loader(table_of(17, masked=False), RAW, batch_size=8)
    batches = list(loader.epoch(0, 0))
    assert [len(batch.ids) for batch in batches] == [8, 9] and loader.steps_per_epoch == 2
    assert all(batch.masks is None and batch.annotated is None for batch in batches)
    assert [len(batch.ids) for batch in loader] == [8, 8, 1]
    assert [len(batch.ids) for batch in Loader(table_of(1), RAW).epoch(0, 0)] == [1]


def test_selected_loaders_share_decoded_images():
    table, reads = table_of(12), []
    counted = ImageTable(
        table.classes,
        table.labels,
        table.names,
        table.ids,
        lambda p: (reads.append(p), table.read(p))[1],
        table.has_mask,
    )
    loader = Loader(counted, RAW)
    (chosen,) = list(loader.select([9, 3]))
    assert chosen.ids.tolist() == [9, 3] and sorted(reads) == [3, 9]
    assert np.array_equal(chosen.masks[1, 0] * 255, scene(3)[1])
    list(loader), list(loader.epoch(0, 0)), list(loader.with_annotations([3], 1).epoch(0, 0))
    assert sorted(reads) == list(range(12))


def test_loader_errors():
    loader = Loader(table_of(6), RAW, batch_size=4)
    with pytest.raises(InputError, match="image id 77"):
        loader.select([1, 77])
    with pytest.raises(InputError, match="annotated_per_batch 4: expected 0 to batch_size - 1, which is 3"):
        loader.with_annotations([1], 4)
    with pytest.raises(InputError, match="at least one annotated image"):
        loader.with_annotations([], 1)
    with pytest.raises(InputError, match="have a mask"):
        Loader(table_of(6, masked=False), RAW).with_annotations([1], 1)


def test_a_worker_error_keeps_its_message(tmp_path, monkeypatch):
    monkeypatch.setattr(pixels_module, "CACHE_BYTES", 0)
    write_split(tmp_path, {"cat": 9, "dog": 9})
    for file in (tmp_path / "cat").iterdir():
        file.write_bytes(b"no image")
    loader = load_data(f"folder:{tmp_path}", image_size=32, settings=DataSettings(workers=1)).train
    with pytest.raises(InputError) as caught:
        list(loader)
    assert "cannot be decoded as an image" in str(caught.value) and "\n" not in str(caught.value)


def test_other_sizes_are_scaled_and_cut_alike(tmp_path):
    image, mask = scene(1, 64)
    pixels, shape = fit(image, mask, 32)
    assert pixels.shape == (3, 32, 32) and set(shape.unique().tolist()) == {0, 1}
    inside = (is_red(pixels[None].float() / 255)[0] > 0) & (shape == 0)
    assert not inside.any()
    wide, wide_mask = fit(image.crop((0, 0, 64, 32)), mask.crop((0, 0, 64, 32)), 32)
    assert wide.shape == (3, 32, 32)
    assert torch.equal(wide_mask[0], torch.from_numpy(np.array(mask))[:32, 16:48] // 255)


def test_a_crop_that_leaves_the_object_behind_is_not_annotated():
    table = table_of(16)
    corner = Image.new("L", (32, 32))
    corner.putpixel((0, 0), 255)
    table = replace(
        table, read=lambda position: (scene(position)[0], corner), has_mask=np.ones(16, dtype=bool)
    )
    loader = Loader(table, RAW, batch_size=16, augment="crop")
    batch = next(loader.epoch(0, 0))
    inside = batch.masks.flatten(1).any(1)
    assert not inside.all() and torch.equal(batch.annotated, inside)
    assert bool(next(iter(loader)).annotated.all())


def test_too_little_shared_memory_is_said_and_done_without(monkeypatch, tmp_path):
    monkeypatch.setattr(shared_memory, "SHARED_MEMORY", tmp_path)
    assert shared_memory.workers_that_fit(2, 1000) == 2 and shared_memory.workers_that_fit(0, 1 << 60) == 0
    with pytest.warns(UserWarning, match="shared memory.*--workers 0"):
        assert shared_memory.workers_that_fit(2, 1 << 60) == 0
    monkeypatch.setattr(shared_memory, "SHARED_MEMORY", tmp_path / "absent")
    assert shared_memory.workers_that_fit(2, 1 << 60) == 2


def test_the_first_batch_is_that_of_the_epoch_and_no_other_image_is_decoded():
    loader = Loader(table_of(21), RAW, batch_size=4, augment="crop_flip")
    first = loader.first_batch(3)
    assert int(loader.store._decoded.sum()) == 4
    assert same(first, next(iter(loader.epoch(0, 3))))


def test_processes_load_only_what_does_not_fit_decoded_into_memory(monkeypatch):
    asked = []
    monkeypatch.setattr(loader_module, "workers_that_fit", lambda workers, _: asked.append(workers) or 0)
    monkeypatch.setattr(decoder.os, "sched_getaffinity", lambda _: range(3), raising=False)
    monkeypatch.setattr(decoder.sys, "platform", "linux")
    for kept, expected in ((2**30, [0, 0, 0, 0]), (0, [3, 3, 0, 5])):
        monkeypatch.setattr(pixels_module, "CACHE_BYTES", kept)
        loader = Loader(table_of(20), RAW, batch_size=4)
        batches = list(loader.epoch(0, 0))
        assert len(list(loader)) == len(batches) == 5 and same(loader.first_batch(0), batches[0])
        list(replace(loader, workers=5))
        assert asked == expected
        asked.clear()
    assert decoder.workers_of("auto", 2) == 2 and decoder.workers_of(0, 9) == 0
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert decoder.workers_of("auto", 9) == 1
    monkeypatch.setattr(decoder.sys, "platform", "darwin")
    assert decoder.workers_of("auto", 9) == 0 and decoder.workers_of(2, 9) == 2
