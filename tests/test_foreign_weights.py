"""Weights of other tools: the preparation of images and the order of categories that they need are found."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from torchdoctor import InputError, diagnose, find_causes, load_model
from torchdoctor.case.classifier import load_classifier
from torchdoctor.case.config import settings_from
from torchdoctor.case.preparation import prepare
from torchdoctor.data.pixels import Preprocessing, fit
from torchdoctor.diagnosis.renaming import renamed
from torchdoctor.models.class_names import names_in, same_names
from torchdoctor.models.weights import load_into, load_weights, read_checkpoint

NAMES = ("1", "2", "10")  # sorted as text: 1, 10, 2
COLOURS = ((220, 40, 40), (40, 60, 210), (60, 200, 60))


def photograph(label: int, seed: int, wide: bool = False) -> Image.Image:
    """A square of a category's colour on grey noise; in a wide picture it stands at one end."""
    random = np.random.default_rng([seed, label])
    pixels = random.integers(90, 140, (32, 80 if wide else 32, 3), dtype=np.uint8)
    left = (0 if seed % 2 else 66) if wide else int(random.integers(0, 18))
    top = int(random.integers(0, 18))
    pixels[top : top + 14, left : left + 14] = COLOURS[label]
    return Image.fromarray(pixels)


def write_folder(place, wide=False, names=NAMES):
    for split, first, last in (("train", 0, 30), ("validation", 30, 40)):
        for label, name in enumerate(names):
            folder = place / split / name
            folder.mkdir(parents=True)
            for number in range(first, last):
                photograph(label, number, wide).save(folder / f"{number:03d}.png")
    return f"folder:{place}"


def trained_as(preprocessing: Preprocessing, wide=False, blue_first=False):
    """Train a small network as another tool would; labels in the order of NAMES."""
    pixels = [
        fit(photograph(label, number, wide), None, 32, resize=preprocessing.resize)[0]
        for label in range(3)
        for number in range(30)
    ]
    images = preprocessing.normalise(torch.stack(pixels))
    labels = torch.arange(3).repeat_interleave(30)
    torch.manual_seed(0)
    model = load_model("small_resnet", 3, image_size=32)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    model.train()
    for _ in range(12):
        for rows in torch.randperm(90).split(18):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()
    return model


def case_of(data, weights, **more):
    about = {"model": "small_resnet", "data": data, "weights": str(weights), "image_size": 32, **more}
    return prepare(settings_from(about), "diagnose")


def accuracy(case):
    right = total = 0
    for batch in case.data.validation:
        right += int((case.model(batch.images).argmax(1) == batch.labels).sum())
        total += len(batch.labels)
    return right / total


IMAGENET = Preprocessing(32, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
PLAIN = Preprocessing(32, (0.0,) * 3, (1.0,) * 3)
BYTES = Preprocessing(32, (0.0,) * 3, (1 / 255,) * 3)


@pytest.mark.parametrize(
    ("way", "wide", "said"),
    [
        (PLAIN, False, "--mean 0 --std 1"),
        (BYTES, False, "0..255"),
        pytest.param(
            Preprocessing(32, IMAGENET.mean, IMAGENET.std, "squash"),
            True,
            "--resize squash",
            marks=pytest.mark.slow,
        ),
        (Preprocessing(32, PLAIN.mean, PLAIN.std, "squash"), True, "--resize squash"),
    ],
    ids=["plain", "bytes", "squash", "plain-squash"],
)
def test_the_preparation_that_the_weights_need_is_found_and_said(way, wide, said, tmp_path):
    data = write_folder(tmp_path / "photos", wide, names=("a", "b", "c"))
    torch.save(trained_as(way, wide).state_dict(), tmp_path / "w.pth")
    case = case_of(data, tmp_path / "w.pth")
    assert case.data.preprocessing == way or way is BYTES  # the network may not mind which scale
    assert accuracy(case) >= 0.95
    assert said in case.notes[0] or way is BYTES
    assert case.plan.resize == case.data.preprocessing.resize
    # What a user says is followed, also where it does badly; then that is said.
    wrong = case_of(data, tmp_path / "w.pth", mean="0.9", std="0.01", resize="crop")
    assert wrong.data.preprocessing.mean == (0.9,) * 3
    assert any("little for trained weights" in note for note in wrong.notes) or way is BYTES
    right = case_of(data, tmp_path / "w.pth", mean=way.mean, std=way.std, resize=way.resize)
    assert right.data.preprocessing == way and right.notes == () and accuracy(right) >= 0.95


def test_weights_that_do_well_change_nothing(tmp_path):
    data = write_folder(tmp_path / "photos", names=("a", "b", "c"))
    torch.save(trained_as(IMAGENET).state_dict(), tmp_path / "w.pth")
    case = case_of(data, tmp_path / "w.pth")
    assert case.data.preprocessing == IMAGENET and case.notes == ()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"mean": "0.5"}, "belong together"),
        ({"mean": "0.5,0.5", "std": "1"}, "expected one number, or three"),
        ({"mean": "0", "std": "0"}, "above 0"),
        ({"mean": "a", "std": "1"}, "--mean 'a': expected numbers separated by commas"),
        ({"mean": "0", "std": "inf"}, "expected one number"),
        ({"crop_share": "1.5"}, "--crop-share"),
    ],
)
def test_a_preparation_that_cannot_be_is_refused(asked, said, tmp_path):
    with pytest.raises(InputError, match=said):
        settings = settings_from({"model": "small_resnet", "data": "scenes", **asked})
        prepare(settings, "train", needs_weights=False)


