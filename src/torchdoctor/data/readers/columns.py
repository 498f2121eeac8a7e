"""Find the columns of a table that hold images, labels and splits."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torchdoctor.data.splitting import split_names
from torchdoctor.types import InputError

PATHS = (
    "path", "image", "img", "file", "filename", "file_name", "image_path", "filepath", "file_path",
)  # fmt: skip
IMAGES = ("image", "img", "jpg", "png", "photo")
LABELS = (
    "label", "labels", "fine_label", "class", "class_name", "category", "target", "y",
)  # fmt: skip
SPLITS = ("split", "subset", "set", "partition")
SHOWN = 30  # of many columns, how many an error names


def find_column(names: Sequence[str], asked: str | None, usual: Sequence[str], flag: str, place: str) -> str:
    """Choose a column by the name that was asked for, or by the names that such columns usually have.

    Args:
        names: The columns that there are.
        asked: The column that the user named, or None.
        usual: The usual names. The first is taken wherever it is there; of the others, upper and lower case
            do not count and only one may be there.
        flag: The option that names the column.
        place: The file, for error messages.

    Returns:
        The name of the column as the file has it.

    Raises:
        InputError: No column or several columns match.
    """
    listed = f"found {list(names[:SHOWN])}{' and more' if len(names) > SHOWN else ''}"
    if asked is not None:
        if asked in names:
            return asked
        raise InputError(f"{place}: {flag} {asked!r}: no such column; {listed}")
    if usual[0] in names:
        return usual[0]
    matches = [name for name in names if name.lower() in usual]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise InputError(
            f"{place}: the columns {', '.join(map(repr, matches))} may all be meant; choose one with {flag}"
        )
    raise InputError(
        f"{place}: column {usual[0]!r} is missing; {listed}, expected {usual[0]!r} or one of "
        f"{', '.join(usual[1:])}; {flag} names another"
    )


def group_text(cell: object) -> str:
    """Return the group that a cell of the column `group` names.

    Args:
        cell: The content of the cell; None where the table has no such column.

    Returns:
        Its text without spaces around it; empty where it names no group.
    """
    return "" if cell is None else str(cell).strip()


def groups_of(texts: Sequence[str]) -> tuple[str, ...] | None:
    """Return the groups of images.

    Args:
        texts: The group of each image; empty for one that has none.

    Returns:
        The same; None where no image has a group.
    """
    return tuple(texts) if any(texts) else None


def splits_of_column(
    values: Sequence[object], column: str, place_of: Callable[[int], str]
) -> list[str] | None:
    """Return the split that each row names.

    Args:
        values: The cells of the column, one for each row.
        column: The name of the column.
        place_of: Returns where a row stands by its position, for error messages.

    Returns:
        The names of the splits; a row without one belongs to `train`. None where the column is not called
        `split` and no cell names a split.

    Raises:
        InputError: A cell names no split.
    """
    texts = ["" if value is None else str(value).strip() for value in values]
    known = split_names(sorted(set(texts)))
    wrong = next((row for row, text in enumerate(texts) if text and text not in known), None)
    if wrong is not None:
        if column.lower() != SPLITS[0] and not known:
            return None
        raise InputError(
            f"{place_of(wrong)}: {column} {texts[wrong]!r}; expected train, val or validation, test or "
            "test_NAME"
        )
    return [known.get(text, "train") for text in texts]


def split_column(names: Sequence[str]) -> str | None:
    """Choose the column that may name the split of each row.

    Args:
        names: The columns that there are.

    Returns:
        The first of the usual names that is there, in upper or lower case; None without one.
    """
    return next((name for usual in SPLITS for name in names if name.lower() == usual), None)
