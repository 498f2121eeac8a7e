"""Keep a person's answers about labels in the run's `labels.csv`, each on the disk before it counts."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock

from torchdoctor.case.answers import KEEP, UNUSABLE, category_of
from torchdoctor.diagnosis.suspects_result import LIST, read_labels
from torchdoctor.display.counts import count_of
from torchdoctor.files.writing import write_bytes
from torchdoctor.review.queue import LabelQuestion
from torchdoctor.types import InputError

Answer = int | str  # the number of a category, `keep`, `unusable`, or nothing


class LabelStore:
    """The answers in `labels.csv`.

    The file is read before each answer is written: what somebody writes into it beside the page is kept, and
    so are further columns.
    """

    def __init__(self, run: Path, questions: Sequence[LabelQuestion], classes: Sequence[str]) -> None:
        """Read the list of a run.

        Args:
            run: The run's folder.
            questions: The images that are asked about.
            classes: The names of the categories.

        Raises:
            InputError: The list is missing or damaged, or lacks an image.
        """
        self.file = run / LIST
        self.classes = tuple(classes)
        self.words = {word: _free_word(word, classes) for word in (KEEP, UNUSABLE)}
        self._names = {one.id: one.name for one in questions}
        self._given = {one.id: one.given for one in questions}
        self._lock = Lock()
        if questions:
            rows, known = self._read()[1], self.answers()
            missing = [one for one in questions if one.id not in known]
            if missing:
                raise InputError(
                    f"{str(self.file)!r} has {count_of(len(rows), 'line')} and none for "
                    f"{missing[0].name!r}, which the "
                    "run lists: restore the line, or diagnose anew"
                )

    def answers(self) -> dict[int, Answer]:
        """Return the answers.

        Returns:
            By the image's id: the number of a category, `keep` or `unusable`; empty without an answer.

        Raises:
            InputError: The list is missing or damaged, or an answer is no category.
        """
        if not self._names:
            return {}
        lines = {line.image: line for line in read_labels(self.file) if line.split in ("", "train")}
        found: dict[int, Answer] = {}
        for image, name in self._names.items():
            line = lines.get(name, lines.get(str(image)))
            if line is not None:
                found[image] = (
                    self._plain(image, category_of(line, self.classes, repr(str(self.file))))
                    if line.answer
                    else ""
                )
        return found

    def _plain(self, image: int, answer: Answer) -> Answer:
        """Return an answer in the words of the page: the labelled category itself is `keep`."""
        is_given = isinstance(answer, int) and self.classes[answer] == self._given[image]
        return KEEP if is_given else answer

    def write(self, image: int, answer: Answer) -> None:
        """Write an answer, so that it is on the disk when this returns.

        Args:
            image: The id of the image.
            answer: The number of a category, `keep`, `unusable`, or nothing to take an answer back.

        Raises:
            InputError: The image is not asked about, the answer is no category, or the list is damaged.
            ModelDoctorError: The list cannot be written.
        """
        if image not in self._names:
            raise InputError(f"image {image} is not among those whose labels look wrong")
        numbered = isinstance(answer, int) and 0 <= answer < len(self.classes)
        if not numbered and answer not in ("", KEEP, UNUSABLE):
            raise InputError(
                f"{answer!r} is no answer; expected the number of a category below {len(self.classes)}, "
                f"{KEEP!r} or {UNUSABLE!r}"
            )
        answer = self._plain(image, answer)
        text_of_answer = self.classes[answer] if isinstance(answer, int) else self.words.get(answer, answer)
        with self._lock:
            columns, rows = self._read()
            for row in rows:
                if row["image"] in (self._names[image], str(image)) and row["split"] in ("", "train"):
                    row["answer"] = text_of_answer
                    break
            else:
                raise InputError(f"{str(self.file)!r} no longer has a line for {self._names[image]!r}")
            text = io.StringIO()
            writer = csv.DictWriter(text, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
            write_bytes(self.file, text.getvalue().encode("utf-8", "surrogatepass"))

    def _read(self) -> tuple[list[str], list[dict[str, str]]]:
        """Return the columns and the lines of the list, as they are written."""
        read_labels(self.file)  # refuses what cannot be read
        with self.file.open(encoding="utf-8-sig", errors="surrogatepass", newline="") as content:
            reader = csv.DictReader(content, restval="")
            rows = [dict(row) for row in reader]
        if any(None in row for row in rows):
            raise InputError(
                f"{str(self.file)!r} has a line with more fields than its first line has columns"
            )
        return list(reader.fieldnames or ()), rows


def counted(answers: Mapping[int, Answer], questions: Sequence[LabelQuestion]) -> list[bool | None]:
    """Say of each question whether the label turned out to be wrong.

    Args:
        answers: The answers by image (see `LabelStore.answers`).
        questions: The questions.

    Returns:
        True where another category is right, or none; False where the label is right; None without an answer.
    """
    given = (answers.get(one.id, "") for one in questions)
    return [None if answer == "" else answer != KEEP for answer in given]


def _free_word(word: str, classes: Sequence[str]) -> str:
    """Return a way to write `keep` or `unusable` that is no category of the data."""
    return next((form for form in (word, word.upper(), word.title()) if form not in classes), word)
