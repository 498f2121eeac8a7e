"""Turn the splits that a source holds into a whole data set: splits that are missing are divided off."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from torchdoctor.data.table import ImageTable, Tables, carve
from torchdoctor.types import InputError

VALIDATION_NAMES = ("val", "valid", "validation", "dev")
FOLDER_ROLES = {
    "train": "train", "training": "train", "trainval": "train", "trainset": "train", "val": "val",
    "valid": "valid", "validation": "validation", "dev": "dev", "development": "dev", "valset": "val",
    "test": "test", "testing": "test", "tests": "test", "testset": "test", "eval": "eval",
    "evaluation": "eval", "holdout": "eval",
}  # fmt: skip
AFFIXES = re.compile(r"^(?:seg|imgs?|images?)[_ -]|[_ -](?:set|data|dataset|split|imgs?|images?)$")
TEST_SHARE = 0.2  # the share of images that becomes the test split of a source without splits


def is_test_name(name: str) -> bool:
    """Return whether a split of this name is for testing.

    Args:
        name: The name of the split.

    Returns:
        True for `test`, and for further test splits such as `test_night`.
    """
    return name == "test" or name.startswith("test_")


def is_split_name(name: str) -> bool:
    """Return whether a folder, or a file whose name starts so, holds a split.

    Args:
        name: The name of the folder, or the start of the name of the file.

    Returns:
        True for `train`, the names of validation splits, and those of test splits.
    """
    return name == "train" or name in VALIDATION_NAMES or is_test_name(name)


def split_role(folder: str) -> str | None:
    """Return which split a folder holds by its name.

    Args:
        folder: The name of the folder, in upper or lower case.

    Returns:
        `train`; `val`, `valid`, `validation` or `dev`; `test` or a further test split such as `test_night`;
        `eval`, which is a test split too; None for any other name.
    """
    if is_test_name(folder):
        return folder
    name = folder.lower()
    role = FOLDER_ROLES.get(name) or FOLDER_ROLES.get(AFFIXES.sub("", name))
    return name if role is None and is_test_name(name) else role


def divide(splits: Mapping[str, ImageTable], origin: str, seed: int, validation_share: float) -> Tables:
    """Make a data set with training, validation and test splits from the splits that there are.

    Without a test split, the validation split is used for testing, under its own name; without either, a
    fifth of every category becomes the split `test`. Without a validation split (or if it is used for
    testing), a share of every category of the training images becomes the validation split.

    Args:
        splits: The splits by name; `train` must be there.
        origin: The `--data` value, for error messages.
        seed: The seed by which images are chosen; the same seed always chooses the same images.
        validation_share: The share of the training images that becomes the validation split, between 0 and 1.

    Returns:
        The data set. Its primary test split is `test`, or the first test split without that.

    Raises:
        InputError: There are fewer than two categories, or a split is empty.
    """
    train = splits["train"]
    if len(train.classes) < 2:
        content = f"the single category {train.classes[0]!r}" if train.classes else "no image and no category"
        raise InputError(f"{origin}: found {content}, expected at least two categories")
    tests = {name: table for name, table in splits.items() if is_test_name(name)}
    held_out = next((name for name in VALIDATION_NAMES if name in splits), None)
    divided_off = False
    if tests and held_out is not None:
        validation = replace(splits[held_out], ids=splits[held_out].ids + len(train))
    else:
        if not tests and held_out is not None:
            tests = {held_out: splits[held_out]}
        if divided_off := not tests:
            train, tests["test"] = carve(train, TEST_SHARE, seed)
        train, validation = carve(train, validation_share, seed)
    for name, table in {"train": train, "validation": validation, **tests}.items():
        if not len(table):
            raise InputError(
                f"{origin}: the {name} split is empty; expected at least one image, better hundreds"
            )
    primary = "test" if "test" in tests else next(iter(tests))
    return Tables(train.classes, train, validation, tests, primary, origin, test_divided_off=divided_off)
