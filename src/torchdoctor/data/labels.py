"""Turn the labels of a table into categories: one name for each, in an order that depends on nothing else."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from decimal import Decimal

from torchdoctor.display.counts import count_of
from torchdoctor.types import InputError

NUMBER = re.compile(r"[+-]?\d+(\.\d*)?(e[+-]?\d+)?", re.IGNORECASE | re.ASCII)
ZERO_PADDED = re.compile(r"[+-]?0\d", re.ASCII)
LONGEST_NUMBER, LARGEST_EXPONENT = 40, 30  # what is longer or larger is a name, not a number
NOT_A_NUMBER = ("nan", "<na>")  # what pandas writes for a missing value
MISSING = (*NOT_A_NUMBER, "na", "n/a", "none", "null", "?", "-")  # where all other labels are numbers
UNKNOWN = ("unknown", "unlabeled", "unlabelled", "undefined", "missing", "not available", "tbd")
MARKS = (99, 255, 999, 9999, 65535)  # numbers that often mark a missing value, where all others are far below
NAMED = 5  # of many labels, how many an error names


def label_text(value: object, place: str) -> str:
    """Return a label as text.

    Args:
        value: What stands in the file: text or a number.
        place: Where it stands, for error messages.

    Returns:
        The text without spaces around it.

    Raises:
        InputError: The label is missing or empty, or it is a truth value or a list.
    """
    text = str(value).strip()
    usable = isinstance(value, str | int | float) and not isinstance(value, bool)
    if not usable or not text or (isinstance(value, float) and not math.isfinite(value)):
        raise InputError(f"{place}: label {value!r}; expected a category's name or number")
    if text.lower() in NOT_A_NUMBER:
        raise InputError(
            f"{place}: label {value!r} marks a missing value; remove the row, or give its category by name"
        )
    return text


def categories_of(labels: Mapping[str, Counter[str]], origin: str) -> tuple[tuple[str, ...], dict[str, int]]:
    """Find the categories of the training split, and which of them each label means.

    Where all labels are numbers, categories are sorted as numbers, and whole numbers have one name however
    they are written: `1` for 1, 1.0 and 1e0. Otherwise they are sorted by name.

    Args:
        labels: For each split how often each label occurs, as written; `train` must be there.
        origin: The `--data` value, for error messages.

    Returns:
        The names of the categories in order, and the number of the category by the label as written.

    Raises:
        InputError: A label does not occur in the training split, marks a missing value, or is one number in
            two ways of writing (codes with zeros before them, such as `01`, are categories of their own).
    """
    written = sorted(set().union(*labels.values()))
    numbers = {label: value for label in written if (value := _number(label)) is not None}
    only_numbers = len(numbers) == len(written)
    names = {label: _plain_number(label, numbers[label]) if only_numbers else label for label in written}
    if numbers and not only_numbers:
        _refuse_missing([label for label in written if label not in numbers], labels, origin)
    _refuse_two_writings({names[label]: value for label, value in numbers.items()}, origin)
    train = {names[label] for label in labels["train"]}
    _refuse_unknown(labels, names, train, origin)
    if only_numbers:
        _refuse_minus_one(numbers, labels, origin)
        values = {names[label]: value for label, value in numbers.items()}
        classes = tuple(sorted(train, key=lambda name: (values[name], name)))
    else:
        classes = tuple(sorted(train))
    indices = {name: index for index, name in enumerate(classes)}
    return classes, {label: indices[names[label]] for label in written}


def notes_on_labels(classes: Sequence[str]) -> tuple[str, ...]:
    """Say what is doubtful about the categories of a table.

    Args:
        classes: The names of the categories.

    Returns:
        Sentences; none where nothing is.
    """
    return note_on_codes(classes) + note_on_twins(classes) + note_on_marks(classes)


def note_on_codes(classes: Sequence[str]) -> tuple[str, ...]:
    """Say which categories differ only by zeros before a number.

    Args:
        classes: The names of the categories.

    Returns:
        A sentence; none where there are no such categories.
    """
    plain = {name.lstrip("0") or "0" for name in classes if not ZERO_PADDED.match(name)}
    codes = [name for name in classes if ZERO_PADDED.match(name) and (name.lstrip("0") or "0") in plain]
    if not codes:
        return ()
    return (f"the labels {_listed(codes)} are categories of their own beside the same without zeros",)


def note_on_twins(classes: Sequence[str]) -> tuple[str, ...]:
    """Say which categories have names that look alike: another case, spaces, or another form in Unicode.

    Args:
        classes: The names of the categories.

    Returns:
        A sentence; none where there are no such categories.
    """
    alike: dict[str, list[str]] = {}
    for name in classes:
        seen = "".join(c for c in unicodedata.normalize("NFKC", name) if unicodedata.category(c) != "Cf")
        alike.setdefault(" ".join(seen.split()).casefold(), []).append(name)
    twins = [name for names in alike.values() if len(names) > 1 for name in names]
    if not twins:
        return ()
    return (f"names that look alike are categories of their own: {', '.join(map(ascii, twins[:NAMED]))}",)


def note_on_marks(classes: Sequence[str]) -> tuple[str, ...]:
    """Say which categories have names that often mark images whose category is not known.

    Args:
        classes: The names of the categories.

    Returns:
        A sentence; none where there are no such categories.
    """
    values = {name: _number(name) for name in classes}
    others = [value for value in values.values() if value is not None and value not in MARKS]
    far: list[str] = []
    if None not in values.values() and len(others) + 1 == len(classes) > 1:
        far = [name for name, value in values.items() if value in MARKS and value > 2 * max(others)]
    marks = [name for name in classes if name.lower() in (*MISSING, *UNKNOWN)] + far
    if not marks:
        return ()
    return (
        f"the label {_listed(marks)}, which may mark images whose category is not known, is a category here; "
        "remove its rows if it does",
    )


def _number(label: str) -> Decimal | None:
    """Return the value of a label that is a number; None for a name."""
    if len(label) > LONGEST_NUMBER or not NUMBER.fullmatch(label):
        return None
    value = Decimal(label)
    return value if abs(value.adjusted()) <= LARGEST_EXPONENT or value == 0 else None


def _plain_number(label: str, value: Decimal) -> str:
    """Return a whole number in digits alone; others, and those with zeros before them, as written."""
    if ZERO_PADDED.match(label) or value != value.to_integral_value():
        return label
    return str(int(value))


def _refuse_missing(others: list[str], labels: Mapping[str, Counter[str]], origin: str) -> None:
    """Raise InputError where the only labels beside numbers mark missing values."""
    if all(label.lower() in MISSING for label in others):
        rows = sum(counts[label] for counts in labels.values() for label in others)
        raise InputError(
            f"{origin}: {_have(rows)} the label {_listed(others)} and all others a number: it marks a "
            "missing value; remove these rows, or give the categories by name"
        )


def _refuse_two_writings(values: Mapping[str, Decimal], origin: str) -> None:
    """Raise InputError for two names of the same number; numbers with zeros before them are codes."""
    first: dict[Decimal, str] = {}
    for name, value in values.items():
        if ZERO_PADDED.match(name):
            continue
        other = first.setdefault(value, name)
        if other != name:
            raise InputError(
                f"{origin}: the labels {other!r} and {name!r} are the same number; write it in one way, or "
                "give names to categories that differ"
            )


def _refuse_unknown(
    labels: Mapping[str, Counter[str]], names: Mapping[str, str], train: set[str], origin: str
) -> None:
    """Raise InputError for labels that do not occur in the training split."""
    for split, counts in labels.items():
        unknown = [label for label in sorted(counts) if names[label] not in train]
        if unknown:
            rows = sum(counts[label] for label in unknown)
            raise InputError(
                f"{origin}: in the split {split} {_have(rows)} the label {_listed(unknown)}, which is "
                f"unknown to training (it has {_listed(sorted(train))}); remove these rows, or give them the "
                "label of a training category"
            )


def _refuse_minus_one(
    numbers: Mapping[str, Decimal], labels: Mapping[str, Counter[str]], origin: str
) -> None:
    """Raise InputError where one number below 0 stands beside 0 or 1 to a larger one: it marks no label."""
    negative = [label for label, value in numbers.items() if value < 0]
    if negative and max(numbers.values()) >= 2 and len({numbers[label] for label in negative}) == 1:
        rows = sum(counts[label] for counts in labels.values() for label in negative)
        raise InputError(
            f"{origin}: {_have(rows)} the label {_listed(negative)} and all others one of 0 or more, so it "
            "seems to mark images whose category is not known; remove these rows, or give the categories by "
            "name"
        )


def _have(rows: int) -> str:
    """Begin a sentence about a number of rows."""
    return count_of(rows, "row has", "rows have")


def _listed(names: list[str]) -> str:
    """Name the first few labels."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(map(repr, names[:NAMED])) + more
