"""The result of `find_causes`: the errors of a network, each with its cause."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from torchdoctor.display.cards import Card
from torchdoctor.display.counts import count_of
from torchdoctor.display.curves import cause_bars
from torchdoctor.files.reading import Number, Record, read_record
from torchdoctor.files.writing import write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Cause = Literal[
    "preparation", "category order", "unlike the training images", "too little detail", "background",
    "rare category", "wrong kernels", "label looks wrong", "ambiguous", "close categories", "under-fitted",
    "over-fitted", "unknown",
]  # fmt: skip

MEANINGS: Mapping[Cause, str] = {
    "preparation": "prepared in another usual way, the same image is classified correctly",
    "category order": "training images of the category are seldom right and mostly taken for one other",
    "unlike the training images": "hardly any correctly classified image is as unusual in its pixels or maps",
    "too little detail": "given with more pixels, the same image is classified correctly",
    "background": "before other backgrounds the same object is classified correctly",
    "rare category": "far fewer training images than the other categories have",
    "wrong kernels": "kernels it relies on no longer do what they did in training",
    "label looks wrong": "so sure a prediction is wrong more often by a wrong label than by the network",
    "ambiguous": "people would disagree about the image",
    "close categories": "the two categories lose images to each other in training too",
    "under-fitted": "the network has not learned its training images either",
    "over-fitted": "training images of the category are classified much better",
    "unknown": "none of these is supported by the evidence",
}
FILE = "causes.json"


@dataclass(frozen=True)
class ErrorCause:
    """A misclassified image with its cause.

    Attributes:
        id: The id of the image.
        label: The true category.
        prediction: The predicted category.
        confidence: The probability of the prediction, in 0..1.
        cause: The most probable cause, or `unknown` where none is probable enough (see `MEANINGS`).
        probabilities: The probability of each cause in 0..1, together 1; a cause that is missing has 0.
        numbers: The numbers that the cause was decided by: accuracies in percent, `log_odds` a logarithm, all
            others in 0..1.
    """

    id: int
    label: str
    prediction: str
    confidence: float
    cause: Cause
    probabilities: Mapping[Cause, float]
    numbers: Mapping[str, float]

    def __repr__(self) -> str:
        """Return a single line without the numbers."""
        return (
            f"ErrorCause(image {self.id}: {self.label!r} taken for {self.prediction!r} with "
            f"{100 * self.confidence:.0f} %, {self.cause})"
        )


@dataclass(frozen=True)
class Causes:
    """The causes of all errors of a network on a set of images.

    Attributes:
        errors: The misclassified images in the order of their ids.
        images: The number of all images.
        accuracy: The share of correctly classified images, in percent.
        others: The same share by the name of each other network that judged labels too (see
            `SecondOpinion`), of the images that it judged.

    Example:
        >>> chances = {"background": 0.9, "unknown": 0.1}
        >>> error = ErrorCause(7, "cat", "dog", 0.9, "background", chances, {"label_confidence": 0.05})
        >>> Causes((error,), images=50, accuracy=98.0)
        Causes of 1 error in 50 images (accuracy 98.0 %)
          cause       errors  meaning
          background  1       before other backgrounds the same object is classified correctly
    """

    errors: tuple[ErrorCause, ...]
    images: int
    accuracy: float
    others: Mapping[str, float] = field(default_factory=dict)

    @property
    def counts(self) -> dict[Cause, int]:
        """The number of errors by cause, the most frequent first."""
        return dict(Counter(error.cause for error in self.errors).most_common())

    @property
    def expected(self) -> dict[Cause, float]:
        """The expected number of errors by cause, the sum of their probabilities, the largest first."""
        sums: Counter[Cause] = Counter()
        for error in self.errors:
            sums.update(error.probabilities or {error.cause: 1.0})
        return dict(sums.most_common())

    def __repr__(self) -> str:
        """Return a few lines: the number of errors, and of each cause."""
        return self._card().text()

    def _repr_html_(self) -> str:
        """Return the same as an HTML table, which notebooks show."""
        return self._card().html()

    def _card(self) -> Card:
        """Summarise the causes."""
        errors = count_of(len(self.errors), "error")
        return Card(
            f"Causes of {errors} in {count_of(self.images, 'image')} (accuracy {self.accuracy:.1f} %)",
            columns=("cause", "errors", "meaning"),
            rows=tuple((cause, str(number), MEANINGS[cause]) for cause, number in self.counts.items()),
        )

    def figure(self) -> Figure:
        """Draw how many errors have which cause.

        Returns:
            A matplotlib figure with a bar for each cause, the most frequent first.
        """
        title = f"{count_of(len(self.errors), 'error')} in {count_of(self.images, 'image')}, by cause"
        return cause_bars({str(cause): number for cause, number in self.counts.items()}, title=title)

    def save(
        self,
        folder: str | os.PathLike[str],
        *,
        names: Mapping[int, str] | None = None,
        split: str = "validation",
    ) -> None:
        """Write `causes.json`.

        Args:
            folder: Where to write it; made where it is missing.
            names: The names of the images by id, for readers of the file.
            split: The name of the images together, for readers of the file.

        Raises:
            ModelDoctorError: Where the file cannot be written.
        """
        record = asdict(self)
        for entry in record["errors"]:
            if names is not None:
                entry["image"] = names[entry["id"]]
        write_json(
            Path(folder) / FILE, {**record, "split": split, "counts": self.counts, "expected": self.expected}
        )

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Causes:
        """Read the causes back that `save` or a run wrote.

        Args:
            folder: The folder with `causes.json`: a run of `diagnose` or `checkup`.

        Returns:
            The causes.

        Raises:
            InputError: Where the file is missing, damaged or of another kind.
        """
        record = read_record(Path(folder) / FILE, CausesRecord)
        return cls(
            tuple(ErrorCause(**error.model_dump()) for error in record.errors),
            record.images,
            record.accuracy,
            record.others,
        )


class ErrorRecord(Record):
    """A misclassified image in `causes.json`: the fields of an `ErrorCause`."""

    id: int
    label: str
    prediction: str
    confidence: Number
    cause: Cause
    probabilities: dict[Cause, Number] = Field(default_factory=dict)
    numbers: dict[str, Number]


class CausesRecord(Record):
    """What `causes.json` holds: the fields of a `Causes`."""

    errors: tuple[ErrorRecord, ...]
    images: int
    accuracy: Number
    others: dict[str, Number] = Field(default_factory=dict)


def some_of(causes: Causes, most: int) -> Sequence[ErrorCause]:
    """Choose errors of all causes in turn, those with the most confident predictions first.

    Args:
        causes: The causes of all errors.
        most: The largest number of errors to choose.

    Returns:
        The chosen errors.
    """
    confident = sorted(causes.errors, key=lambda error: (-error.confidence, error.id))
    groups = [[error for error in confident if error.cause == cause] for cause in causes.counts]
    turns = [group[turn] for turn in range(most) for group in groups if turn < len(group)]
    return turns[:most]
