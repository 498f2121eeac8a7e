"""The result of a comparison: gains with intervals, by arm and test split."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from torchdoctor.display.cards import Card
from torchdoctor.display.counts import count_of
from torchdoctor.display.gains import accuracy_summary, category_gains
from torchdoctor.files.reading import read_record
from torchdoctor.files.writing import write_json
from torchdoctor.proof.record import ArmRecord, ComparisonRecord
from torchdoctor.proof.split_result import ArmComparison, Gain, SplitComparison, lowest, mean_of
from torchdoctor.types import InputError, Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILE = "compare.json"


@dataclass(frozen=True)
class Comparison:
    """The result of `compare`: all arms on the same test images.

    Attributes:
        classes: The names of the categories.
        splits: What was measured on each test split, by its name.
        primary: The name of the split that the verdict is about.
        verdict: The verdict on the arm `arm`.
        reason: The reason for the verdict, in a sentence.
        max_loss: How many percentage points another split may lose; more makes the verdict `harmed`.
        seeds: The numbers of the repetitions.
        seconds: How long the training took in each repetition, by arm.
        steps: The number of steps of a training.
        arm: The name of the arm that the verdict is about.
        min_gain: The gain that was asked for, in percentage points.
    """

    classes: tuple[str, ...]
    splits: Mapping[str, SplitComparison]
    primary: str
    verdict: Verdict
    reason: str
    max_loss: float
    seeds: tuple[int, ...]
    seconds: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    steps: int = 0
    arm: str = "treated"
    min_gain: float = 0.0

    @property
    def worst_group(self) -> dict[str, float]:
        """The lowest accuracy of any category in any split, by arm."""
        arms = next(iter(self.splits.values())).accuracy
        return {arm: lowest([split.worst_category[arm] for split in self.splits.values()]) for arm in arms}

    def __repr__(self) -> str:
        """Return a few lines: the verdict, its reason, and every split's accuracies and gain."""
        return self._card().text()

    def _repr_html_(self) -> str:
        """Return the same as an HTML table, which notebooks show."""
        return self._card().html()

    def _card(self) -> Card:
        """Summarise the comparison."""
        arms = list(next(iter(self.splits.values())).accuracy)
        rows = tuple(
            (
                f"{name} (primary)" if name == self.primary else name,
                str(split.images),
                *(f"{mean_of(split.accuracy.get(arm, ())):.1f}" for arm in arms[:6]),
                str(split.first.gain),
                split.first.verdict,
            )
            for name, split in self.splits.items()
        )
        seeds = count_of(len(self.seeds), "seed")
        return Card(
            f"Comparison: {self.verdict} ({self.arm} against control, {seeds})",
            (self.reason,),
            ("split", "images", *(f"{arm}, %" for arm in arms[:6]), "gain and 95 % interval", "verdict"),
            rows,
        )

    def split(self, name: str | None = None) -> SplitComparison:
        """Return what was measured on a test split.

        Args:
            name: The name of the split; by default the primary split.

        Returns:
            The split's comparison.

        Raises:
            InputError: Where there is no such split.
        """
        chosen = self.primary if name is None else name
        if chosen not in self.splits:
            raise InputError(f"split {chosen!r} was not compared; compared: {', '.join(self.splits)}")
        return self.splits[chosen]

    def most_changed(self, split: str, most: int) -> Comparison:
        """Return the comparison on a single split with only the categories that changed most.

        Args:
            split: The name of the split.
            most: The greatest number of categories to keep: half of them the best, half the worst.

        Returns:
            A comparison of this split and these categories; itself where there are no more.
        """
        if len(self.classes) <= most:
            return self
        measured = self.split(split)
        order = np.argsort(-np.nan_to_num(measured.first.gain_per_category), kind="stable")
        chosen = [*order[: most // 2].tolist(), *order[-(most // 2) :].tolist()]
        rows = {
            arm: tuple(values[place] for place in chosen) for arm, values in measured.per_category.items()
        }
        gains = tuple(measured.first.gain_per_category[place] for place in chosen)
        first = replace(measured.first, gain_per_category=gains)
        fewer = replace(measured, per_category=rows, arms={**measured.arms, self.arm: first})
        return replace(self, classes=tuple(self.classes[place] for place in chosen), splits={split: fewer})

    def accuracy_figure(self) -> Figure:
        """Draw the accuracy of every arm on every split, and the gains over the control with intervals.

        Returns:
            A matplotlib figure: accuracies on the left axes (a faint dot for each seed), gains on the right.
        """
        return accuracy_summary(
            {name: split.accuracy for name, split in self.splits.items()},
            {
                name: {
                    arm: (against.gain.mean, against.gain.low, against.gain.high)
                    for arm, against in split.arms.items()
                }
                for name, split in self.splits.items()
            },
            first=self.arm,
            primary=self.primary,
        )

    def category_gains_figure(self, split: str | None = None) -> Figure:
        """Draw each category's accuracy before treatment and its gain over the control (Fig. 4).

        Args:
            split: The name of the test split; by default the primary split.

        Returns:
            A matplotlib figure, best category first. For many categories draw `most_changed(split, 100)`.

        Raises:
            InputError: Where there is no such split.
        """
        measured = self.split(split)
        gains = np.asarray(measured.first.gain_per_category, dtype=float)
        before = np.asarray(measured.per_category.get("base", (math.nan,) * gains.size), dtype=float)
        return category_gains(self.classes, before, gains, arm=self.arm)

    def record(self, exit_code: int | None = None) -> dict[str, object]:
        """Return what `compare.json` holds.

        Args:
            exit_code: What the command line ended with, which depends on the diagnosis too.

        Returns:
            The record, in the order of the file.
        """
        arms = list(next(iter(self.splits.values())).accuracy)
        return {
            "verdict": self.verdict,
            "reason": self.reason,
            "exit_code": exit_code,
            "arm": self.arm,
            "primary": self.primary,
            "min_gain": self.min_gain,
            "max_loss": self.max_loss,
            "seeds": self.seeds,
            "steps": self.steps,
            "seconds": self.seconds,
            "classes": self.classes,
            "worst_group": self.worst_group,
            "images": {name: split.images for name, split in self.splits.items()},
            "between_controls": {name: split.between_controls for name, split in self.splits.items()},
            "arms": {
                arm: {name: _arm_record(split, arm) for name, split in self.splits.items()} for arm in arms
            },
            "against_control": {
                name: {arm: _against_record(against) for arm, against in split.arms.items()}
                for name, split in self.splits.items()
            },
        }

    def save(self, folder: str | os.PathLike[str], *, exit_code: int | None = None) -> None:
        """Write `compare.json`.

        Args:
            folder: Where to write it; made where it is missing.
            exit_code: What the command line ended with, for readers of the file.

        Raises:
            ModelDoctorError: Where the file cannot be written.
        """
        write_json(Path(folder) / FILE, self.record(exit_code))

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Comparison:
        """Read a comparison back that `save` or a run wrote.

        Args:
            folder: The folder with `compare.json`: a run of `compare` or `checkup`.

        Returns:
            The comparison.

        Raises:
            InputError: Where the file is missing, damaged or of another kind.
        """
        record = read_record(Path(folder) / FILE, ComparisonRecord)
        saved = record.model_dump(exclude={"images", "between_controls", "arms", "against_control"})
        return cls(**saved, splits={name: _split_of(record, name) for name in record.against_control})


def _arm_record(split: SplitComparison, arm: str) -> dict[str, object]:
    """Return what `compare.json` says about an arm on a split."""
    return {
        "accuracy": split.accuracy[arm],
        "per_category": split.per_category[arm],
        "worst_category": split.worst_category[arm],
        "balanced_accuracy": split.balanced_accuracy[arm],
        "background_share": split.background_share.get(arm),
        "calibration_error": split.calibration_error.get(arm),
    }


def _against_record(against: ArmComparison) -> dict[str, object]:
    """Return what `compare.json` says about an arm compared with the control on a split."""
    record = asdict(against)
    if math.isnan(against.gain.detectable):  # in the file null stands for an infinite value
        del record["gain"]["detectable"]
    return record


def _split_of(record: ComparisonRecord, name: str) -> SplitComparison:
    """Return a split of a record."""
    arms: dict[str, ArmRecord] = {arm: splits[name] for arm, splits in record.arms.items()}
    return SplitComparison(
        accuracy={arm: measured.accuracy for arm, measured in arms.items()},
        per_category={arm: measured.per_category for arm, measured in arms.items()},
        background_share={arm: measured.background_share for arm, measured in arms.items()},
        arms={
            arm: ArmComparison(**{**against.model_dump(), "gain": Gain(**against.gain.bounded())})
            for arm, against in record.against_control[name].items()
        },
        images=record.images[name],
        between_controls=record.between_controls.get(name, math.nan),
        calibration_error={
            arm: measured.calibration_error
            for arm, measured in arms.items()
            if measured.calibration_error is not None
        },
    )
