"""What a GPU is used for by default changes no result: tried on the CPU, with what a GPU would answer."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from pictures import RAW, table_of
from torchdoctor.case.device import precision_on
from torchdoctor.case.memory_format import (
    FILE,
    FormatTrial,
    settle_format,
    try_channels_last,
    use_channels_last,
)
from torchdoctor.case.preparation import prepare
from torchdoctor.case.settings import Settings
from torchdoctor.data import pixels as pixels_module
from torchdoctor.data.arrangement import loaded_to
from torchdoctor.data.device_images import fits_on
from torchdoctor.data.loader import CPU, Loader
from torchdoctor.data.pixels import Preprocessing
from torchdoctor.diagnosis.diagnose import diagnose
from torchdoctor.images.batches import Batch, ShuffledBatches
from torchdoctor.models.catalogue import MODELS
from torchdoctor.models.loading import load_model
from torchdoctor.network.copying import copy_of
from torchdoctor.processes import Processes
from torchdoctor.treatment.recipe import Recipe
from torchdoctor.treatment.treat import treat

GPU = torch.device("cuda")
LAYERS = MODELS["small_resnet"].layers
PARTS = ("images", "labels", "ids", "masks", "annotated")


def clock_of(*seconds):
    """A clock that tells these seconds again and again, and lets the work be done."""
    told = itertools.cycle(seconds)

    def clock(action, _device):
        action()
        return next(told)

    return clock


def photographs(count=12, size=24):
    generator = torch.Generator().manual_seed(0)
    return Batch(
        torch.randn(count, 3, size, size, generator=generator), torch.arange(count) % 3, torch.arange(count)
    )


@pytest.fixture
def model():
    torch.manual_seed(0)
    return load_model("small_resnet", 3).eval()


def test_precision_is_decided_by_what_all_cards_can_do():
    assert precision_on("auto", CPU) == "fp32"
    assert (
        precision_on("auto", GPU, capability=(8, 0)) == precision_on("auto", GPU, capability=(9, 0)) == "bf16"
    )
    assert precision_on("auto", GPU, capability=(7, 5)) == "fp32"
    assert precision_on("fp16", CPU) == "fp16"

    class Two(Processes):
        def gather(self, value):
            return [(7, 0), value]

    assert precision_on("auto", GPU, Two(1, 2), capability=(9, 0)) == "fp32"


def test_precision_auto_is_recorded_as_what_it_became(tmp_path):
    settings = Settings(
        model="small_resnet",
        data="scenes",
        limit=4,
        out=str(tmp_path / "run"),
        device="cpu",
        precision="auto",
    )
    assert prepare(settings, "train", needs_weights=False).plan.precision == "fp32"


def test_images_are_kept_on_a_gpu_with_room_for_them():
    assert fits_on(GPU, 100, free=1000) and not fits_on(GPU, 101, free=1000)
    assert not fits_on(CPU, 1, free=1000)


@pytest.mark.parametrize("augment", ["crop_flip", "crop", "none"])
@pytest.mark.parametrize("masked", [True, False])
def test_batches_of_kept_images_are_those_of_the_loader(masked, augment, monkeypatch):
    how = Preprocessing(32, (0.5, 0.25, 0.1), (0.2, 0.5, 2.0))
    plain = Loader(table_of(21, masked=masked), how, 8, augment=augment)
    monkeypatch.setattr(pixels_module, "fits_on", lambda _device, _size: True)
    kept = Loader(table_of(21, masked=masked), how, 8, augment=augment)
    assert plain.store.on(CPU) is not None  # from now on; the tables are apart
    usual = replace(plain, store=replace(plain.store))
    usual.store._on_devices[CPU] = None
    if masked:
        usual, kept = usual.with_annotations([1, 4, 6], 2), kept.with_annotations([1, 4, 6], 2)
    looks = [
        (usual, kept), (usual.select([9, 3]), kept.select([9, 3])),
        (usual.epoch(0, 1), kept.epoch(0, 1)), (usual.epoch(3, 1), kept.epoch(3, 1)),
    ]  # fmt: skip
    for one, other in (pair for look in looks for pair in zip(*look, strict=True)):
        for part in PARTS:
            mine, theirs = getattr(one, part), getattr(other, part)
            assert (mine is None) == (theirs is None)
            assert mine is None or (mine.dtype == theirs.dtype and torch.equal(mine, theirs))
    assert "kept decoded on cpu" in kept.reading


def test_images_are_copied_to_the_device_once(monkeypatch):
    monkeypatch.setattr(pixels_module, "fits_on", lambda _device, _size: True)
    loader = Loader(table_of(10), RAW, 4)
    next(iter(loader.select([3, 4])))
    there = loader.store.on(CPU)
    assert np.flatnonzero(there.copied).tolist() == [3, 4]
    there.images[3] = 7
    assert torch.allclose(next(iter(loader.select([3]))).images, torch.tensor(7 / 255))


def test_all_splits_load_to_the_device(tmp_path):
    settings = Settings(model="small_resnet", data="scenes", limit=4, out=str(tmp_path / "run"), device="cpu")
    data = prepare(settings, "train", needs_weights=False).data
    assert {loader.device for loader in data.loaders.values()} == {CPU}
    moved = loaded_to(data, torch.device("meta"))
    assert {loader.device.type for loader in moved.loaders.values()} == {"meta"}
    assert next(iter(moved.train)).images.device.type == "meta"  # bytes were copied, and normalised there


@pytest.mark.parametrize(
    ("seconds", "chosen", "said"),
    [
        ((1.0, 0.9), True, "channels last \\("),
        ((1.0, 0.91), False, "as usual \\(with channels last a forward"),
    ],
)
def test_channels_last_has_to_be_clearly_faster(model, seconds, chosen, said):
    trial = try_channels_last(model, photographs(), list(LAYERS), clock_of(*seconds))
    assert trial.chosen == chosen and (trial.usual, trial.channels_last) == seconds
    assert re.search(said, trial.sentence)
    assert all(value.is_contiguous() for value in model.parameters())


def test_channels_last_is_off_where_the_evidence_differs():
    assert FormatTrial(1.0, 0.5, 1e-5).chosen
    trial = FormatTrial(1.0, 0.5, 1.1e-5)
    assert not trial.chosen and "evidence differs" in trial.sentence
    assert not FormatTrial(1.0, 0.5, float("inf")).chosen


class Flattening(nn.Module):
    """A network that asks for the usual order of memory."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4 * 22 * 22, 3)

    def forward(self, images):
        return self.fc(self.conv(images).view(len(images), -1))