def test_crop_share_is_resize_and_crop():
    image = photograph(0, 1, wide=True)
    found = fit(image, None, 28, crop_share=0.875)[0]
    wanted = fit(image, None, 32)[0][:, 2:-2, 2:-2]
    assert torch.equal(found, wanted)
    way = Preprocessing(28, (0.5,), (0.5,), crop_share=0.875)
    assert Preprocessing.from_json(way.to_json()) == way and way.scaled == 32
    assert Preprocessing.from_json({**way.to_json(), "resize": "squash", "crop_share": 1}).scaled == (28, 28)


@pytest.mark.parametrize("how", ["class_to_idx", "idx_to_class", "classes", "config.json"])
def test_the_order_of_the_weights_is_followed(how, tmp_path):
    data = write_folder(tmp_path / "photos")
    state = trained_as(IMAGENET).state_dict()
    beside = {
        "class_to_idx": {"class_to_idx": {name: number for number, name in enumerate(NAMES)}},
        "idx_to_class": {"idx_to_class": dict(enumerate(NAMES))},
        "classes": {"classes": list(NAMES)},
        "config.json": {},
    }[how]
    torch.save({"state_dict": state, **beside}, tmp_path / "w.pth")
    if how == "config.json":
        (tmp_path / "config.json").write_text(json.dumps({"label_names": NAMES}))
    case = case_of(data, tmp_path / "w.pth")
    assert case.classes == NAMES == case.data.train.table.classes == case.data.train.classes
    assert accuracy(case) == 1 and "not in the order of the data" in case.notes[0]
    table = case.data.validation.table
    folders = {
        name.split("/")[-2] for name, label in zip(table.names, table.labels, strict=True) if label == 2
    }
    assert folders == {"10"}


def test_another_order_without_names_is_said(tmp_path):
    data = write_folder(tmp_path / "photos")
    torch.save(trained_as(IMAGENET).state_dict(), tmp_path / "w.pth")
    notes = case_of(data, tmp_path / "w.pth").notes
    assert "number the categories in another order" in notes[0]
    assert "10 is taken for 2, 2 is taken for 10" in notes[0]


CYCLE = ("disc", "square", "bar")  # sorted as text each has another number


def test_an_order_in_a_circle_is_said_before_another_preparation_is_tried(tmp_path):
    data = write_folder(tmp_path / "photos", names=CYCLE)
    torch.save(trained_as(IMAGENET).state_dict(), tmp_path / "w.pth")
    case = case_of(data, tmp_path / "w.pth")
    assert case.data.preprocessing == IMAGENET and len(case.notes) == 1
    assert "(theirs: disc, square, bar; the data's: bar, disc, square)" in case.notes[0]
    assert "bar is taken for square, disc is taken for bar, square is taken for disc" in case.notes[0]
    assert "In that order 100 % of 81 training images are right" in case.notes[0]
    diagnosis = diagnose(case.model, case.data.train, layers=case.layers[-1:], draws=0, classes=case.classes)
    causes = find_causes(case.model, case.data.validation, diagnosis)
    assert {error.cause for error in causes.errors} == {"category order"} and causes.accuracy == 0


def test_another_order_and_another_preparation_are_both_found(tmp_path):
    data = write_folder(tmp_path / "photos", True, names=CYCLE)
    way = Preprocessing(32, PLAIN.mean, PLAIN.std, "squash")
    torch.save(trained_as(way, True).state_dict(), tmp_path / "w.pth")
    case = case_of(data, tmp_path / "w.pth")
    assert case.data.preprocessing.resize == "squash"
    assert "--resize squash" in case.notes[0] and "theirs: disc, square, bar" in case.notes[1]


def test_colours_in_reverse_order_are_named_where_they_look_like_another_order(tmp_path):
    data = write_folder(tmp_path / "photos", names=("a", "b", "c"))
    model = trained_as(IMAGENET)
    first = next(module for module in model.modules() if isinstance(module, torch.nn.Conv2d))
    first.weight.data = first.weight.data.flip(1)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    note = case_of(data, tmp_path / "w.pth").notes[0]
    assert "a is taken for b, b is taken for a" in note and "reverse order (BGR" in note


