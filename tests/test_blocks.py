"""Data larger than memory: images stay on disk, an epoch is shuffled within a window."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pictures import RAW, png, same, scene, table_of
from torchdoctor.data import pixels
from torchdoctor.data.blocks import on_disk
from torchdoctor.data.fingerprints import fingerprint, image_hashes
from torchdoctor.data.load import load_data, load_tables
from torchdoctor.data.loader import Loader
from torchdoctor.data.order import epoch_order
from torchdoctor.data.readers import parquet_blocks
from torchdoctor.data.settings import DataSettings
from torchdoctor.types import InputError

KIND = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
SHARDS, ROWS, GROUP = 3, 24, 4


def write_shards(folder: Path, masked: bool = True, **changes: object) -> str:
    """Write shards of row groups of four images; every other image has a mask."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(SHARDS):
        numbers = range(shard * ROWS, (shard + 1) * ROWS)
        rows = {
            "image": pa.array([{"bytes": png(scene(n)[0]), "path": f"{n}.png"} for n in numbers], KIND),
            "label": pa.array([n % 2 for n in numbers]),
        }
        if masked:
            masks = [{"bytes": png(scene(n)[1]), "path": None} if n % 2 else None for n in numbers]
            rows["mask"] = pa.array(masks, KIND)
        pq.write_table(pa.table(rows | changes), folder / f"train-{shard}.parquet", row_group_size=GROUP)
    return f"parquet:{folder}"


@pytest.fixture
def small_memory(monkeypatch):
    """Nothing is kept in memory but two row groups."""
    monkeypatch.setattr(pixels, "CACHE_BYTES", 0)
    monkeypatch.setattr(parquet_blocks, "ENCODED_BYTES", 0)
    monkeypatch.setattr(parquet_blocks.RowGroups, "window", property(lambda groups: 2))


def test_row_groups_of_a_stated_size_are_kept_together():
    sizes = np.array([2**20, 3 * 2**20])
    groups = parquet_blocks.RowGroups((Path("a"),) * 2, (0, 1), np.array([0, 4]), sizes, {}, 6)
    assert (
        groups.window == parquet_blocks.WINDOW_BYTES // 2**21 and groups.blocks.tolist() == [0] * 4 + [1] * 2
    )
    large = replace(groups, sizes=sizes * 1000)
    assert large.window == 1 and parquet_blocks.notes_on_size([groups]) == ()
    assert parquet_blocks.notes_on_size([groups, large])[0].startswith("row groups of up to 3000 MB, each")


def test_the_order_of_an_epoch_of_small_data_is_what_it_was():
    ids = np.array([7, 3, 9, 1, 4])
    for seed, number in ((0, 0), (3, 2)):
        key = np.random.SeedSequence((seed, 1, number))
        drawn = np.random.Generator(np.random.Philox(key)).permutation(5)
        assert epoch_order(ids, seed, number).tolist() == np.argsort(ids)[drawn].tolist()
    loader = Loader(table_of(23), RAW, batch_size=5).with_annotations(range(0, 23, 4), 2)
    plan = list(loader.plan(3, 1))
    assert len(plan) == loader.steps_per_epoch == 8 and [len(draws) for draws in plan] == [5] * 7 + [4]
    rows = [row for draws in plan for row, _ in draws[:-2]]
    assert rows == epoch_order(loader.table.ids, 1, 3).tolist()
    added = [(row, key[3]) for draws in plan for row, key in draws[-2:]]
    assert [again for row, again in added if row == added[0][0]] == [1, 2, 3]
    assert all(key == (1, 3, row, key[3]) for draws in plan for row, key in draws)
    first = loader.plan(3, 1).first()
    assert list(first) == plan[:1] and first.largest == 5


def test_images_on_disk_are_those_in_memory(tmp_path, small_memory, monkeypatch):
    spec = write_shards(tmp_path)
    tables = load_tables(spec)
    monkeypatch.setattr(parquet_blocks, "ENCODED_BYTES", 2**30)
    kept = load_tables(spec)
    assert on_disk(kept.train.read) is None and on_disk(tables.train.read) is not None
    for one, other in ((tables.train, kept.train), (tables.tests["test"], kept.tests["test"])):
        assert fingerprint(one) == fingerprint(other) and one.names == other.names
        assert np.array_equal(image_hashes(one), image_hashes(other))
        for first, second in zip(Loader(one, RAW, 7), Loader(other, RAW, 7), strict=True):
            assert same(first, second)


