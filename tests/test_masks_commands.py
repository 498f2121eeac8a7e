"""The commands `masks import`, `masks export` and `masks check`, and the folder that --masks reads."""

from __future__ import annotations

import json
import os
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from test_mask_formats import (
    coco,
    encoded,
    flat,
    labelme,
    on_seven,
    photograph,
    shape,
    studio,
    studio_result,
    written,
)
from test_parquet import write_parquet
from torchdoctor.case.settings import Settings
from torchdoctor.data.checking import splits_of
from torchdoctor.data.image_names import DataImages
from torchdoctor.data.load import load_data, load_tables
from torchdoctor.data.mask_folder import match_masks
from torchdoctor.data.mask_formats.registry import FormatName
from torchdoctor.data.settings import DataSettings
from torchdoctor.types import InputError
from torchdoctor.verbs import check_masks, export_masks, import_masks

SIZE = (40, 30)
SQUARE = [[4, 4], [20, 4], [20, 14], [4, 14]]
SHARE = 160 / 1200


@pytest.fixture
def animals(tmp_path):
    """Photographs of cats and dogs in two splits, called 0.jpg to 3.jpg in each folder."""
    root = tmp_path / "animals"
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            for number in range(4):
                photograph(root / split / name / f"{number}.jpg", SIZE)
    return root


def annotate(root, *names, label=None, points=SQUARE):
    """Write a LabelMe file beside each photograph; its label is the name of its folder."""
    for name in names:
        file = root / name
        record = labelme(shape("polygon", points, label or file.parent.name), imagePath=file.name)
        written(file.with_suffix(".json"), record)


def square(*, width=SIZE[0], height=SIZE[1]):
    pixels = np.zeros((height, width), dtype=np.uint8)
    pixels[4:14, 4:20] = 255
    return pixels


def shares(tables):
    """Return the share of the object in each image that has a mask."""
    found = {}
    for image in DataImages(tables).images:
        mask = splits_of(tables)[image.split].read(image.position)[1]
        if mask is not None:
            found[image.name] = float((np.asarray(mask) > 0).mean())
    return found


# Import


def test_labelme_beside_the_photographs_becomes_masks_that_are_read_back(command, animals, tmp_path):
    annotate(animals, "train/cat/0.jpg", "train/dog/1.jpg", "test/cat/2.jpg")
    code, out, err = command("masks", "import", animals, "--format", "labelme", "--out", "masks", "--json")
    assert code == 0, err
    record = json.loads(out)
    assert record["written"] == 3 and record["format"] == "labelme" and record["problems"] == []
    files = sorted(
        file.relative_to(tmp_path / "masks").as_posix() for file in (tmp_path / "masks").rglob("*.png")
    )
    assert files == ["test/cat/2.png", "train/cat/0.png", "train/dog/1.png"]
    pixels = np.asarray(Image.open(tmp_path / "masks" / "train" / "cat" / "0.png"))
    assert np.array_equal(pixels, square())
    made = json.loads((tmp_path / "masks" / "masks.json").read_text())["masks"]["train/cat/0.png"]
    assert made["labels"] == ["cat"] and made["sources"] == [str(animals / "train" / "cat" / "0.json")]

    tables = load_tables(f"folder:{animals}", settings=DataSettings(masks=str(tmp_path / "masks")))
    assert shares(tables) == dict.fromkeys(("train/cat/0.jpg", "train/dog/1.jpg", "test/cat/2.jpg"), SHARE)
    code, out, err = command("masks", "check", "--data", f"folder:{animals}", "--masks", "masks")
    assert code == 0 and "13 images have no mask" in out, err
    code, out, _ = command("data", "check", "--data", f"folder:{animals}", "--masks", "masks", "--json")
    splits = json.loads(out)["splits"]
    assert splits["train"]["masks"] + splits["validation"]["masks"] == 2 and splits["test"]["masks"] == 1


def test_the_folder_of_masks_is_also_read_inside_the_data(animals, tmp_path):
    annotate(animals, "train/cat/0.jpg")
    import_masks(animals, animals / "masks")
    tables = load_tables(f"folder:{animals}")
    assert shares(tables) == {"train/cat/0.jpg": SHARE} and tables.classes == ("cat", "dog")


