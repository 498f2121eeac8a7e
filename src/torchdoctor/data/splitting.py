"""Turn the splits that a source holds into a whole data set: what is missing is divided off by seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torchdoctor.data.table import ImageTable, Tables, carve
from torchdoctor.types import InputError

VALIDATION_NAMES = ("val", "valid", "validation")
TEST_SHARE = 0.2  # of a source that comes undivided


def is_test_name(name: str) -> bool:
    """Return whether a split is for testing: `test` itself, or a further one such as `test_night`."""
    return name == "test" or name.startswith("test_")


def is_split_name(name: str) -> bool:
    """Return whether a folder or file prefix of this name is a split."""
    return name == "train" or name in VALIDATION_NAMES or is_test_name(name)


def divide(splits: Mapping[str, ImageTable], origin: str, seed: int, validation_share: float) -> Tables:
    """Return the data set in `splits`, which holds `train` and perhaps others.

    Without a test split, a validation split is tested on under its own name; without either, a fifth of
    every category is split off as `test`. Without a validation split, `validation_share` of every
    category of what is trained on is split off.
    """
    train = splits["train"]
    if len(train.classes) < 2:
        found = f"the single category {train.classes[0]!r}" if train.classes else "no image and no category"
        raise InputError(f"{origin}: found {found}, expected at least two categories")
    tests = {name: table for name, table in splits.items() if is_test_name(name)}
    held_out = next((name for name in VALIDATION_NAMES if name in splits), None)
    if tests and held_out is not None:
        validation = replace(splits[held_out], ids=splits[held_out].ids + len(train))
    else:
        if not tests and held_out is not None:
            tests = {held_out: splits[held_out]}
        if not tests:
            train, tests["test"] = carve(train, TEST_SHARE, seed)
        train, validation = carve(train, validation_share, seed)
    for name, table in {"train": train, "validation": validation, **tests}.items():
        if not len(table):
            raise InputError(
                f"{origin}: the {name} split is empty; expected at least one image, better hundreds"
            )
    primary = "test" if "test" in tests else next(iter(tests))
    return Tables(train.classes, train, validation, tests, primary, origin)
