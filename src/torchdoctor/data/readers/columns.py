"""Find the columns of a table that hold images and labels."""

from __future__ import annotations

from collections.abc import Sequence

from torchdoctor.types import InputError

PATHS = (
    "path", "image", "img", "file", "filename", "file_name", "image_path", "filepath", "file_path",
)  # fmt: skip
IMAGES = ("image", "img", "jpg", "png", "photo")
LABELS = (
    "label", "labels", "fine_label", "class", "class_name", "category", "target", "y",
)  # fmt: skip
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