@pytest.mark.parametrize(
    "written",
    [("Disc", "SQUARE", "bar"), ("disc ", "square", "_bar"), ("ｄisc", "square", "bar")],
    ids=["case", "spaces", "unicode"],
)
def test_names_that_are_only_written_otherwise_are_the_same(written, tmp_path):
    data = write_folder(tmp_path / "photos", names=CYCLE)
    torch.save(
        {"state_dict": trained_as(IMAGENET).state_dict(), "classes": list(written)}, tmp_path / "w.pth"
    )
    case = case_of(data, tmp_path / "w.pth")
    assert case.classes == CYCLE and accuracy(case) == 1
    assert "written otherwise" in case.notes[0] and "not in the order" in case.notes[1]


def test_names_are_matched_one_to_one_or_not_at_all():
    assert same_names(["cafe\u0301", "b"], ["b", "caf\u00e9"]) == ("caf\u00e9", "b")
    assert same_names(["A", "a"], ["a", "A"]) == ("A", "a")
    assert same_names(["A", "b"], ["a", "A"]) is None
    assert same_names(["x", "X"], ["x", "y"]) is None
    assert same_names(["a"], ["a", "b"]) is None


def test_guesses_are_in_no_order():
    random = np.random.default_rng(0)
    labels = random.permutation(np.arange(200) % 100)
    assert renamed(labels, random.integers(0, 100, 200), 100).taken_for is None
    assert renamed(labels, np.zeros(200, dtype=int), 100).taken_for is None  # one answer for all images
    found = renamed(np.arange(60) % 6, (np.arange(60) + 2) % 6, 6)
    assert (
        found.right.all() and found.taken_for is not None and found.taken_for.tolist() == [2, 3, 4, 5, 0, 1]
    )
    assert (
        found.order(tuple("abcdef")) == tuple("efabcd") and found.pairs(tuple("abcdef"), 1)[1] == "and 5 more"
    )


def test_other_names_are_said_and_matched_by_place(tmp_path):
    data = write_folder(tmp_path / "photos", names=("a", "b", "c"))
    torch.save(
        {"state_dict": trained_as(IMAGENET).state_dict(), "classes": ["x", "y", "z"]}, tmp_path / "w.pth"
    )
    case = case_of(data, tmp_path / "w.pth")
    assert case.classes == ("a", "b", "c") and "matched by their place" in case.notes[0]


@pytest.mark.parametrize(
    ("found", "names"),
    [
        ({"class_to_idx": {"a": 1, "b": 0}}, ("b", "a")),
        ({"id2label": {"0": "a", "1": "b"}}, ("a", "b")),
        ({"class_to_idx": {"a": 1, "b": 2}}, None),  # a number is missing
        ({"class_to_idx": {"a": "first"}}, None),
        ({"classes": [0, 1]}, None),
        ({"classes": 10}, None),
        ([1, 2], None),
    ],
)
def test_names_are_read_or_there_are_none(found, names):
    assert names_in(found) == names


def test_which_of_several_sets_of_weights_is_taken_is_said(tmp_path):
    state = load_model("small_resnet", 3, image_size=32).state_dict()
    other = {name: value + 1 for name, value in state.items()}
    torch.save({"state_dict": state, "state_dict_ema": other, "epoch": 3}, tmp_path / "w.pth")
    found = read_checkpoint(tmp_path / "w.pth")
    assert "state_dict was taken, not state_dict_ema" in (found.note or "")
    torch.save({"state_dict": state}, tmp_path / "one.pth")
    assert read_checkpoint(tmp_path / "one.pth").note is None


def test_an_unknown_prefix_is_cut_off_where_it_is_the_only_one(tmp_path):
    model = load_model("small_resnet", 3, image_size=32)
    state = {f"student.encoder.{name}": value for name, value in model.state_dict().items()}
    torch.save({**state, "loss.weight": torch.ones(3)}, tmp_path / "w.pth")
    other = load_model("small_resnet", 3, image_size=32)
    load_into(other, load_weights(tmp_path / "w.pth"), "w.pth")
    torch.testing.assert_close(other.state_dict(), model.state_dict())
    teacher = {name.replace("student", "teacher"): value for name, value in state.items()}
    with pytest.raises(InputError, match="do not fit"):
        load_into(other, {**state, **teacher}, "w.pth")


def test_a_prediction_uses_the_names_that_the_weights_bring(tmp_path):
    torch.save(
        {"state_dict": load_model("small_resnet", 3, image_size=32).state_dict(), "classes": list(CYCLE)},
        tmp_path / "w.pth",
    )
    about = {"model": "small_resnet", "weights": str(tmp_path / "w.pth"), "image_size": 32}
    assert load_classifier(settings_from(about))[1] == CYCLE
