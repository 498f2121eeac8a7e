"""Images come as users of PyTorch have them: loaders, data sets, dictionaries, with and without masks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, WeightedRandomSampler
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from torchdoctor import (
    Batch,
    InputError,
    Recipe,
    compare,
    diagnose,
    find_causes,
    find_suspects,
    treat,
)
from torchdoctor.images.loaders import images_of

NUMBER = 40


def parts():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(NUMBER, 3, 8, 8, generator=generator)
    masks = torch.zeros(NUMBER, 1, 8, 8)
    masks[1:, :, 2:6, 2:6] = 1
    return pixels, torch.arange(NUMBER) % 2, masks


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)).eval()


class Named(Dataset):
    """A data set that gives dictionaries, as Hugging Face's do."""

    def __init__(self, image, label, mask=None):
        self.names = (image, label, mask)

    def __len__(self):
        return NUMBER

    def __getitem__(self, place):
        pixels, labels, masks = parts()
        image, label, mask = self.names
        item = {image: pixels[place], label: int(labels[place]), "text": "not used"}
        return item if mask is None else {**item, mask: masks[place, 0].bool()}


class Stream(IterableDataset):
    def __iter__(self):
        pixels, labels, _ = parts()
        return iter(zip(pixels, labels, strict=True))


pixels, labels, masks = parts()
SOURCES = {
    "batches": lambda: [Batch(pixels, labels, torch.arange(NUMBER))],
    "loader": lambda: DataLoader(TensorDataset(pixels, labels), batch_size=7),
    "shuffled": lambda: DataLoader(TensorDataset(pixels, labels), batch_size=7, shuffle=True),
    "drops": lambda: DataLoader(TensorDataset(pixels, labels), batch_size=7, shuffle=True, drop_last=True),
    "data set": lambda: TensorDataset(pixels, labels),
    "stream": lambda: DataLoader(Stream(), batch_size=7),
    "stream alone": Stream,
    "pixel_values": lambda: Named("pixel_values", "labels"),
    "image": lambda: DataLoader(Named("image", "label"), batch_size=9, shuffle=True),
    "pairs": lambda: [(pixels[:20], labels[:20]), [pixels[20:], labels[20:].tolist()]],
    "iterator": lambda: iter([(pixels, labels[:, None].float())]),
    "singles": lambda: list(zip(pixels, labels.tolist(), strict=True)),
    "arrays": lambda: [(pixels.numpy(), labels.numpy())],
}
MASKED = {
    "triples": lambda: DataLoader(TensorDataset(pixels, labels, masks), batch_size=7, shuffle=True),
    "named": lambda: Named("image", "label", "mask"),
    "flat": lambda: [(pixels, labels, masks[:, 0])],
}


@pytest.mark.parametrize("name", [*SOURCES, *MASKED])
def test_every_source_gives_all_images_with_their_places(name):
    images = images_of({**SOURCES, **MASKED}[name]())
    for _ in range(2):
        batches = list(images)
        assert torch.equal(torch.cat([batch.ids for batch in batches]), torch.arange(NUMBER))
        assert torch.equal(torch.cat([batch.images for batch in batches]), pixels)
        assert torch.equal(torch.cat([batch.labels for batch in batches]), labels)
        if name in MASKED:
            assert torch.equal(torch.cat([batch.masks for batch in batches]), masks)
            assert torch.equal(torch.cat([batch.annotated for batch in batches]), torch.arange(NUMBER) > 0)
        else:
            assert all(batch.masks is None for batch in batches)


@pytest.mark.parametrize("name", ["shuffled", "pixel_values", "data set", "iterator"])
def test_every_function_takes_every_source(name):
    model, make = network(), SOURCES[name]
    wanted = diagnose(model, SOURCES["batches"](), layers=["0"], confidence=0.0)
    diagnosis = diagnose(model, make(), layers=["0"], confidence=0.0)
    np.testing.assert_allclose(diagnosis.layers[0].correlation, wanted.layers[0].correlation, rtol=1e-4)
    assert diagnosis.sifting.high == wanted.sifting.high
    treated = treat(model, make(), diagnosis, recipe=Recipe(epochs=1), seeds=1)
    assert compare(model, treated, {"test": make()}).splits["test"].images == NUMBER
    assert len(find_causes(model, make(), diagnosis).errors) > 0
    assert find_suspects(model, make(), folds=2).images == NUMBER


def test_masks_of_a_loader_reach_the_diagnosis():
    model = network()
    share = diagnose(model, MASKED["triples"](), layers=["0"], confidence=0.0).layers[0].background_share
    assert np.isfinite(share).all() and (share > 0).all()


def test_names_of_categories_come_with_a_folder_of_images(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(6):
            grey = np.full((8, 8, 3), 40 * number + 20 * (name == "cat"), np.uint8)
            Image.fromarray(grey).save(tmp_path / name / f"{number}.png")
    to_tensor = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    folder = ImageFolder(str(tmp_path), to_tensor)
    for source in (folder, DataLoader(folder, batch_size=4, shuffle=True)):
        assert diagnose(network(), source, layers=["0"], confidence=0.0).classes == ("cat", "dog")
    with pytest.raises(InputError, match=r"no tensors .* transform that ends in normalised tensors"):
        list(images_of(ImageFolder(str(tmp_path))))
    moving = ImageFolder(str(tmp_path), v2.Compose([to_tensor, v2.GaussianNoise()]))
    with pytest.raises(InputError, match="a second pass gives other pixels"):
        images_of(moving)


WRONG = {
    "sampler": (
        lambda: DataLoader(TensorDataset(pixels, labels), sampler=WeightedRandomSampler([1.0] * 40, 40)),
        "chooses its images by a WeightedRandomSampler",
    ),
    "words": (lambda: "images/", "found str"),
    "no field": (lambda: [{"pixels": pixels, "labels": labels}], "found a dictionary with pixels, labels"),
    "alone": (lambda: [pixels], "found Tensor"),
    "four": (lambda: [(pixels, labels, masks, masks)], "found tuple of 4"),
    "bytes": (lambda: [(pixels.to(torch.uint8), labels)], "found torch.uint8 pixels"),
    "soft labels": (lambda: [(pixels, labels + 0.5)], "expected the number of one category"),
    "many labels": (lambda: [(pixels, torch.eye(2)[labels])], "expected the number of one category"),
    "small masks": (lambda: [(pixels, labels, masks[:, :, :4])], "masks of shape"),
    "grey masks": (lambda: [(pixels, labels, masks * 255)], "other values than 0..1"),
    "names": (lambda: [(pixels, ["cat"] * NUMBER)], "labels are list"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_used_is_said(name):
    make, said = WRONG[name]
    with pytest.raises(InputError, match=said):
        list(images_of(make()))
