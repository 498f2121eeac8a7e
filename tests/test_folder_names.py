"""Folders as tools and people name them: masks, splits, litter, endings, odd sizes."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image, ImageFilter

from pictures import scene, write_split
from torchdoctor.data.load import load_data, load_tables
from torchdoctor.types import InputError


def images_of(root) -> tuple[int, int]:
    """Return the numbers of images and of masks in all splits together."""
    tables = load_tables(f"folder:{root}")
    splits = (tables.train, tables.validation, *tables.tests.values())
    return sum(map(len, splits)), sum(int(split.has_mask.sum()) for split in splits)


@pytest.mark.parametrize(
    "name",
    ["{}_mask.jpg", "{}.mask.PNG", "{}_seg.png", "{}_segmentation.png", "{}-mask.png", "{}_mask.tif",
     "{}_GT.bmp",
     "{}.png.mask.png", "{} Mask.gif", "masks/{}.png", "Mask/{}_mask.png", "../masks/{category}/{}.png",
     "../{category}_masks/{}.png"],
)  # fmt: skip
def test_a_mask_is_never_a_photograph(name, tmp_path):
    write_split(tmp_path, {"cat": 5, "dog": 5})
    for category in ("cat", "dog"):
        for number in range(5):
            file = tmp_path / category / name.format(number, category=category)
            file.parent.mkdir(exist_ok=True, parents=True)
            pixels = np.zeros((32, 32), dtype=np.uint8)
            pixels[:8, :8] = 255
            Image.fromarray(pixels).save(file)
    tables = load_tables(f"folder:{tmp_path}")
    assert tables.classes == ("cat", "dog") and images_of(tmp_path) == (10, 10)
    assert (np.asarray(tables.train.read(0)[1]) == 255).sum() == 64


def write_masks(root, name, categories=("cat", "dog"), count=5, corner=8):
    """Write masks whose names are made of the category and the number of the image."""
    for category in categories:
        for number in range(count):
            file = root / name.format(category, number)
            file.parent.mkdir(exist_ok=True, parents=True)
            pixels = np.zeros((32, 32), dtype=np.uint8)
            pixels[:corner, :corner] = 255
            Image.fromarray(pixels).save(file)


@pytest.mark.parametrize(
    "name",
    ["{}/mask_{}.png", "{}/gt_{}.png", "{}/{}_label.png", "{}/{}_annotation.png", "{}/{}_labelIds.png",
     "{}/{}_trimap.png", "{}/{} (mask).png", "{}/{}mask.png", "{}/{}_m_1.png", "{}/annotations/{}.png",
     "{}/labels/{}.png", "labels/{}/{}.png", "annotations/{}/{}.png", "SegmentationClass/{}/{}.png",
     "segmentation_masks/{}/{}.png", "masks_{}/{}.png"],
)  # fmt: skip
def test_masks_under_other_names_are_known_by_their_flatness(name, tmp_path):
    write_split(tmp_path, {"cat": 5, "dog": 5})
    write_masks(tmp_path, name)
    tables = load_tables(f"folder:{tmp_path}")
    assert tables.classes == ("cat", "dog") and images_of(tmp_path) == (10, 10) and tables.notes == ()
    assert (np.asarray(tables.train.read(0)[1]) == 255).sum() == 64


def test_photographs_are_no_masks_whatever_their_names(tmp_path):
    names = ("{}_label.png", "mask_{}.png", "labels/{}.png", "../annotations/{}.png", "../cat_masks/{}.png")
    write_split(tmp_path, {"cat": 5, "dog": 5})
    for number in range(5):
        for name in names:
            file = tmp_path / "cat" / name.format(number)
            file.parent.mkdir(exist_ok=True)
            scene(90 + number)[0].save(file)
    assert load_tables(f"folder:{tmp_path}").classes == ("annotations", "cat", "cat_masks", "dog")
    assert images_of(tmp_path) == (35, 0)


def test_drawings_are_no_masks_of_each_other(tmp_path):
    write_masks(tmp_path, "{}/{}.png")
    write_masks(tmp_path, "{}/{}_label.png", corner=20)
    write_masks(tmp_path, "labels/{1}.png", ("cat",), corner=4)
    assert load_tables(f"folder:{tmp_path}").classes == ("cat", "dog", "labels")
    assert images_of(tmp_path) == (25, 0)


def test_soft_masks_are_known_by_their_names(tmp_path):
    write_split(tmp_path, {"cat": 5, "dog": 5})
    write_masks(tmp_path, "cat_masks/{1}.png", ("cat",))
    for file in (tmp_path / "cat_masks").iterdir():
        Image.open(file).filter(ImageFilter.GaussianBlur(2)).save(file)
    assert load_tables(f"folder:{tmp_path}").classes == ("cat", "dog") and images_of(tmp_path) == (10, 5)


@pytest.mark.parametrize(
    ("images", "masks"), [("images", "annotations"), ("JPEGImages", "SegmentationClass")]
)
def test_images_and_masks_that_are_no_categories_are_refused(images, masks, tmp_path):
    write_split(tmp_path / images, {"cat": 5, "dog": 5})
    write_masks(tmp_path / masks, "{}/{}.png")
    with pytest.raises(InputError, match=f"{masks} holds masks of the images in {images}; move the folders"):
        load_tables(f"folder:{tmp_path}")


def test_masks_of_a_split_belong_to_no_other(tmp_path):
    write_split(tmp_path / "train", {"cat": 5, "dog": 5})
    write_split(tmp_path / "test", {"cat": 3, "dog": 3})
    write_masks(tmp_path, "train_masks/{}/{}.png")
    assert images_of(tmp_path) == (16, 10)
    write_masks(tmp_path, "test_masks/{}/{}.png")
    assert images_of(tmp_path) == (16, 16)
    shutil.rmtree(tmp_path / "test_masks")
    (tmp_path / "train_masks").rename(tmp_path / "masks")
    with pytest.raises(InputError, match=r"0\.png: a mask that may belong to .*test_masks/CATEGORY"):
        load_tables(f"folder:{tmp_path}")


def test_masks_of_parts_are_united_and_rivals_are_refused(tmp_path):
    write_split(tmp_path, {"cat": 5, "dog": 5})
    for number, row in ((1, 2), (2, 20)):
        pixels = np.zeros((32, 32), dtype=np.uint8)
        pixels[row, :4] = 255
        for image in range(5):
            Image.fromarray(pixels).save(tmp_path / "cat" / f"{image}_mask_{number}.png")
    tables = load_tables(f"folder:{tmp_path}")
    assert images_of(tmp_path) == (10, 5)
    assert (np.asarray(tables.train.read(0)[1]) == 255).sum() == 8
    shutil.copy(tmp_path / "cat" / "0_mask_1.png", tmp_path / "cat" / "0_seg.png")
    with pytest.raises(InputError, match=r"0\.png: masks under several names"):
        load_tables(f"folder:{tmp_path}")


def test_photographs_of_masks_stay_photographs(tmp_path):
    write_split(tmp_path, {"mask": 5, "no_mask": 5})
    for file in (tmp_path / "mask").iterdir():
        file.rename(file.with_name(f"{file.stem}_Mask.jpg"))
    assert load_tables(f"folder:{tmp_path}").classes == ("mask", "no_mask")
    assert images_of(tmp_path) == (10, 0)


def test_a_flat_folder_of_masks_is_refused(tmp_path):
    write_split(tmp_path, {"cat": 5, "dog": 5})
    (tmp_path / "masks").mkdir()
    Image.new("L", (32, 32), 255).save(tmp_path / "masks" / "0.png")
    with pytest.raises(InputError, match="masks: holds masks beside the categories; expected masks/CATEGORY"):
        load_tables(f"folder:{tmp_path}")


@pytest.mark.parametrize(
    ("train", "other", "name"),
    [("Training", "Testing", "test"), ("seg_train", "seg_test", "test"), ("trainval", "testing", "test"),
     ("TRAIN", "Valid", "valid"), ("train", "dev", "dev"), ("train", "eval", "test"),
     ("train", "Test", "test"),
     ("training_set", "test_set", "test_set"), ("train_images", "Val-Set", "val"),
     ("train2017", "val2017", "val"), ("train", "test1", "test"), ("TrainData", "TestData", "test"),
     ("train_dir", "test2017", "test"), ("train", "PublicTest", "test_public"),
     ("train", "private_test", "test_private"), ("data_train", "final_test", "test_final"),
     ("train", "validate", "validation"), ("alphabet_train", "alphabet_test", "test"),
     ("train_small", "test_small", "test_small"), ("trainA", "testA", "test"), ("Train ", "1_Test", "test")],
)  # fmt: skip
def test_splits_under_their_usual_names(train, other, name, tmp_path):
    write_split(tmp_path / train, {"cat": 10, "dog": 10})
    write_split(tmp_path / other, {"cat": 3, "dog": 3})
    tables = load_tables(f"folder:{tmp_path}")
    assert tables.classes == ("cat", "dog") and tables.primary == name and len(tables.tests[name]) == 6


def test_a_test_split_of_an_unknown_name_is_not_passed_over(tmp_path):
    write_split(tmp_path / "train", {"cat": 4, "dog": 4})
    write_split(tmp_path / "unseen", {"cat": 2, "dog": 2})
    with pytest.raises(InputError, match=r"the folder unseen holds the categories of train.*call it test or"):
        load_tables(f"folder:{tmp_path}")


@pytest.mark.parametrize(
    ("folders", "said"),
    [(["cat/train", "cat/test"], "found cat/test and cat/train, .*as in train/cat and test/cat: move"),
     (["cat/Training Images", "cat/Validation Images"], "splits inside a category"),
     (["all/train/cat", "all/test/cat"], "splits all/test and all/train .*give that folder: .*/all$"),
     (["trainA", "testA"], "the folders trainA and testA, named like splits"),
     (["train", "test"], "the folders train and test, named like splits")],
)  # fmt: skip
def test_splits_where_categories_are_expected_are_refused(folders, said, tmp_path):
    for category in ("cat", "dog"):
        for folder in folders:
            write_split(tmp_path, {folder.replace("cat", category): 4}, exist_ok=True)
    with pytest.raises(InputError, match=said):
        load_tables(f"folder:{tmp_path}")


def test_categories_that_all_hold_the_same_folders_are_said(tmp_path):
    for fold in ("fold1", "fold2"):
        write_split(tmp_path / fold, {"cat": 4, "dog": 4})
    assert "the folders cat, dog inside each of fold1, fold2" in load_tables(f"folder:{tmp_path}").notes[0]


def test_one_split_under_two_names_is_refused(tmp_path):
    for name in ("train", "val", "dev", "test"):
        write_split(tmp_path / name, {"cat": 3, "dog": 3})
    with pytest.raises(InputError, match="dev and val are the same split"):
        load_tables(f"folder:{tmp_path}")


def test_a_category_may_be_called_like_a_split(tmp_path):
    write_split(tmp_path, {"bus": 4, "train": 4})
    assert load_tables(f"folder:{tmp_path}").classes == ("bus", "train")


def test_a_doubled_folder_and_an_unknown_one(tmp_path):
    write_split(tmp_path / "seg_train" / "seg_train", {"cat": 4, "dog": 4})
    write_split(tmp_path / "seg_test" / "seg_test", {"cat": 2, "dog": 2})
    write_split(tmp_path, {"seg_pred": 3})
    tables = load_tables(f"folder:{tmp_path}")
    assert len(tables.tests["test"]) == 4 and tables.notes == ("the folder seg_pred, which is no split",)


@pytest.mark.parametrize(
    "name",
    [".ipynb_checkpoints", "@eaDir", ".thumbnails", "__MACOSX", "$RECYCLE.BIN",
     "@__thumb", "~snapshot", "RECYCLED", "_gsdata_", "_vti_cnf", "wandb", "~tmp"],
)  # fmt: skip
def test_litter_is_neither_category_nor_image(name, tmp_path):
    write_split(tmp_path, {"cat": 5, "dog": 5, name: 1})
    shutil.copytree(tmp_path / name, tmp_path / "cat" / name)
    (tmp_path / "lost+found").mkdir()
    assert load_tables(f"folder:{tmp_path}").classes == ("cat", "dog") and images_of(tmp_path) == (10, 0)


@pytest.mark.parametrize("place", ["runs", "q", "runs/first"])
def test_the_programs_own_runs_in_the_data_are_no_category(place, tmp_path):
    write_split(tmp_path, {"cat": 4, "dog": 4})
    write_split(tmp_path / place, {"figures": 2})
    assert len(load_tables(f"folder:{tmp_path}").classes) == 3
    for name in ("config.yaml", "environment.json"):
        (tmp_path / place / name).write_text("{}")
    assert load_tables(f"folder:{tmp_path}").classes == ("cat", "dog") and images_of(tmp_path) == (8, 0)


def test_loose_images_archives_and_twins_are_said(tmp_path):
    write_split(tmp_path, {"cat": 4, "Cat": 4})
    scene(0)[0].save(tmp_path / "1.png")
    (tmp_path / "more.tar.gz").write_bytes(b"-")
    (tmp_path / "labels.csv").write_text("a")
    said = (
        "1 image beside the folders, which tell the categories: 1.png",
        "1 archive, not unpacked: more.tar.gz",
    )
    notes = load_tables(f"folder:{tmp_path}").notes
    assert notes == ("names that look alike are categories of their own: 'Cat', 'cat'", *said)
    write_split(tmp_path / "new" / "train", {"cat": 4, "dog": 4})
    write_split(tmp_path / "new" / "test", {"cat": 4, "dog": 4})
    scene(0)[0].save(tmp_path / "new" / "train" / "1.png")
    assert load_tables(f"folder:{tmp_path / 'new'}").notes == (f"train: {said[0]}",)


def test_files_of_other_endings_are_read_or_named(tmp_path):
    write_split(tmp_path, {"cat": 4, "dog": 4})
    image = Image.open(tmp_path / "cat" / "0.png")
    image.save(tmp_path / "cat" / "a.JFIF", "JPEG")
    image.save(tmp_path / "cat" / "b.gif")
    (tmp_path / "cat" / "c.heic").write_bytes(b"-")
    (tmp_path / "dog" / "d").write_bytes(b"-")
    assert images_of(tmp_path) == (10, 0)
    assert load_tables(f"folder:{tmp_path}").notes == (
        "1 file of .heic: not read as an image",
        "1 file of no ending: not read as an image",
        "1 file of .gif: the first picture of each is used, the others are left out",
    )


def test_a_category_without_training_images_stops(tmp_path):
    write_split(tmp_path, {"cat": 4, "dog": 4})
    (tmp_path / "cow").mkdir()
    (tmp_path / "cow" / "0.heic").write_bytes(b"-")
    with pytest.raises(InputError, match=r"no training image of 'cow' .1 file of \.heic"):
        load_data(f"folder:{tmp_path}")


def test_one_image_of_another_size_changes_nothing(tmp_path):
    write_split(tmp_path, {"cat": 30, "dog": 30})
    Image.new("RGB", (32, 31)).save(tmp_path / "cat" / "0.png")
    data = load_data(f"folder:{tmp_path}")
    assert data.preprocessing.image_size == 32
    for number in range(1, 12):
        Image.new("RGB", (32, 31)).save(tmp_path / "cat" / f"{number}.png")
    data = load_data(f"folder:{tmp_path}")
    assert data.preprocessing.image_size == 224 and "images differ in size" in data.notes[0]


@pytest.mark.parametrize("place", ["caf\udce9", "train/caf\udce9", "test_\udce9/cat"])
def test_a_folder_whose_name_is_no_text_is_refused_at_the_start(place, tmp_path):
    try:
        (tmp_path / place).mkdir(parents=True)
    except OSError:
        pytest.skip("this system has no such names")
    root = tmp_path / "train" if "/" in place else tmp_path
    write_split(root, {"cat": 5, "dog": 5})
    with pytest.raises(InputError, match=r"udce9' is not in UTF-8, .*; rename the folder"):
        load_tables(f"folder:{tmp_path}")
