"""Networks of transformers and data sets of datasets, from folders that these libraries wrote."""

from __future__ import annotations

import importlib.util
import io
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import torchdoctor as td
from torchdoctor.case.settings import Settings
from torchdoctor.case.surroundings import loading_code
from torchdoctor.data import pixels
from torchdoctor.data.blocks import on_disk
from torchdoctor.data.load import load_tables
from torchdoctor.data.readers import arrow_blocks, parquet_blocks
from torchdoctor.models.hugging_face import preparation, published_classes
from torchdoctor.models.loading import load_model
from torchdoctor.network.copying import copy_of

installed = all(map(importlib.util.find_spec, ("transformers", "datasets")))
needs_both = pytest.mark.skipif(not installed, reason="needs the extra hf")
LABELS = {0: "red", 1: "green", 2: "blue"}


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """The folder of a tiny vision transformer with its image processor."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=16,
        patch_size=4, id2label=LABELS, label2id={name: number for number, name in LABELS.items()},
    )  # fmt: skip
    ViTForImageClassification(config).save_pretrained(folder)
    processor = ViTImageProcessor(
        size={"height": 16, "width": 16}, image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.25, 0.3]
    )
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    """The folder of a tiny ResNet without an image processor, whose categories have no names."""
    from transformers import ResNetConfig, ResNetForImageClassification

    folder = tmp_path_factory.mktemp("resnet")
    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3
    )
    ResNetForImageClassification(config).save_pretrained(folder)
    return folder


def rows(number):
    """Return the rows of a data set: images as PNG, and labels."""
    generator = np.random.default_rng(0)
    cells = []
    for label in (np.arange(number) % 3).tolist():
        pixels = generator.integers(0, 100, (16, 16, 3), dtype=np.uint8)
        pixels[..., label] += 100
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        cells.append({"bytes": file.getvalue(), "path": None})
    return {"picture": cells, "kind": (np.arange(number) % 3).tolist()}


def data_set(number, names=("red", "green", "blue"), labels=None):
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as Picture

    content = rows(number)
    content["kind"] = content["kind"] if labels is None else labels
    return Dataset.from_dict(
        content, features=Features({"picture": Picture(), "kind": ClassLabel(names=list(names))})
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of a data set with two splits, as save_to_disk writes it."""
    from datasets import DatasetDict

    folder = tmp_path_factory.mktemp("saved") / "colours"
    DatasetDict({"train": data_set(30), "test": data_set(9), "extra": data_set(3)}).save_to_disk(str(folder))
    return folder


@needs_both
def test_a_network_of_transformers_gives_plain_logits_and_keeps_its_names(vit, tmp_path):
    from transformers import ViTForImageClassification

    original = ViTForImageClassification.from_pretrained(vit).eval()
    model = load_model(f"transformers:{vit}", 3, "pretrained").eval()
    images = torch.randn(2, 3, 16, 16)
    logits = model(images)
    assert isinstance(logits, torch.Tensor)
    torch.testing.assert_close(logits, original(images).logits)
    assert model.state_dict().keys() == original.state_dict().keys()
    torch.testing.assert_close(copy_of(model)(images), logits)
    assert load_model(f"transformers:{vit}", 5)(images).shape == (2, 5)
    assert load_model(f"transformers:{vit}", 5, "pretrained")(images).shape == (2, 5)
    assert load_model(f"transformers:{vit}", 3, channels=1)(images[:, :1]).shape == (2, 3)
    save_file(model.state_dict(), tmp_path / "own.safetensors")
    again = load_model(f"transformers:{vit}", 3, tmp_path / "own.safetensors").eval()
    torch.testing.assert_close(again(images), logits)