def test_what_exists_is_not_overwritten_without_being_asked(command, animals, tmp_path):
    annotate(animals, "train/cat/0.jpg", "train/cat/1.jpg")
    (tmp_path / "masks" / "train" / "cat").mkdir(parents=True)
    mine = written(tmp_path / "masks" / "train" / "cat" / "0.png", b"mine")
    words = ("masks", "import", animals, "--out", "masks")
    code, _, err = command(*words)
    assert code == 2 and "1 of 2 masks exists already, such as" in err and "nothing was written" in err
    assert mine.read_bytes() == b"mine" and [file.name for file in mine.parent.iterdir()] == ["0.png"]
    code, out, _ = command(*words, "--overwrite")
    assert code == 0 and "1 of them replaced another" in out and mine.read_bytes() != b"mine"


def test_a_second_import_adds_to_the_first(animals, tmp_path):
    annotate(animals, "train/cat/0.jpg")
    import_masks(animals / "train" / "cat", tmp_path / "masks")
    annotate(animals, "train/dog/1.jpg")
    (animals / "train" / "cat" / "0.json").unlink()
    import_masks(animals / "train" / "dog", tmp_path / "masks")
    made = json.loads((tmp_path / "masks" / "masks.json").read_text())["masks"]
    assert sorted(made) == ["0.png", "1.png"]


def test_what_cannot_be_used_is_named_and_nothing_is_written(command, animals, tmp_path):
    annotate(animals, "train/cat/0.jpg")
    annotate(animals, "train/cat/1.jpg", points=SQUARE[:2])
    words = ("masks", "import", animals, "--out", "masks")
    code, _, err = command(*words)
    assert code == 2 and "1.json: shape 1 (polygon 'cat'): 2 points; expected at least 3" in err
    assert (
        "nothing was written: 1 annotation cannot be used; repair them" in err
        and not (tmp_path / "masks").exists()
    )
    code, out, _ = command(*words, "--on-error", "skip")
    assert code == 0 and "1 annotation could not be used" in out and "1.json: shape 1" in out
    assert [file.name for file in (tmp_path / "masks").rglob("*.png")] == ["0.png"]


def test_names_are_matched_to_the_data_and_what_is_left_is_listed(command, animals, tmp_path):
    images = [
        {"id": number, "file_name": name, "width": SIZE[0], "height": SIZE[1]}
        for number, name in enumerate(["export\\TRAIN\\cat\\0.JPG", "test/dog/3.png", "elsewhere/99.jpg"], 1)
    ]
    records = [
        {**on_seven(segmentation=[flat(SQUARE)]), "id": image["id"], "image_id": image["id"],
         "category_id": 18 if "dog" in image["file_name"] else 90}
        for image in images
    ]  # fmt: skip
    written(tmp_path / "a.json", coco(*records, images=images))
    words = ("masks", "import", "a.json", "--data", f"folder:{animals}", "--out", "masks")
    code, out, err = command(*words)
    assert code == 0, err
    assert "1 annotated image is not in the data set" in out and "elsewhere/99.jpg" in out
    assert shares(load_tables(f"folder:{animals}", settings=DataSettings(masks=str(tmp_path / "masks")))) == {
        "train/cat/0.jpg": SHARE, "test/dog/3.jpg": SHARE,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "label", "kind", "said"),
    [
        ("0.jpg", "cat", "several images", "may be any of 4 images: test/cat/0.jpg, "),
        ("cat/0.jpg", "cat", "several images", "may be any of 2 images"),
        (
            "train/cat/0.jpg",
            "dog",
            "other category",
            "shapes labelled 'dog' on train/cat/0.jpg, an image of the",
        ),
        ("train/cat/0.jpg", "DOG", "other category", "shapes labelled 'DOG'"),
        (
            "dog/only.jpg",
            "thing",
            "other category",
            "names the category 'dog'; the image train/cat/only.jpg is of",
        ),
    ],
)
def test_doubtful_annotations_are_problems(name, label, kind, said, animals, tmp_path):
    photograph(animals / "train" / "cat" / "only.jpg", SIZE)
    images = [{"id": 7, "file_name": name, "width": SIZE[0], "height": SIZE[1]}]
    content = coco(
        on_seven(segmentation=[flat(SQUARE)]), images=images, categories=[{"id": 90, "name": label}]
    )
    file = written(tmp_path / "a.json", content)
    result = check_masks(Settings(data=f"folder:{animals}"), file)
    (problem,) = result.problems
    assert problem.kind == kind and said in problem.text and str(file) in problem.text


