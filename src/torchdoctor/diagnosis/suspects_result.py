"""The result of `find_suspects`: training images whose labels look wrong, as a list for people to fill in."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from torchdoctor.display.cards import Card
from torchdoctor.files.reading import Number, Record, read_record
from torchdoctor.files.writing import write_bytes, write_json
from torchdoctor.types import InputError

FILE, LIST = "suspects.json", "labels.csv"
COLUMNS = ("image", "split", "given", "proposed", "probability", "answer")


@dataclass(frozen=True)
class Suspect:
    """A training image whose label is more probably wrong than right.

    Attributes:
        id: The id of the image.
        label: The category that it is labelled as.
        proposed: The most probable of the other categories.
        probability: The probability that the label is wrong, in 0..1.
        like_label: The ids of the most similar images of the labelled category, the nearest first; suspects
            are not among them.
        like_proposed: The same of the proposed category.
    """

    id: int
    label: str
    proposed: str
    probability: float
    like_label: tuple[int, ...] = ()
    like_proposed: tuple[int, ...] = ()

    def __repr__(self) -> str:
        """Return a single line without the similar images."""
        return (
            f"Suspect(image {self.id}: {self.label!r}, looks like {self.proposed!r}, wrong with "
            f"{100 * self.probability:.0f} %)"
        )


@dataclass(frozen=True)
class Suspects:
    """Training images whose labels look wrong.

    Attributes:
        suspects: The images, the most probably wrong labels first.
        images: The number of images that were looked at.
        share: The share of wrong labels among them that is proven, in 0..1. There can be more, because the
            network has learned from them. 0 where none is proven, and then there are no suspects.
        accuracy: How many of the images the network itself classifies as labelled, in percent.
        remarks: What was left out and why, in sentences.

    Example:
        >>> found = Suspects((Suspect(7, "cat", "dog", 0.9),), images=50, share=0.04, accuracy=98.0)
        >>> found
        1 of 50 training images has a label that looks wrong
          90 % of these labels are expected to be wrong; of all labels, at least 4.0 %.
          image  label  looks like  wrong with
          7      cat    dog         90 %
    """

    suspects: tuple[Suspect, ...]
    images: int
    share: float
    accuracy: float
    remarks: tuple[str, ...] = ()

    def expected(self, first: int | None = None) -> float:
        """Return the share of the first suspects whose labels are expected to be wrong.

        Args:
            first: The number of suspects, the most probable ones first; None: all of them.

        Returns:
            The mean of their probabilities, in 0..1; NaN without any.
        """
        chances = [suspect.probability for suspect in self.suspects[:first]]
        return float(np.mean(chances)) if chances else float("nan")

    def __repr__(self) -> str:
        """Return a few lines: how many labels look wrong, how many of them are, and the first of them."""
        return self._card().text()

    def _repr_html_(self) -> str:
        """Return the same as an HTML table, which notebooks show."""
        return self._card().html()

    def _card(self) -> Card:
        """Summarise the suspects."""
        number = len(self.suspects)
        have = "has a label that looks wrong" if number == 1 else "have labels that look wrong"
        shares = (
            f"{100 * self.expected():.0f} % of these labels are expected to be wrong; of all labels, "
            f"at least {100 * self.share:.1f} %."
        )
        none = "That any label is wrong is not proven." if self.share == 0 else (
            f"At least {100 * self.share:.1f} % of the labels are wrong, but it cannot be said which."
        )  # fmt: skip
        return Card(
            f"{number} of {self.images:,} training images {have}",
            lines=(shares if number else none, *self.remarks),
            columns=("image", "label", "looks like", "wrong with"),
            rows=tuple(
                (str(one.id), one.label, one.proposed, f"{100 * one.probability:.0f} %")
                for one in self.suspects
            ),
        )

    def save(
        self,
        folder: str | os.PathLike[str],
        *,
        names: Mapping[int, str] | None = None,
        split: str = "train",
    ) -> None:
        """Write `labels.csv`, a list for people to fill in, and `suspects.json`.

        Args:
            folder: Where to write them; made where it is missing.
            names: The names of the images by id, for people who look for them; None: the ids.
            split: The name of the images together, for readers of the files.

        Raises:
            ModelDoctorError: Where a file cannot be written.
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        for one in self.suspects:
            name = str(one.id) if names is None else names[one.id]
            writer.writerow((name, split, one.label, one.proposed, one.probability, ""))
        write_bytes(Path(folder) / LIST, text.getvalue().encode("utf-8", "surrogatepass"))
        record = asdict(self)
        for entry in record["suspects"]:
            if names is not None:
                entry["image"] = names[entry["id"]]
        # Last, because a run that finds this file does not look for suspects again.
        write_json(Path(folder) / FILE, {**record, "split": split, "expected": self.expected()})

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Suspects:
        """Read the suspects back that `save` or a run wrote.

        Args:
            folder: The folder with `suspects.json`: a run of `diagnose` or `checkup`.

        Returns:
            The suspects.

        Raises:
            InputError: Where the file is missing, damaged or of another kind.
        """
        record = read_record(Path(folder) / FILE, SuspectsRecord)
        return cls(
            tuple(Suspect(**one.model_dump()) for one in record.suspects),
            record.images,
            record.share,
            record.accuracy,
            record.remarks,
        )


class SuspectRecord(Record):
    """A suspect in `suspects.json`: the fields of a `Suspect`."""

    id: int
    label: str
    proposed: str
    probability: Number
    like_label: tuple[int, ...] = ()
    like_proposed: tuple[int, ...] = ()


class SuspectsRecord(Record):
    """What `suspects.json` holds: the fields of a `Suspects`."""

    suspects: tuple[SuspectRecord, ...]
    images: int
    share: Number
    accuracy: Number
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class ListedLabel:
    """A line of `labels.csv`.

    Attributes:
        image: The name of the image, or its id.
        split: The split that it is in.
        given: The category that it is labelled as.
        proposed: The category that it looks like.
        probability: The probability that the label is wrong, in 0..1.
        answer: What a person wrote; empty: nothing yet.
    """

    image: str
    split: str
    given: str
    proposed: str
    probability: float
    answer: str


def read_labels(file: str | os.PathLike[str]) -> tuple[ListedLabel, ...]:
    """Read `labels.csv` back, with the answers that people wrote into it.

    Args:
        file: The list, or a copy of it; columns beside its own are left aside.

    Returns:
        Its lines in their order.

    Raises:
        InputError: The file cannot be read, a column is missing, or a probability is no number.
    """
    try:
        # utf-8-sig: spreadsheet programs put a byte order mark in front.
        with Path(file).open(encoding="utf-8-sig", errors="surrogatepass", newline="") as content:
            reader = csv.DictReader(content, restval="")
            missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
            if missing:
                raise InputError(
                    f"{str(file)!r} has no column {missing[0]!r}; expected {', '.join(COLUMNS)}, separated "
                    "by commas"
                )
            return tuple(_listed(row, f"{str(file)!r}, line {reader.line_num}") for row in reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{str(file)!r} cannot be read ({error})") from error


def _listed(row: Mapping[str, str], place: str) -> ListedLabel:
    """Return a line of the list; InputError where its probability is no number."""
    image, split, given, proposed, probability, answer = (row[column] for column in COLUMNS)
    try:
        return ListedLabel(image, split, given, proposed, float(probability), answer.strip())
    except ValueError as error:
        raise InputError(f"{place}: probability is {probability!r}; expected a number in 0..1") from error
