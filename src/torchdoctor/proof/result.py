"""The result of a comparison: gains with intervals, by arm and test split."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from torchdoctor.display.cards import Card, listed
from torchdoctor.display.gains import accuracy_summary, category_gains
from torchdoctor.files.reading import read_record
from torchdoctor.files.writing import write_json
from torchdoctor.proof.record import ArmRecord, ComparisonRecord
from torchdoctor.types import InputError, Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILE = "compare.json"


@dataclass(frozen=True)
class Gain:
    """An arm minus the control on one split, in percentage points, with a 95 % interval and a p-value.

    `p_adjusted` is the p-value after Holm's correction for the number of arms compared. `detectable` is
    a gain that as many images and seeds would show with a probability of at least 80 %.
    """

    mean: float
    low: float
    high: float
    p_value: float
    variance_from: str
    p_adjusted: float = math.nan
    detectable: float = math.nan

    def __str__(self) -> str:
        """Return the gain and its interval in percentage points."""
        return f"{self.mean:+.1f} ({self.low:+.1f} to {self.high:+.1f})"


@dataclass(frozen=True)
class ArmComparison:
    """One arm against the control on one split.

    `repaired` and `broken` are ids of images that the control gets wrong and the arm right in most seeds,
    and the reverse. `mcnemar` holds McNemar's exact p-value of each seed.
    """

    gain: Gain
    gain_per_category: tuple[float, ...]
    verdict: Verdict
    repaired: tuple[int, ...]
    broken: tuple[int, ...]
    mcnemar: tuple[float, ...] = ()

    def __repr__(self) -> str:
        """Return one line: the verdict, the gain, and how many images changed."""
        return (
            f"ArmComparison({self.verdict}: {self.gain} points, {len(self.repaired)} images repaired, "
            f"{len(self.broken)} broken)"
        )


@dataclass(frozen=True)
class SplitComparison:
    """One test split: accuracies in percent, one per seed (base: one), and what each arm changed.

    By arm: `per_category` holds the seed-averaged accuracy of each category; `background_share` the share
    of the evidence on the background, averaged over images, seeds and layers, or None;
    `calibration_error` the expected calibration error in percent, averaged over seeds. `arms` holds what
    was compared with the control, the arm that the verdict speaks of first.
    """

    accuracy: Mapping[str, tuple[float, ...]]
    per_category: Mapping[str, tuple[float, ...]]
    background_share: Mapping[str, float | None]
    arms: Mapping[str, ArmComparison]
    images: int
    calibration_error: Mapping[str, float] = field(default_factory=dict)

    def __repr__(self) -> str:
        """Return one line: the mean accuracy of every arm."""
        means = [f"{arm} {_mean(values):.1f} %" for arm, values in self.accuracy.items()]
        return f"SplitComparison({self.images} images: {listed(means)})"

    @property
    def first(self) -> ArmComparison:
        """The arm that the verdict speaks of, against the control."""
        return next(iter(self.arms.values()))

    @property
    def worst_category(self) -> dict[str, float]:
        """The lowest accuracy of any category, by arm; NaN where no category has an image."""
        return {arm: _lowest(values) for arm, values in self.per_category.items()}


def _lowest(values: Sequence[float]) -> float:
    """Return the lowest of the numbers that are known; NaN if there is none."""
    return min((value for value in values if not math.isnan(value)), default=math.nan)


def _mean(values: Sequence[float]) -> float:
    """Return the mean of the numbers that are known; NaN if there is none."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


@dataclass(frozen=True)
class Comparison:
    """The frozen result of `compare`: base, control and the other arms on the same test images.

    `arm` is the one that verdict and reason speak of.
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
        return {arm: _lowest([split.worst_category[arm] for split in self.splits.values()]) for arm in arms}

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
                *(f"{_mean(split.accuracy.get(arm, ())):.1f}" for arm in arms[:6]),
                str(split.first.gain),
                split.first.verdict,
            )
            for name, split in self.splits.items()
        )
        seeds = "1 seed" if len(self.seeds) == 1 else f"{len(self.seeds)} seeds"
        return Card(
            f"Comparison: {self.verdict} ({self.arm} against control, {seeds})",
            (self.reason,),
            ("split", "images", *(f"{arm}, %" for arm in arms[:6]), "gain and 95 % interval", "verdict"),
            rows,
        )

    def split(self, name: str | None = None) -> SplitComparison:
        """Return what was measured on one test split.

        Args:
            name: The name of the split; by default the primary one.

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
        """Return the comparison on one split with only the categories that won or lost most.

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
        kept = [*order[: most // 2].tolist(), *order[-(most // 2) :].tolist()]
        rows = {arm: tuple(values[place] for place in kept) for arm, values in measured.per_category.items()}
        gains = tuple(measured.first.gain_per_category[place] for place in kept)
        first = replace(measured.first, gain_per_category=gains)
        fewer = replace(measured, per_category=rows, arms={**measured.arms, self.arm: first})
        return replace(self, classes=tuple(self.classes[place] for place in kept), splits={split: fewer})

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
            split: The name of the test split; by default the primary one.

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
        saved = record.model_dump(exclude={"images", "arms", "against_control"})
        return cls(**saved, splits={name: _split_of(record, name) for name in record.against_control})


def _arm_record(split: SplitComparison, arm: str) -> dict[str, object]:
    """Return what `compare.json` says about one arm on one split."""
    return {
        "accuracy": split.accuracy[arm],
        "per_category": split.per_category[arm],
        "worst_category": split.worst_category[arm],
        "background_share": split.background_share.get(arm),
        "calibration_error": split.calibration_error.get(arm),
    }


def _against_record(against: ArmComparison) -> dict[str, object]:
    """Return what `compare.json` says about one arm against the control on one split."""
    record = asdict(against)
    if math.isnan(against.gain.detectable):  # null stands for an infinite one
        del record["gain"]["detectable"]
    return record


def _split_of(record: ComparisonRecord, name: str) -> SplitComparison:
    """Return one split of a record."""
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
        calibration_error={
            arm: measured.calibration_error
            for arm, measured in arms.items()
            if measured.calibration_error is not None
        },
    )