def test_shapes_of_other_categories_are_not_drawn(animals, tmp_path):
    other = shape("polygon", [[25, 20], [35, 20], [35, 28]], "dog")
    thing = shape("rectangle", [[0, 0], [2, 2]], "ear")
    file = animals / "train" / "cat" / "0.json"
    written(file, labelme(shape("polygon", SQUARE, "Cat"), other, thing, imagePath="0.jpg"))
    result = import_masks(animals, tmp_path / "masks", settings=Settings(data=f"folder:{animals}"))
    assert result.drawn.masks[0].share == 164 / 1200 and result.drawn.masks[0].labels == ("Cat", "ear")
    assert "1 shape labelled as another category than their image: not drawn" in result.drawn.notes


def test_only_shapes_of_the_named_labels_are_drawn(command, animals, tmp_path):
    ear, tail = shape("rectangle", [[0, 0], [2, 2]], "ear"), shape("rectangle", [[30, 20], [33, 22]], "tail")
    body, cut = shape("polygon", SQUARE, "cat"), shape("rectangle", [[0, 0], [1, 2]], "_background_")
    for name, shapes in (("0", (body, ear, cut)), ("1", (tail, ear)), ("2", (body, cut))):
        written(animals / "train" / "cat" / f"{name}.json", labelme(*shapes, imagePath=f"{name}.jpg"))
    words = ("masks", "import", animals, "--json", "--data", f"folder:{animals}", "--out")
    code, out, err = command(*words, "some", "--label", "ear", "--label", "tail")
    assert code == 0, err
    record = json.loads(out)
    drawn = {mask["image"]: (round(mask["share"] * 1200), mask["labels"]) for mask in record["masks"]}
    assert drawn == {"train/cat/0.jpg": (2, ["ear"]), "train/cat/1.jpg": (10, ["ear", "tail"])}
    assert record["without_shapes"] == ["train/cat/2.jpg"]
    assert "2 shapes of labels that --label does not name: not drawn" in record["notes"]
    code, _, err = command(*words, "none", "--label", "ear", "--label", "Tail")
    assert code == 2 and not (tmp_path / "none").exists()
    assert "--label 'Tail': no shape has this label" in err and "'cat' (2), 'ear' (2), 'tail' (1)" in err
    assert command(*words, "all")[0] == 0
    assert json.loads((tmp_path / "all/masks.json").read_text())["masks"].keys() == {
        f"train/cat/{number}.png" for number in range(3)
    }


def test_uploads_of_label_studio_are_known_without_their_prefix(animals, tmp_path):
    photograph(animals / "train" / "cat" / "only one.jpg", SIZE)
    value = {"x": 10, "y": 100 / 7.5, "width": 40, "height": 100 / 3}
    result = studio_result("rectanglelabels", value)
    file = written(tmp_path / "t.json", studio(result, address="/data/upload/3/0a1b2c3d-only%20one.jpg"))
    found = import_masks(file, tmp_path / "masks", settings=Settings(data=f"folder:{animals}"))
    assert [mask.image for mask in found.drawn.masks] == ["train/cat/only one.jpg"]
    assert found.drawn.masks[0].share == SHARE


def test_masks_of_uploads_are_named_as_the_images_were(tmp_path):
    result = studio_result("rectanglelabels", {"x": 10, "y": 100 / 7.5, "width": 40, "height": 100 / 3})

    def names(*addresses):
        folder = tmp_path / f"masks of {len(list(tmp_path.iterdir()))}"
        tasks = [task for address in addresses for task in studio(result, address=f"/data/upload/{address}")]
        import_masks(written(tmp_path / "export" / "t.json", tasks), folder)
        return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*.png"))

    assert names("1/0a1b2c3d-one%20cat.jpg", "12/four-dogs.jpg") == ["four-dogs.png", "one cat.png"]
    # Two uploads of one name keep what tells them apart.
    both = names("1/0a1b2c3d-cat.jpg", "1/1a1b2c3d-cat.jpg")
    assert both == ["data/upload/1/0a1b2c3d-cat.png", "data/upload/1/1a1b2c3d-cat.png"]
    # An image beside the export has the name that it has there.
    photograph(tmp_path / "export" / "images" / "one cat.JPG", SIZE)
    photograph(tmp_path / "export" / "0a1b2c3d-dog.jpg", SIZE)
    assert names("1/0a1b2c3d-one%20cat.jpg", "1/0a1b2c3d-dog.jpg") == [
        "0a1b2c3d-dog.png",
        "images/one cat.png",
    ]