def test_an_epoch_is_shuffled_within_windows_that_are_read_once(tmp_path, small_memory, monkeypatch):
    table = load_tables(write_shards(tmp_path)).train
    reader = on_disk(table.read).reader
    assert reader.window == 2 and len(reader.starts) == SHARDS * ROWS // GROUP
    read, read_group = [], parquet_blocks.RowGroups._read
    monkeypatch.setattr(
        parquet_blocks.RowGroups,
        "_read",
        lambda self, group: (read.append(group), read_group(self, group))[1],
    )
    loader = Loader(table, RAW, batch_size=6, workers=0)
    orders = []
    for number, seed in ((0, 0), (0, 0), (1, 0), (0, 1)):
        reader._groups.clear(), read.clear()
        ids = torch.cat([batch.ids for batch in loader.epoch(number, seed)]).tolist()
        assert sorted(ids) == sorted(table.ids.tolist())
        assert len(read) == len(set(read)) == len(np.unique(table.ids // GROUP))
        orders.append(ids)
        window = [identity // GROUP for identity in ids]
        spans = {block: (window.index(block), len(ids) - window[::-1].index(block)) for block in window}
        together = [sum(first <= place < end for first, end in spans.values()) for place in range(len(ids))]
        assert max(together) == 2  # two row groups are mixed
    assert orders[0] == orders[1] and orders[0] != orders[2] and orders[0] != orders[3]


def test_processes_change_nothing_and_annotated_images_are_read_apart(tmp_path, small_memory):
    table = load_tables(write_shards(tmp_path)).train
    marked = table.ids[table.has_mask][:3]
    here = Loader(table, RAW, batch_size=7, workers=0).with_annotations(marked, 2)
    there = replace(here, workers=2)
    batches = list(here.epoch(2, 5))
    assert all(same(one, other) for one, other in zip(batches, there.epoch(2, 5), strict=True))
    assert {int(identity) for batch in batches for identity in batch.ids[-2:]} == set(marked.tolist())
    reader = on_disk(table.read).reader
    assert len(reader._groups) <= reader.window and 0 < len(reader._apart) <= 3
    again = pickle.loads(pickle.dumps(reader))
    assert again.content(5) == reader.content(5) and not again._apart


def test_loaders_say_where_images_are_read_from(tmp_path, small_memory, monkeypatch):
    spec = write_shards(tmp_path, masked=False)
    train = load_data(spec, image_size=32).train
    assert train.workers == "auto"
    assert train.reading.startswith(f"the {len(train)} images are read from disk in every epoch (decoded")
    assert train.reading.endswith("shuffled within about 6 images")
    monkeypatch.setattr(pixels, "CACHE_BYTES", 2**30)
    assert load_data(spec, image_size=32).train.reading.endswith("disk, shuffled within about 6 images")
    monkeypatch.setattr(parquet_blocks, "ENCODED_BYTES", 2**30)
    assert load_data(spec, image_size=32).train.reading is None


def test_rows_without_images_and_damaged_row_groups_are_named(tmp_path, small_memory):
    images = pa.array([{"bytes": b"x", "path": None}] * (ROWS - 1) + [{"bytes": None, "path": None}], KIND)
    with pytest.raises(InputError, match="some rows have no label or no image bytes"):
        load_tables(write_shards(tmp_path / "a", image=images))
    spec = write_shards(tmp_path / "b")
    table = load_tables(spec).train
    file = tmp_path / "b" / "train-0.parquet"
    content = bytearray(file.read_bytes())
    content[4:100] = bytes(96)
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"train-0\.parquet: row group 0 cannot be read"):
        list(Loader(table, RAW, workers=0))
    with pytest.raises(InputError, match="--workers 'many': expected a whole number of at least 0, or auto"):
        DataSettings(workers="many")