def test_channels_last_is_not_for_every_network():
    linear = nn.Sequential(nn.Flatten(), nn.Linear(3 * 24 * 24, 3))
    assert try_channels_last(linear, photographs(), []) is None
    assert try_channels_last(Flattening(), photographs(), ["conv"]) is None


def test_channels_last_changes_no_result(model):
    batch = photographs(24)
    other = copy_of(model)
    use_channels_last(other)
    last = other.get_parameter(
        next(name for name, value in other.named_parameters() if value.shape[1:2] > (3,))
    )
    assert last.is_contiguous(memory_format=torch.channels_last) and not last.is_contiguous()
    copied = copy_of(other)
    assert any(not value.is_contiguous() for value in copied.parameters())
    found = [diagnose(each, [batch], layers=list(LAYERS), draws=2, confidence=0.0) for each in (model, other)]
    assert found[0].model_sha256 == found[1].model_sha256
    for one, two in zip(*(each.layers for each in found), strict=True):
        largest = np.nanmax(np.abs(one.correlation))
        assert np.nanmax(np.abs(one.correlation - two.correlation)) <= 1e-5 * largest
    arms = [
        treat(
            each, ShuffledBatches((batch,)), diagnosis, arms=["treated", "averaging"],
            constraints=["channel"], seeds=1, draws=1, recipe=Recipe(epochs=2, learning_rate=0.01),
        )
        for each, diagnosis in zip((model, other), found, strict=True)
    ]  # fmt: skip
    for name in ("control", "treated", "averaging"):
        one, two = (each.arm(name, 0).state for each in arms)
        for part, value in one.items():
            assert float((value - two[part]).abs().max()) <= 1e-4 * max(1.0, float(value.abs().max()))


def test_a_run_computes_as_it_began(tmp_path):
    settings = Settings(
        model="small_resnet", data="scenes", limit=4, batch_size=8, out=str(tmp_path / "run"), device="cpu"
    )
    case = prepare(settings, "train", needs_weights=False)
    assert "channels last (" in settle_format(case, tmp_path, clock_of(1.0, 0.5))
    assert any(not value.is_contiguous() for value in case.model.parameters())
    again = prepare(settings, "train", needs_weights=False)
    slower = clock_of(0.5, 1.0)  # would choose otherwise
    assert "channels last (" in settle_format(again, tmp_path, slower)
    (tmp_path / FILE).unlink()
    third = prepare(settings, "train", needs_weights=False)
    assert "as usual" in settle_format(third, tmp_path, slower)
    assert all(value.is_contiguous() for value in third.model.parameters())