def test_data_too_small_to_be_divided_have_masks_all_the_same(tmp_path, command):
    for number in range(2):
        photograph(tmp_path / "data" / "cat" / f"{number}.jpg", SIZE)
        photograph(tmp_path / "data" / "dog" / f"{number}.jpg", SIZE)
    mask = np.zeros(SIZE[::-1], dtype=np.uint8)
    mask[3:9, 4:8] = 255
    (tmp_path / "masks" / "cat").mkdir(parents=True)
    Image.fromarray(mask).save(tmp_path / "masks" / "cat" / "1.png")
    data = ("--data", f"folder:{tmp_path / 'data'}", "--masks", tmp_path / "masks")
    code, out, _ = command("masks", "check", *data)
    assert code == 0 and "3 images have no mask" in out
    code, out, _ = command("masks", "export", "--format", "coco", "--out", tmp_path / "out", *data)
    assert code == 0 and "1 mask as coco: 1 file in" in out and "3 images have no mask and are" in out
    code, out, _ = command(
        "masks", "import", tmp_path / "out", "--data", data[1], "--out", tmp_path / "again"
    )
    assert code == 0 and ": 1 mask in " in out
    code, _, err = command("data", "check", "--data", data[1])
    assert code == 2 and "split is empty" in err
    code, _, err = command("train", "--data", data[1], "--model", "small_resnet", "--out", tmp_path / "run")
    assert code == 2 and "split is empty" in err


def test_what_is_one_is_said_in_the_singular(tmp_path, command):
    for number in range(10):
        photograph(tmp_path / "data" / "cat" / f"{number}.jpg", SIZE)
        photograph(tmp_path / "data" / "dog" / f"{number}.jpg", SIZE)
    for name in [f"cat/{number}" for number in range(10)] + [f"dog/{number}" for number in range(1, 10)]:
        file = tmp_path / "masks" / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.tri(*SIZE[::-1], dtype=np.uint8) * 255).save(file)
    Image.fromarray(np.full(SIZE[::-1], 255, dtype=np.uint8)).save(tmp_path / "masks" / "cat" / "0.png")
    (tmp_path / "masks" / "dog" / "9.png").rename(tmp_path / "masks" / "dog" / "10.png")
    photograph(tmp_path / "data" / "dog" / "9.jpg", SIZE)
    data = ("--data", f"folder:{tmp_path / 'data'}", "--masks", tmp_path / "masks")
    out = command("masks", "check", *data)[1]
    assert "2 images have no mask" in out
    assert "1 mask covers its whole image, and leaves no background" in out
    assert "1 mask belongs to no image" in out
    Image.fromarray(np.full(SIZE[::-1], 255, dtype=np.uint8)).save(tmp_path / "masks" / "dog" / "0.png")
    assert "1 image has no mask" in command("masks", "check", *data)[1]


def test_images_that_differ_in_their_ending_keep_it(tmp_path):
    for name in ("1.jpg", "1.png", "2.jpg"):
        photograph(tmp_path / "data" / "cat" / name, SIZE)
        written(
            tmp_path / "labels" / "cat" / f"{name}.json", labelme(shape("polygon", SQUARE), imagePath=name)
        )
    photograph(tmp_path / "data" / "dog" / "1.jpg", SIZE)
    for settings in (None, Settings(data=f"folder:{tmp_path / 'data'}")):
        folder = tmp_path / ("masks" if settings is None else "own")
        import_masks(tmp_path / "labels", folder, settings=settings)
        names = sorted(file.name for file in folder.rglob("*.png"))
        assert names == ["1.jpg.png", "1.png.png", "2.png"]
        tables = load_tables(f"folder:{tmp_path / 'data'}", settings=DataSettings(masks=str(folder)))
        assert shares(tables) == dict.fromkeys(("cat/1.jpg", "cat/1.png", "cat/2.jpg"), SHARE)


