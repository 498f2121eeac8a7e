"""The queue of a review and its answers: what is asked first, and that no answer is lost or mixed up."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some
from PIL import Image

from processes import killed_at
from torchdoctor import InputError, Suspects
from torchdoctor.data.annotations import mask_from_png
from torchdoctor.data.given_masks import with_masks
from torchdoctor.data.readers.folder import folder_table
from torchdoctor.data.table import ImageTable
from torchdoctor.diagnosis.causes_result import Causes, ErrorCause
from torchdoctor.diagnosis.suspects_result import COLUMNS, LIST, Suspect
from torchdoctor.review.label_store import LabelStore, counted
from torchdoctor.review.mask_runs import mask_of_runs, runs_of
from torchdoctor.review.mask_store import MaskStore
from torchdoctor.review.precision import LEAST_ANSWERS, measured_precision
from torchdoctor.review.proposals import proposed_mask, scaled
from torchdoctor.review.queue import LabelQuestion, background_errors
from torchdoctor.runs.review_files import check_mask_file, mask_file, read_masks

CLASSES = ("keep", "dog", "unusable")


@pytest.fixture
def photographs(tmp_path):
    """Six photographs of 5 x 4 pixels in three categories."""
    for number in range(6):
        folder = tmp_path / "photographs" / CLASSES[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (5, 4), (number * 20, 0, 0)).save(folder / f"{number}.png")
    return folder_table(tmp_path / "photographs", CLASSES, "folder:photographs")


def questions_of(table: ImageTable) -> list[LabelQuestion]:
    """Ask about every image, with another category proposed."""
    return [
        LabelQuestion(image, name, CLASSES[label], CLASSES[(label + 1) % 3], 0.9)
        for image, name, label in zip(table.ids.tolist(), table.names, table.labels.tolist(), strict=True)
    ]


@pytest.fixture
def listed(tmp_path, photographs):
    """A run with a list of all images."""
    run = tmp_path / "run"
    asked = questions_of(photographs)
    suspects = [Suspect(one.id, one.given, one.proposed, one.probability) for one in asked]
    Suspects(tuple(suspects), len(asked), 0.1, 90.0).save(run, names={one.id: one.name for one in asked})
    return run, asked


def test_labels_are_written_into_the_list_of_the_run(listed):
    run, asked = listed
    store = LabelStore(run, asked, CLASSES)
    assert set(store.answers().values()) == {""}
    first, second, third = asked[0], asked[1], asked[2]
    store.write(first.id, "keep")
    store.write(second.id, "unusable")
    store.write(third.id, CLASSES.index(third.proposed))
    again = LabelStore(run, asked, CLASSES).answers()
    assert [again[one.id] for one in asked[:4]] == ["keep", "unusable", CLASSES.index(third.proposed), ""]
    assert counted(again, asked)[:4] == [False, True, True, None]
    store.write(second.id, "")
    assert store.answers()[second.id] == ""
    # The labelled category itself is the answer that the label is right.
    store.write(second.id, CLASSES.index(second.given))
    assert store.answers()[second.id] == "keep"


def test_words_that_are_categories_too_stay_apart(listed):
    run, asked = listed
    store = LabelStore(run, asked, CLASSES)
    other = next(one for one in asked if one.given == "dog")
    for answer in ("keep", "unusable", 0, 2):
        store.write(other.id, answer)
        assert store.answers()[other.id] == answer


def test_what_others_write_into_the_list_is_kept(listed):
    run, asked = listed
    store = LabelStore(run, asked, CLASSES)
    rows = list(csv.DictReader((run / LIST).open(encoding="utf-8")))
    rows[3] |= {"answer": "dog", "note": "ask Ann, she, knows"}
    with (run / LIST).open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, [*COLUMNS, "note"], restval="")
        writer.writeheader()
        writer.writerows(reversed(rows))
    store.write(asked[0].id, "keep")
    after = {row["image"]: row for row in csv.DictReader((run / LIST).open(encoding="utf-8"))}
    assert after[asked[3].name]["note"] == "ask Ann, she, knows"
    assert {name: after[one.name]["answer"] for name, one in (("first", asked[0]), ("fourth", asked[3]))} == {
        "first": "KEEP",  # a category of these data is called `keep`
        "fourth": "dog",
    }


def test_labels_that_cannot_be_kept_are_refused(listed):
    run, asked = listed
    store = LabelStore(run, asked, CLASSES)
    before = (run / LIST).read_bytes()
    for image, answer in ((99, "keep"), (asked[0].id, "hound"), (asked[0].id, 3), (asked[0].id, -1)):
        with pytest.raises(InputError, match=r"not among|no answer"):
            store.write(image, answer)
    assert (run / LIST).read_bytes() == before
    (run / LIST).write_text("\n".join(before.decode().splitlines()[:-1]) + "\n")
    with pytest.raises(InputError, match="none for"):
        LabelStore(run, asked, CLASSES)


@given(some.lists(some.booleans(), min_size=1, max_size=60), some.integers(1, 12))
def test_runs_give_the_mask_back(pixels, width):
    pixels = pixels + [False] * (-len(pixels) % width)
    mask = np.array(pixels).reshape(-1, width)
    runs = runs_of(mask)
    assert np.array_equal(mask_of_runs(runs, width, len(mask)), mask)
    for wrong in (
        [*runs, 1],
        [*runs[:-1], runs[-1] - 1],
        [*runs, -1, 1],
        [float(run) for run in runs],
        [True],
    ):
        if wrong == [True] and mask.size == 1:
            wrong = [2]
        with pytest.raises(InputError, match="do not fill it"):
            mask_of_runs(wrong, width, len(mask))


def test_masks_are_right_to_the_pixel_and_say_who_made_them(tmp_path, photographs):
    store = MaskStore(tmp_path, photographs)
    ids = photographs.ids.tolist()
    marked = np.zeros((4, 5), dtype=bool)
    marked[1:3, 2:4] = True
    store.write(ids[0], marked, "by hand")
    store.write(ids[1], ~marked, "accepted proposal")
    store.write(ids[2], np.ones((4, 5), dtype=bool), "by hand")
    store.write(ids[3], np.zeros((4, 5), dtype=bool), "by hand", no_object=True)
    again = MaskStore(tmp_path, photographs)
    assert np.array_equal(again.read(ids[0]), marked) and np.array_equal(again.read(ids[1]), ~marked)
    assert [again.records[one].content for one in ids[:4]] == ["object", "object", "whole image", "no object"]
    assert again.counts() == {"accepted proposal": 1, "by hand": 2, "no object": 1}
    files = {one: check_mask_file(tmp_path, again.records[one]) for one in ids[:3]}
    table = with_masks(photographs, files)
    assert table.has_mask.sum() == 3
    place = ids.index(ids[0])
    assert np.array_equal(np.asarray(table.read(place)[1]) == 255, marked)
    assert table.read.stamp(place)[0] == photographs.read.stamp(place)[0]
    assert table.read.stamp(place)[1] != photographs.read.stamp(place)[1]
    # The folder of masks stands beside the folders of categories as it is.
    beside = folder_table(tmp_path / "photographs", CLASSES, "folder:photographs")
    (tmp_path / "review" / "masks").rename(tmp_path / "photographs" / "masks")
    assert not beside.has_mask.any()
    assert folder_table(tmp_path / "photographs", CLASSES, "folder:photographs").has_mask.sum() == 3
    store.remove(ids[3])
    assert ids[3] not in MaskStore(tmp_path, photographs).records


def test_masks_of_data_with_splits_lie_in_the_folder_of_the_split(tmp_path, photographs):
    (tmp_path / "photographs").rename(tmp_path / "train")
    divided = folder_table(tmp_path / "train", CLASSES, "folder:.")
    image = int(divided.ids[0])
    for table in (divided, divided.select([0, 1]), with_masks(divided, {})):
        record = MaskStore(tmp_path, table).write(image, np.eye(4, 5, dtype=bool), "by hand")
        assert record.file == f"masks/train/{Path(divided.names[0]).with_suffix('.png').as_posix()}"
    # As `masks` beside the splits the data set reads them by itself.
    (tmp_path / "review" / "masks").rename(tmp_path / "masks")
    assert folder_table(tmp_path / "train", CLASSES, "folder:.").has_mask.tolist() == [True] + [False] * 5


def test_proposals_and_answers_do_not_mix(tmp_path, photographs):
    mask = np.ones((4, 5), dtype=bool)
    image = int(photographs.ids[0])
    proposals = MaskStore(tmp_path, photographs, "proposals")
    proposals.write(image, mask, "proposal")
    assert read_masks(tmp_path) == {} and list(read_masks(tmp_path, "proposals")) == [image]
    for store, kind in ((proposals, "by hand"), (MaskStore(tmp_path, photographs), "proposal")):
        with pytest.raises(InputError, match="does not belong"):
            store.write(image, mask, kind)
    with pytest.raises(InputError, match="marks no pixel"):
        MaskStore(tmp_path, photographs).write(image, ~mask, "by hand")


def test_two_stores_of_a_run_lose_nothing_of_each_other(tmp_path, photographs):
    """Where a folder cannot be locked, two servers may work in it."""
    mask = np.ones((4, 5), dtype=bool)
    one, other = MaskStore(tmp_path, photographs), MaskStore(tmp_path, photographs)
    first, second, third = photographs.ids.tolist()[:3]
    one.write(first, mask, "by hand")
    other.write(second, mask, "by hand")
    one.write(third, mask, "by hand")
    other.remove(first)
    assert set(read_masks(tmp_path)) == {second, third}


def test_masks_that_were_changed_or_are_gone(tmp_path, photographs):
    store = MaskStore(tmp_path, photographs)
    mask = np.ones((4, 5), dtype=bool)
    for image in photographs.ids.tolist()[:3]:
        store.write(image, mask, "accepted proposal")
    first, second, third = (tmp_path / "review" / one.file for one in store.records.values())
    first.unlink()
    drawn = np.zeros((4, 5), dtype=np.uint8)
    drawn[0, 0] = 255
    Image.fromarray(drawn).save(second)
    record = store.records[int(photographs.ids[1])]
    with pytest.raises(InputError, match="changed after the review"):
        check_mask_file(tmp_path, record)
    again = MaskStore(tmp_path, photographs)
    said = again.take_over_changes()
    assert len(said) == 2 and "asked for again" in said[0] and "taken over" in said[1]
    assert again.counts() == {"accepted proposal": 1, "by hand": 1}
    assert check_mask_file(tmp_path, again.records[record.id]) == second
    Image.new("L", (9, 9), 255).save(third)
    with pytest.raises(InputError, match="9 x 9 pixels and its image 5 x 4"):
        MaskStore(tmp_path, photographs).take_over_changes()


def test_images_that_changed_are_noticed(tmp_path, photographs):
    MaskStore(tmp_path, photographs).write(int(photographs.ids[0]), np.ones((4, 5), dtype=bool), "by hand")
    Image.new("RGB", (5, 4), (9, 9, 9)).save(tmp_path / "photographs" / photographs.names[0])
    with pytest.raises(InputError, match="has changed since its mask was drawn"):
        MaskStore(tmp_path, photographs)
    with pytest.raises(InputError, match="not among the training images"):
        MaskStore(tmp_path, photographs.select([1, 2]))


@pytest.mark.parametrize("place", ["before/0.png", "after/0.png", "before/masks.json"])
def test_a_kill_leaves_the_old_mask_or_the_new_one(tmp_path, photographs, place):
    image = photographs.ids.tolist()[photographs.names.index("keep/0.png")]
    old, new = np.ones((4, 5), dtype=bool), np.eye(4, 5, dtype=bool)
    MaskStore(tmp_path, photographs).write(image, old, "by hand")
    assert (
        killed_at(place, lambda: MaskStore(tmp_path, photographs).write(image, new, "by hand") and None) == -9
    )
    store = MaskStore(tmp_path, photographs)
    store.take_over_changes()
    assert any(np.array_equal(store.read(image), mask) for mask in (old, new))
    assert check_mask_file(tmp_path, store.records[image]).is_file()


@pytest.mark.parametrize(
    ("category", "image", "file"),
    [
        ("cat", "cat/1.jpg", "cat/1.png"),
        ("cat", "cat/inner/1.jpg", "cat/inner/1.png"),
        ("cat", "data.parquet:7", "cat/data.parquet_7-5.png"),
        ("cat", "../../etc/passwd", "cat/passwd.png"),
        ("..", "../x.png", "_/x-5.png"),
        ("cat", "cat/../../x.png", "cat/_/_/x-5.png"),
        ("a/b", "a\\b.png", "a_b/b-5.png"),
        ("cat", "cat/\u00e9.png", "cat/\u00e9.png"),
        ("gr\u00fcne T\u00fcr", "gr\u00fcne T\u00fcr/50 % #1.png", "gr\u00fcne T\u00fcr/50 % #1.png"),
        ("\u732b", "\u732b/1.jpg", "\u732b/1.png"),
        ("\u092a\u0936\u0941", "\u092a\u0936\u0941/e\u0301.jpg", "\u092a\u0936\u0941/e\u0301.png"),
        ("cat", "cat/\u202e\udcff\x01<.png", "cat/____-5.png"),
        ("cat", "cat/" + 80 * "\u732b" + ".png", "cat/" + 66 * "\u732b" + "-5.png"),
    ],
)
def test_mask_files_have_names_that_lead_nowhere_else(category, image, file):
    assert mask_file(category, image, 5, {}) == file
    assert mask_file(category, image, 5, {file.lower(): 4}).endswith("-5.png")


def test_a_record_that_names_a_file_outside_is_refused(tmp_path, photographs):
    store = MaskStore(tmp_path, photographs)
    store.write(int(photographs.ids[0]), np.ones((4, 5), dtype=bool), "by hand")
    file = tmp_path / "review" / "masks.json"
    record = json.loads(file.read_text())
    record["masks"][0]["file"] = "masks/../../secret.png"
    file.write_text(json.dumps(record))
    with pytest.raises(InputError, match="outside"):
        check_mask_file(tmp_path, next(iter(read_masks(tmp_path).values())))


def test_the_precision_speaks_from_fifty_answers_on():
    chances = [0.9] * 40 + [0.6] * 160
    few = measured_precision(chances, [True] * 40 + [False] * (LEAST_ANSWERS - 41) + [None] * 151)
    assert few.sentences == () and not few.stop and few.remaining == few.left == 151
    good = measured_precision(chances, [True] * 45 + [False] * 15 + [None] * 140)
    assert good.wrong == 45 and 0.62 < good.low < 0.75 < good.high < 0.85
    believed = 40 * 0.9 + 20 * 0.6
    assert good.expected == pytest.approx(140 * 0.6 * 45 / believed)
    assert "45 of the 60" in good.sentences[0] and "whole list" in good.sentences[2]
    poor = measured_precision(chances, [True] * 3 + [False] * 57 + [None] * 140)
    assert poor.stop and poor.remaining == 0 and "stop here" in poor.sentences[2]
    done = measured_precision(chances, [True] * 100 + [False] * 100)
    few_left = measured_precision(chances, [True] * 100 + [False] * 99 + [None])
    assert few_left.sentences[1] == "Of the 1 left, less than one is expected to be wrong."
    one = measured_precision(chances, [True] + [False] * 99 + [None] * 100)
    assert one.sentences[0].startswith("1 of the 100 labels that you looked at is wrong (1 %")
    near = replace(one, expected=1.2)
    assert near.sentences[1] == "Of the 100 left, about 1 is expected to be wrong."
    assert done.left == 0 and done.sentences[1] == "The list is done." and not done.stop
    none = measured_precision([0.9], [None])
    assert math.isnan(none.low) and none.sentences == () and not none.stop


def test_where_to_stop_lies_within_the_list():
    chances = [0.99] * 60 + [0.9] * 100 + [0.01] * 100
    found = measured_precision(chances, [True] * 60 + [None] * 200)
    assert 0 < found.remaining < found.left and f"after about {found.remaining} more" in found.sentences[2]
    assert found.remaining == next(
        start for start in range(200) if np.mean(chances[60:][start : start + 50]) * 60 / 59.4 < 0.1
    )


def test_categories_with_most_errors_by_the_background_come_first():
    chances = {"background": 0.75, "unknown": 0.25}
    error = ErrorCause(1, "dog", "cat", 0.9, "background", chances, {})
    assert background_errors(("cat", "cow", "dog"), Causes((error,), 9, 88.0)) == [0.75, 0.0, 0.75]
    assert background_errors(("cat",), None) == [0.0]


def test_a_mask_file_is_one_that_the_project_reads(tmp_path, photographs):
    record = MaskStore(tmp_path, photographs).write(
        int(photographs.ids[0]), np.eye(4, 5, dtype=bool), "by hand"
    )
    read = mask_from_png(tmp_path / "review" / record.file)
    assert np.array_equal(np.asarray(read) == 255, np.eye(4, 5, dtype=bool))


def test_a_proposal_is_the_largest_high_place_without_its_holes():
    evidence = np.zeros((8, 10), np.float32)
    evidence[1:6, 1:6] = 0.5
    evidence[3, 3] = 0.1  # a hole
    evidence[2:4, 8] = 1.0  # higher, but smaller
    evidence[7, :] = 0.49
    wanted = np.zeros((8, 10), bool)
    wanted[1:6, 1:6] = True
    assert np.array_equal(proposed_mask(evidence), wanted)
    assert not proposed_mask(np.zeros((8, 10), np.float32)).any()


def test_maps_are_scaled_to_their_highest_values_but_single_places():
    maps = np.ones((2, 20, 20), np.float32)
    maps[0, 0, 0], maps[1] = 50, 0
    scaled_maps = scaled(maps)
    assert np.array_equal(scaled_maps[0], np.ones((20, 20))) and not scaled_maps[1].any()
