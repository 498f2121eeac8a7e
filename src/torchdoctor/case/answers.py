"""Read what a person answered about the labels of training images."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torchdoctor.data.load import Splits
from torchdoctor.data.table import ImageTable
from torchdoctor.diagnosis.suspects_result import LIST, ListedLabel, read_labels
from torchdoctor.files.reading import sha256_of
from torchdoctor.types import InputError

KEEP, UNUSABLE = "keep", "unusable"  # answers that name no category


@dataclass(frozen=True)
class Answers:
    """What a person answered about the labels of some training images.

    Attributes:
        labels: The number of the right category of each image whose label is wrong, by the image's id.
        kept: The ids of the images whose label is right.
        unusable: The ids of the images that show none of the categories.
        source: The sha256 of the file.
    """

    labels: Mapping[int, int] = field(default_factory=dict)
    kept: frozenset[int] = frozenset()
    unusable: frozenset[int] = frozenset()
    source: str = ""

    @property
    def given(self) -> int:
        """The number of images that a person looked at."""
        return len(self.labels) + len(self.kept) + len(self.unusable)

    @property
    def changes(self) -> bool:
        """Whether an answer changes what is trained on."""
        return bool(self.labels or self.unusable)


def read_answers(file: str, data: Splits) -> Answers:
    """Read a `labels.csv` whose column `answer` a person filled in.

    An answer is the name of a category, `keep` where the label is right, or `unusable` where the image shows
    none of the categories. Lines without an answer, and lines of other splits than the training split, are
    left aside.

    Args:
        file: The file.
        data: The images.

    Returns:
        The answers.

    Raises:
        InputError: The file cannot be read, an answer or an image is unknown, an image has two answers, or
            there is no answer.
    """
    place = f"--labels {file!r}"
    answers = answers_in(file, data, place)
    if not answers.given:
        raise InputError(
            f"{place} has no answer about a training image: write the right category, {KEEP!r} or "
            f"{UNUSABLE!r} into the column `answer` of the lines that you looked at"
        )
    if not answers.changes:
        number = len(answers.kept)
        all_say = "the only answer says" if number == 1 else f"all {number} answers say"
        raise InputError(
            f"{place}: {all_say} that the label is right, so there is "
            f"nothing to train anew; {LIST} of a run lists labels that look wrong"
        )
    return answers


def answers_in(file: str, data: Splits, place: str) -> Answers:
    """Read the answers in a `labels.csv`, of which there may be none.

    Args:
        file: The file.
        data: The images.
        place: What error messages call the file, with the option that named it.

    Returns:
        The answers.

    Raises:
        InputError: The file cannot be read, an answer or an image is unknown, or an image has two answers.
    """
    table = data.train.table
    known = {str(name): int(identity) for name, identity in zip(table.names, table.ids, strict=True)}
    given = dict(zip(table.ids.tolist(), table.labels.tolist(), strict=True))
    labels, kept, unusable = dict[int, int](), set[int](), set[int]()
    for line in read_labels(file):
        if not line.answer or line.split not in ("", "train"):
            continue
        image = _image(line, known, table, place)
        if image in labels or image in kept or image in unusable:
            raise InputError(f"{place}: image {line.image!r} has two answers: leave one of them")
        category = category_of(line, data.classes, place)
        if category == UNUSABLE:
            unusable.add(image)
        elif category == KEEP or category == given[image]:
            kept.add(image)
        else:
            labels[image] = int(category)
    return Answers(labels, frozenset(kept), frozenset(unusable), sha256_of(Path(file)))


def _image(line: ListedLabel, known: Mapping[str, int], table: ImageTable, place: str) -> int:
    """Return the id of the image of a line, which is named by its name or by its id."""
    if line.image in known:
        return known[line.image]
    if line.image.isdecimal() and int(line.image) in set(table.ids.tolist()):
        return int(line.image)
    raise InputError(
        f"{place}: {line.image!r} is not among the {len(known)} training images"
        f"{_nearest(line.image, list(known))}. Give the list of a run on the same data"
    )


def _nearest(word: str, known: Sequence[str]) -> str:
    """Return a question for the known word that is most like a word; empty without a similar one."""
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def category_of(line: ListedLabel, classes: tuple[str, ...], place: str) -> int | str:
    """Return what an answer says.

    Args:
        line: A line with an answer.
        classes: The names of the categories.
        place: What the error message calls the list.

    Returns:
        The number of a category, `keep` or `unusable`.

    Raises:
        InputError: The answer is neither a category nor one of these words.
    """
    if line.answer in classes:
        return classes.index(line.answer)
    if line.answer.lower() in (KEEP, UNUSABLE):
        return line.answer.lower()
    raise InputError(
        f"{place}: {line.answer!r} of image {line.image!r} is no category"
        f"{_nearest(line.answer, [*classes, KEEP, UNUSABLE])}. Expected the name of a category, {KEEP!r} or "
        f"{UNUSABLE!r}"
    )