def test_missing_flags_and_sources_are_named(command, animals):
    assert "--out is missing" in command("masks", "import", animals)[2]
    assert "no such file or folder" in command("masks", "import", "nowhere", "--out", "m")[2]
    code, _, err = command("masks", "export", "--data", f"folder:{animals}", "--out", "m")
    assert code == 2 and "--format (png, labelme, coco, voc, yolo, cvat, label-studio) is missing" in err
    assert "expected one of png (mask files" in command("masks", "export", "--format", "x", "--out", "m")[2]
    code, _, err = command("masks", "export", "--data", f"folder:{animals}", "--format", "coco", "--out", "m")
    assert code == 2 and "no image has a mask; give a folder of masks with --masks" in err
    assert "nothing to check" in command("masks", "check")[2]
    assert "are for a file or folder" in command("masks", "check", "--data", "scenes", "--ids")[2]
    assert "give one of them" in command("masks", "check", "x", "--data", "scenes", "--masks", "y")[2]
    code, _, err = command("masks", "import", animals, "--out", "masks", "--format", "coco")
    assert code == 2 and "nothing of the format coco in it; found 16 files .jpg" in err
    annotate(animals, "train/cat/0.jpg")
    (animals / "train" / "cat" / "0.jpg").unlink()
    code, _, err = command("masks", "import", animals, "--data", f"folder:{animals}", "--out", "masks")
    assert code == 2 and "none of the images that are named (1): train/cat/0.jpg" in err


def test_a_missing_library_is_named(command, animals, monkeypatch):
    annotate(animals, "train/cat/0.jpg")
    monkeypatch.setitem(__import__("sys").modules, "pycocotools", None)
    monkeypatch.delitem(__import__("sys").modules, "pycocotools.mask", raising=False)
    code, _, err = command("masks", "import", animals, "--out", "masks")
    assert code == 2 and "pycocotools, which is not installed: pip install torchdoctor[masks]" in err


# Export


@pytest.mark.parametrize("name", get_args(FormatName))
def test_an_export_is_imported_again(name, command, animals, tmp_path):
    annotate(animals, "train/cat/0.jpg", "train/dog/1.jpg", "test/cat/0.jpg")
    import_masks(animals, tmp_path / "masks")
    data = ("--data", f"folder:{animals}")
    code, out, err = command(
        "masks", "export", *data, "--masks", "masks", "--format", name, "--out", "out", "--json"
    )
    assert code == 0, err
    record = json.loads(out)
    assert record["images"] == 3 and record["without_mask"] == 13 and record["problems"] == []
    assert all((tmp_path / "out" / file).is_file() for file in record["files"])
    code, _, err = command("masks", "export", *data, "--masks", "masks", "--format", name, "--out", "out")
    assert code == 2 and "'out' holds files; give a new folder, or --overwrite" in err
    code, out, err = command("masks", "import", "out", *data, "--out", "again", "--json")
    assert code == 0, err
    record = json.loads(out)
    assert record["format"] == name and record["unmatched"] == [] and record["problems"] == []
    for file in ("train/cat/0.png", "train/dog/1.png", "test/cat/0.png"):
        one, other = (np.asarray(Image.open(tmp_path / place / file)) for place in ("masks", "again"))
        assert np.array_equal(one, other)


def test_labelme_finds_the_photographs_of_an_export(animals, tmp_path):
    annotate(animals, "train/cat/0.jpg")
    import_masks(animals, tmp_path / "masks")
    settings = Settings(data=f"folder:{animals}", masks=str(tmp_path / "masks"))
    export_masks(settings, tmp_path / "out", format="labelme")
    content = json.loads((tmp_path / "out" / "train" / "cat" / "0.json").read_text())
    assert content["imagePath"] == "../../../animals/train/cat/0.jpg" and content["imageData"] is None
    (mask,) = import_masks(tmp_path / "out", tmp_path / "again").drawn.masks
    assert mask.place == "train/cat/0" and mask.share == SHARE