@needs_both
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_networks_of_transformers_are_diagnosed_and_treated(kind, request):
    folder = request.getfixturevalue(kind)
    model = load_model(f"transformers:{folder}", 3, "pretrained").eval()
    assert [
        one.message for one in td.check_model(model, torch.randn(2, 3, 16, 16)) if one.level == "error"
    ] == []
    batches = [td.Batch(torch.randn(12, 3, 16, 16), torch.arange(12) % 3, torch.arange(12))]
    diagnosis = td.diagnose(model, batches, confidence=0.0, draws=1)
    treated = td.treat(
        model,
        batches,
        diagnosis,
        arms=["treated"],
        constraints=["channel"],
        seeds=1,
        recipe=td.Recipe(epochs=1),
    )
    assert treated.prescription[0]["parameters_reached"] > 0


@needs_both
def test_the_image_processor_becomes_the_preparation(vit, resnet):
    assert preparation(f"transformers:{vit}") == {
        "categories": 3, "image_size": 16, "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3),
        "resize": "squash", "crop_share": 1.0,
    }  # fmt: skip
    assert preparation(f"transformers:{resnet}") == {"categories": 3}
    assert published_classes(f"transformers:{vit}") == ("red", "green", "blue")
    assert published_classes(f"transformers:{resnet}") is None and published_classes("vgg16") is None


@needs_both
def test_a_data_set_is_read_from_the_disk(saved):
    tables = load_tables(f"datasets:{saved}")
    assert tables.classes == ("red", "green", "blue") and list(tables.tests) == ["test"]
    assert len(tables.train) + len(tables.validation) == 30 and len(tables.tests["test"]) == 9
    assert tables.notes == ("the split extra, whose name tells no split",)
    image, mask = tables.tests["test"].read(4)
    assert mask is None and np.array(image)[..., 1].min() >= 100
    stamps = {tables.tests["test"].read.stamp(place)[0] for place in range(9)}
    assert len(stamps) == 9 and all(stamps)
    again = load_tables(f"datasets:{saved}", settings=td.DataSettings(label_column="kind"))
    assert again.train.labels.tolist() == tables.train.labels.tolist()
    with pytest.raises(td.InputError, match="--image-column"):
        load_tables(f"datasets:{saved}", settings=td.DataSettings(image_column="photo"))


@needs_both
@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_set_larger_than_memory_is_shuffled_by_blocks(tmp_path, monkeypatch, workers):
    monkeypatch.setattr(arrow_blocks, "ROWS", 10)
    data_set(200).save_to_disk(str(tmp_path / "large"), num_shards=3)
    settings = td.DataSettings(workers=workers, validation_share=0.1, batch_size=16)
    plain = td.load_data(f"datasets:{tmp_path / 'large'}", settings=settings).train
    assert plain.reading is None
    monkeypatch.setattr(pixels, "CACHE_BYTES", 0)
    monkeypatch.setattr(parquet_blocks, "ENCODED_BYTES", 0)
    monkeypatch.setattr(parquet_blocks, "WINDOW_BYTES", 30_000)  # a block has about 8,500
    large = td.load_data(f"datasets:{tmp_path / 'large'}", settings=settings).train
    assert "read from disk in every epoch" in large.reading and "shuffled within about" in large.reading
    reader = on_disk(large.table.read).reader
    assert reader.window == 3
    epochs = [list(large.epoch(number, 0)) for number in (0, 1)]
    orders = [torch.cat([batch.ids for batch in batches]).tolist() for batches in epochs]
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(large.table.ids.tolist())
    assert orders[0] != orders[1] != sorted(orders[1])
    looks = {int(i): x for batch in plain.epoch(1, 0) for i, x in zip(batch.ids, batch.images, strict=True)}
    for batch in epochs[1]:
        for identity, image in zip(batch.ids.tolist(), batch.images, strict=True):
            assert torch.equal(looks[identity], image)
    # Positions in the file of images that follow each other: at most a window of blocks at a time.
    blocks = dict(zip(large.table.ids.tolist(), on_disk(large.table.read).blocks.tolist(), strict=True))
    first = [blocks[identity] for identity in orders[0]]
    changes = [set(first[start : start + 20]) for start in range(0, len(first), 20)]
    assert max(map(len, changes)) <= 2 * reader.window


