"""Turn the splits that a source holds into a whole data set: splits that are missing are divided off."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

from torchdoctor.data.table import ImageTable, Tables, carve
from torchdoctor.types import InputError

VALIDATION_NAMES = ("val", "valid", "validation", "dev")
ROLES = {
    "train": "train", "training": "train", "trainval": "train", "trainset": "train", "val": "val",
    "valid": "valid", "validation": "validation", "validate": "validation", "dev": "dev",
    "development": "dev", "valset": "val", "test": "test", "testing": "test", "tests": "test",
    "testset": "test", "eval": "eval", "evaluation": "eval", "holdout": "eval",
}  # fmt: skip
FILLERS = {
    "set", "data", "dataset", "split", "img", "imgs", "image", "images", "photo", "photos", "picture",
    "pictures", "file", "files", "folder", "dir", "seg", "raw", "orig", "original", "v",
}  # fmt: skip
KINDS_OF_TEST = {"public", "private", "final", "hidden"}
BETWEEN_WORDS = re.compile(r"[\W\d_]+|(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
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


def split_role(name: str) -> str | None:
    """Return which split a folder or file holds by its name.

    Args:
        name: The name, in upper or lower case. Numbers in it, and words such as `data`, do not count.

    Returns:
        `train`; `val`, `valid`, `validation` or `dev`; `test` or a further test split such as `test_night`;
        `eval`, which is a test split too; None for any other name.
    """
    role, rest = role_and_rest(name)
    return None if rest else role


def role_and_rest(name: str) -> tuple[str | None, str]:
    """Return which split a name tells, and the words in it that tell something else.

    Args:
        name: The name of a folder or file.

    Returns:
        The split as in `split_role`, or None where no word, or words of two splits, tell one; and the other
        words: for `alphabet_train`, `train` and `alphabet`.
    """
    if is_test_name(name):
        return name, ""
    words = [word.lower() for word in BETWEEN_WORDS.split(name) if word]
    if "".join(words[:2]) in ROLES:  # train_val
        words = ["".join(words[:2]), *words[2:]]
    roles = {ROLES[word] for word in words if word in ROLES}
    others = [word for word in words if word not in ROLES and word not in FILLERS]
    if len(roles) != 1:
        return None, "_".join(others)
    role = roles.pop()
    if role == "test" and is_test_name(name.lower()) and others:
        return name.lower(), ""
    if role == "test" and others and set(others) <= KINDS_OF_TEST:
        return f"test_{'_'.join(others)}", ""
    return role, "_".join(others)


def split_names(names: Iterable[str]) -> dict[str, str]:
    """Tell which of the folders or files that lie together are splits.

    Args:
        names: Their names, or for files the starts of their names.

    Returns:
        The split by the name of the folder or file, where it is one: as in `split_role`, or by a word
        of its name where a training split and another have all other words in common, as `alphabet_train`
        and `alphabet_test` have. `eval` is `test`, or `test_eval` beside another test split.
    """
    told = {name: role_and_rest(name) for name in names}
    found = {name: role for name, (role, rest) in told.items() if role is not None and not rest}
    if "train" not in found.values():
        for shared in sorted({rest for role, rest in told.values() if role == "train"}):
            own = {
                name: role for name, (role, _) in told.items()
                if role is not None and _other_words(name) == shared
            }  # fmt: skip
            if len(set(own.values())) > 1:
                found = {**found, **own}
                break
    tested = any(is_test_name(role) for role in found.values())
    as_eval = "test_eval" if tested else "test"
    return {name: as_eval if role == "eval" else role for name, role in found.items()}


def _other_words(name: str) -> str:
    """Return the words of a name that tell no split, also where it is a further test split."""
    words = [word.lower() for word in BETWEEN_WORDS.split(name) if word]
    return "_".join(word for word in words if word not in ROLES and word not in FILLERS)


def divide(splits: Mapping[str, ImageTable], origin: str, seed: int, validation_share: float) -> Tables:
    """Make a data set with training, validation and test splits from the splits that there are.

    Without a test split, the validation split is used for testing, under its own name; without either, a
    fifth of every category becomes the split `test`. Without a validation split (or if it is used for
    testing), a share of every category of the training images becomes the validation split. What is divided
    off few images may be empty (see `table.refuse_empty`).

    Args:
        splits: The splits by name; `train` must be there.
        origin: The `--data` value, for error messages.
        seed: The seed by which images are chosen; the same seed always chooses the same images.
        validation_share: The share of the training images that becomes the validation split, between 0 and 1.

    Returns:
        The data set. Its primary test split is `test`, or the first test split without that.

    Raises:
        InputError: There are fewer than two categories, two validation splits, or no training images.
    """
    train = splits["train"]
    if len(train.classes) < 2:
        content = f"the single category {train.classes[0]!r}" if train.classes else "no image and no category"
        raise InputError(f"{origin}: found {content}, expected at least two categories")
    tests = {name: table for name, table in splits.items() if is_test_name(name)}
    validations = [name for name in VALIDATION_NAMES if name in splits]
    if len(validations) > 1:
        raise InputError(
            f"{origin}: {' and '.join(validations)} are the same split; keep one of them, or call one "
            "test_NAME"
        )
    held_out = validations[0] if validations else None
    divided_off = False
    if tests and held_out is not None:
        validation = replace(splits[held_out], ids=splits[held_out].ids + len(train))
    else:
        if not tests and held_out is not None:
            tests = {held_out: splits[held_out]}
        if divided_off := not tests:
            train, tests["test"] = carve(train, TEST_SHARE, seed)
        train, validation = carve(train, validation_share, seed)
    if not len(train):
        raise InputError(f"{origin}: the train split is empty; expected at least one image, better hundreds")
    primary = "test" if "test" in tests else next(iter(tests))
    return Tables(train.classes, train, validation, tests, primary, origin, test_divided_off=divided_off)