def test_masks_of_images_without_files_are_exported_and_come_back(tmp_path):
    write_parquet(tmp_path / "train.parquet", [0, 1] * 6)
    tables = load_tables(f"parquet:{tmp_path / 'train.parquet'}")
    names = [image.name for image in DataImages(tables).images]
    assert len(set(names)) == 12
    side = tables.train.read(0)[0].size
    pixels = square(width=side[0], height=side[1])
    for image in DataImages(tables).images[:3]:
        written(tmp_path / "masks" / f"{image.place}.png", encoded(pixels))
    settings = Settings(data=f"parquet:{tmp_path / 'train.parquet'}", masks=str(tmp_path / "masks"))
    assert export_masks(settings, tmp_path / "out", format="labelme").images == 3
    plain = Settings(data=f"parquet:{tmp_path / 'train.parquet'}")
    assert len(import_masks(tmp_path / "out", tmp_path / "again", settings=plain).drawn.masks) == 3


def test_a_mask_that_cannot_be_read_stops_an_export_or_is_left_out(animals, tmp_path):
    annotate(animals, "train/cat/0.jpg", "train/cat/1.jpg")
    import_masks(animals, tmp_path / "masks")
    written(tmp_path / "masks" / "train" / "cat" / "1.png", encoded(square(width=41)))
    settings = Settings(data=f"folder:{animals}", masks=str(tmp_path / "masks"))
    with pytest.raises(InputError, match="the mask is 41 x 30 pixels but the image is 40 x 30"):
        export_masks(settings, tmp_path / "out", format="coco")
    result = export_masks(settings, tmp_path / "more", format="coco", on_error="skip")
    assert result.images == 1 and "41 x 30" in result.problems[0].text


# Check


def masks_with_faults(animals, folder):
    written(folder / "train" / "cat" / "0.png", encoded(square()))
    written(folder / "train" / "cat" / "1.png", encoded(square(width=41)))
    written(folder / "train" / "cat" / "2.png", encoded(np.zeros(SIZE[::-1], dtype=np.uint8)))
    written(folder / "train" / "cat" / "3.png", b"no image")
    written(folder / "train" / "dog" / "0.png", encoded(np.full(SIZE[::-1], 255, dtype=np.uint8)))
    photograph(animals / "train" / "dog" / "turned.jpg", SIZE, orientation=3)
    written(folder / "train" / "dog" / "turned.png", encoded(square()))
    photograph(animals / "train" / "dog" / "other.jpg", SIZE)
    written(folder / "train" / "cat" / "other.png", encoded(square()))
    written(folder / "stray.png", encoded(square()))


def test_every_kind_of_fault_is_found(command, animals, tmp_path):
    masks_with_faults(animals, tmp_path / "masks")
    words = ("masks", "check", "--data", f"folder:{animals}", "--masks", "masks")
    code, out, err = command(*words, "--json")
    assert code == 2 and "5 masks of folder:" in err and "--on-error skip" in err
    record = json.loads(out)
    kinds = {problem["kind"]: problem for problem in record["problems"]}
    assert sorted(kinds) == ["empty", "other category", "turned by EXIF", "unreadable", "wrong size"]
    assert kinds["wrong size"]["image"] == "train/cat/1.jpg" and "41 x 30" in kinds["wrong size"]["text"]
    assert kinds["other category"]["image"] == "train/dog/other.jpg"
    assert record["full"] == ["train/dog/0.jpg"] and record["unmatched"][0].endswith("stray.png")
    assert record["categories"]["cat"] == {
        "images": 8, "masks": 1, "share_with_mask": 0.125, "mean_object_share": round(SHARE, 6),
    }  # fmt: skip
    assert record["categories"]["dog"]["masks"] == 1 and record["categories"]["dog"]["images"] == 10
    assert record["missing"] == 12 and "test/cat/0.jpg" in record["missing_images"]
    code, out, _ = command(*words, "--on-error", "skip")
    assert code == 0
    for said in (
        "12.5 %",
        "12 images have no mask",
        "1 mask covers its whole image",
        "stray.png",
        "1 of kind 'empty'",
    ):
        assert said in out, said


def test_masks_drawn_from_another_category_are_found(animals, tmp_path):
    annotate(animals, "train/cat/0.jpg", label="dog")
    annotate(animals, "train/cat/1.jpg", label="tail")
    import_masks(animals, tmp_path / "masks")
    result = check_masks(Settings(data=f"folder:{animals}", masks=str(tmp_path / "masks")))
    (problem,) = result.problems
    assert problem.kind == "other category" and "0.png: drawn from shapes labelled 'dog'" in problem.text