@needs_both
def test_a_damaged_saved_data_set_is_named(tmp_path):
    folder = tmp_path / "whole"
    data_set(60).save_to_disk(str(folder), num_shards=2)
    shard = folder / "data-00001-of-00002.arrow"
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    with pytest.raises(td.InputError, match=r"data-00001-of-00002.arrow is damaged or cut off .* anew"):
        load_tables(f"datasets:{folder}")
    shard.unlink()
    with pytest.raises(td.InputError, match=r"data-00001-of-00002.arrow.*a file is missing or damaged"):
        load_tables(f"datasets:{folder}")
    place = content.index(b"\x89PNG")
    shard.write_bytes(content[:place] + b"nothing!" + content[place + 8 :])
    tables = load_tables(f"datasets:{folder}")
    every = (tables.train, tables.validation, *tables.tests.values())
    with pytest.raises(td.InputError, match=rf"datasets:{folder} \(split train\): row 30: cannot be decoded"):
        for table in every:
            for position in range(len(table)):
                table.read(position)


@needs_both
def test_a_folder_of_parquet_files_is_read(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "colours").mkdir()
    for split, number in (("train", 30), ("validation", 6), ("test", 9)):
        data_set(number).to_parquet(str(tmp_path / "colours" / f"{split}-00000-of-00001.parquet"))
    tables = load_tables(f"datasets:{tmp_path / 'colours'}")
    assert (len(tables.train), len(tables.validation), len(tables.tests["test"])) == (30, 6, 9)
    assert tables.classes == ("red", "green", "blue") and tables.train.read(0)[0].size == (16, 16)


@needs_both
def test_what_cannot_be_read_is_named(tmp_path, vit):
    from datasets import Dataset, DatasetDict

    with pytest.raises(td.InputError, match="transformers finds no configuration there"):
        load_model(f"transformers:{tmp_path}", 3)
    with pytest.raises(td.InputError, match="weights are for images of 3 channels, and the images have 1"):
        load_model(f"transformers:{vit}", 3, "pretrained", channels=1)
    with pytest.raises(td.InputError, match=r"datasets could not load it \(.*; expected a folder"):
        load_tables(f"datasets:{tmp_path / 'none'}")
    Dataset.from_dict({"text": ["a", "b"]}).save_to_disk(str(tmp_path / "text"))
    with pytest.raises(td.InputError, match=r"no column is of the kind Image; found text\. Cast it with"):
        load_tables(f"datasets:{tmp_path / 'text'}")
    hidden = DatasetDict({"train": data_set(30), "test": data_set(6, labels=[-1] * 6)})
    hidden.save_to_disk(str(tmp_path / "hidden"))
    tables = load_tables(f"datasets:{tmp_path / 'hidden'}")
    assert tables.test_divided_off and "labels are hidden" in tables.notes[0]
    DatasetDict({"train": data_set(6, labels=[0, 1, 2, 0, 1, -1])}).save_to_disk(str(tmp_path / "part"))
    with pytest.raises(td.InputError, match="row 5 has no label"):
        load_tables(f"datasets:{tmp_path / 'part'}")


@pytest.mark.parametrize("package", ["transformers", "datasets"])
def test_a_missing_package_is_named_with_its_extra(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(td.InputError, match=rf"needs the package {package}: pip install 'torchdoctor\[hf\]'"):
        if package == "transformers":
            load_model("transformers:owner/name", 3)
        else:
            load_tables("datasets:owner/name")


@needs_both
@pytest.mark.slow
def test_a_checkup_begins_with_a_network_and_a_data_set_of_hugging_face(vit, saved, tmp_path):
    from torchdoctor.case.preparation import prepare

    settings = Settings(
        model=f"transformers:{vit}", weights="pretrained", data=f"datasets:{saved}",
        out=str(tmp_path / "run"), device="cpu",
    )  # fmt: skip
    case = prepare(settings, "checkup")
    assert case.data.preprocessing.mean == (0.4, 0.5, 0.6) and case.plan.image_size == 16
    assert case.layers and "load_model('transformers:" in loading_code(case.plan, 3, tmp_path / "w")