def test_annotations_are_checked_without_being_imported(command, animals, tmp_path):
    annotate(animals, "train/cat/0.jpg", "train/dog/0.jpg")
    annotate(animals, "train/dog/1.jpg", points=[[100, 100], [120, 100], [100, 120]])
    before = sorted(tmp_path.rglob("*"))
    code, out, err = command("masks", "check", animals, "--json")
    assert code == 2 and "1 mask of" in err and sorted(tmp_path.rglob("*")) == before
    record = json.loads(out)
    assert record["categories"]["cat"] == {
        "images": 1, "masks": 1, "share_with_mask": 1.0, "mean_object_share": round(SHARE, 6),
    }  # fmt: skip
    assert record["problem_counts"] == {"off the image": 1}
    code, out, _ = command(
        "masks", "check", animals, "--data", f"folder:{animals}", "--on-error", "skip", "--json"
    )
    record = json.loads(out)
    assert code == 0 and record["images"] == 16 and record["masks"] == 2 and record["missing"] == 13


def test_images_without_shapes_count_as_images_without_a_mask(command, animals):
    annotate(animals, "train/cat/0.jpg", "train/cat/1.jpg", "train/cat/2.jpg")
    written(animals / "train/cat/3.json", labelme(imagePath="3.jpg"))
    code, out, err = command("masks", "check", animals / "train/cat", "--json")
    record = json.loads(out)
    assert code == 0 and record["missing_images"] == ["3.jpg"], err
    assert (record["images"], record["masks"], record["share_with_mask"]) == (4, 3, 0.75)
    assert record["categories"]["cat"]["images"] == 3
    assert record["categories"]["without a label"] == {
        "images": 1, "masks": 0, "share_with_mask": 0.0, "mean_object_share": None,
    }  # fmt: skip


def test_masks_of_the_data_themselves_are_checked(command):
    code, out, _ = command("masks", "check", "--data", "scenes", "--json")
    record = json.loads(out)
    assert (
        code == 0 and record["missing"] == 0 and record["problems"] == [] and record["share_with_mask"] == 1
    )


# The folder of masks


def test_a_folder_of_masks_is_refused_where_it_does_not_fit(animals, tmp_path):
    def load(folder):
        return load_tables(f"folder:{animals}", settings=DataSettings(masks=str(folder)))

    with pytest.raises(InputError, match=r"--masks .*: no such folder"):
        load(tmp_path / "nowhere")
    (tmp_path / "masks").mkdir()
    with pytest.raises(InputError, match=r"holds no mask files; expected PATH/NAME\.png"):
        load(tmp_path / "masks")
    written(tmp_path / "masks" / "stray.png", encoded(square()))
    with pytest.raises(InputError, match=r"holds 1 mask file, and none belongs to an image .*stray\.png"):
        load(tmp_path / "masks")
    written(tmp_path / "masks" / "0.png", encoded(square()))
    with pytest.raises(InputError, match="may belong to 4 images"):
        load(tmp_path / "masks")
    (tmp_path / "masks" / "0.png").unlink()
    for name in ("0.png", "0_mask.png"):
        written(tmp_path / "masks" / "test" / "cat" / name, encoded(square()))
    with pytest.raises(InputError, match=r"a second mask of test/cat/0\.jpg"):
        load(tmp_path / "masks")
    (tmp_path / "masks" / "test" / "cat" / "0.png").unlink()
    assert load(tmp_path / "masks").notes == (f"1 mask that belongs to no image: {tmp_path}/masks/stray.png",)


def test_other_masks_go_before_those_of_the_data_and_change_the_fingerprint(animals, tmp_path):
    written(animals / "test" / "cat" / "0.mask.png", encoded(np.full(SIZE[::-1], 255, dtype=np.uint8)))
    plain = load_data(f"folder:{animals}", image_size=32)
    written(tmp_path / "masks" / "test" / "cat" / "0.png", encoded(square()))
    settings = DataSettings(masks=str(tmp_path / "masks"), image_size=32)
    masked = load_data(f"folder:{animals}", settings=settings)
    assert shares(load_tables(f"folder:{animals}", settings=settings)) == {"test/cat/0.jpg": SHARE}
    changed = [name for name in plain.fingerprints if plain.fingerprints[name] != masked.fingerprints[name]]
    assert changed == ["test"]


def test_masks_are_matched_whatever_the_letters(animals, tmp_path):
    photograph(animals / "train" / "cat" / "Caf\u00e9 1.JPG", SIZE)
    data = DataImages(load_tables(f"folder:{animals}"))
    written(tmp_path / "masks" / "CAT" / "cafe\u0301 1.png", encoded(square()))
    written(tmp_path / "masks" / "deep" / "er" / "test" / "dog" / "2.PNG", encoded(square()))
    matches = match_masks(data, tmp_path / "masks")
    images = {(image.split, image.position): image.name for image in data.images}
    assert sorted(images[key] for key in matches.files) == ["test/dog/2.jpg", "train/cat/Caf\u00e9 1.JPG"]
    assert not matches.problems and not matches.unmatched


def test_folders_decide_before_endings(tmp_path):
    for name in ("cat/1.png", "dog/1.jpg", "cat/3.jpg", "dog/4.jpg", "cat/5.jpg", "dog/6.jpg"):
        photograph(tmp_path / "data" / name, SIZE)
    data = DataImages(load_tables(f"folder:{tmp_path / 'data'}"))
    assert [image.name for image in data.find(["dog/1.png"])] == ["dog/1.jpg"]
    assert [image.name for image in data.find(["1.png"])] == ["cat/1.png"]
    assert len(data.find(["1"])) == 2 and data.find(["2"]) == []


def test_links_in_a_circle_are_named(animals, tmp_path):
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "again").symlink_to(tmp_path / "masks")
    with pytest.raises(InputError, match="a link that leads in a circle"):
        import_masks(tmp_path / "masks", tmp_path / "out", format="png")
    with pytest.raises(InputError, match="a link that leads in a circle"):
        load_tables(f"folder:{animals}", settings=DataSettings(masks=str(tmp_path / "masks")))


@pytest.mark.parametrize("name", [b"caf\xe9", b"tab\there"])
def test_names_that_files_cannot_hold_are_not_exported(name, animals, tmp_path):
    folder = animals / "train" / "cat"
    try:
        (folder / "0.jpg").rename(folder / os.fsdecode(name + b".jpg"))
    except OSError:
        pytest.skip("this file system does not allow such names")
    written(folder / os.fsdecode(name + b".mask.png"), encoded(square()))
    with pytest.raises(InputError, match="a name that the files of the format cannot hold"):
        export_masks(Settings(data=f"folder:{animals}"), tmp_path / "out", format="voc")


def test_masks_that_exif_turns_are_turned(animals, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = Image.fromarray(square()).transpose(Image.Transpose.ROTATE_90)
    (tmp_path / "masks" / "train" / "cat").mkdir(parents=True)
    turned.save(tmp_path / "masks" / "train" / "cat" / "0.png", exif=exif)
    settings = Settings(data=f"folder:{animals}")
    result = import_masks(tmp_path / "masks", tmp_path / "out", format="png", settings=settings)
    assert [mask.share for mask in result.drawn.masks] == [SHARE]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "train" / "cat" / "0.png")), square())


@pytest.mark.slow
def test_a_diagnosis_uses_the_masks_of_a_folder(command, photos, trained, tmp_path):
    pixels = np.zeros((24, 24), dtype=np.uint8)
    pixels[6:18, 6:18] = 255
    for file in (photos / "train").rglob("*.png"):
        written(tmp_path / "masks" / file.relative_to(photos), encoded(pixels))
    weights = ("--weights", trained / "model.safetensors")
    words = ("diagnose", *weights, "--data", f"folder:{photos}", "--draws", 1)
    code, _, err = command(*words, "--out", "plain")
    assert code == 0 and "masks: masks" not in (tmp_path / "plain" / "config.yaml").read_text(), err
    code, _, err = command(*words, "--masks", "masks", "--out", "masked")
    assert code == 0, err
    assert "masks: masks" in (tmp_path / "masked" / "config.yaml").read_text()
    found = [json.loads((tmp_path / run / "inputs.json").read_text())["data"] for run in ("plain", "masked")]
    assert found[0] != found[1]
