"""What the ledger's lines say: gains paired over seeds, their intervals, and what could have been seen.

A place is one row of a table: (protocol, data set, architecture, image size). Its lines are paired by the
draw of categories and the seed, so that both sides of a difference saw the same images in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from benchmarks.ledger.lines import Line
from torchdoctor.proof.statistics import LEVEL, errors_to_see, holm

COUNTED = ("accuracy", "swapped", "shifted")  # the measures that are shares of images

Pair = tuple[int, int]  # draw of categories, seed
Arms = Mapping[tuple[str, str], Mapping[Pair, Line]]  # (arm, variant): its lines


@dataclass(frozen=True)
class Place:
    """What a row of a table is of."""

    protocol: str
    dataset: str
    architecture: str
    image_size: int


@dataclass(frozen=True)
class Gain:
    """A mean difference in points with its 95 % t interval, p-value, and what `number` values could show.

    `detectable` is a difference that would have been seen in four cases of five. Of one value there is no
    interval: it is infinite, and the p-value 1.
    """

    mean: float
    low: float
    high: float
    p_value: float
    detectable: float
    number: int

    @property
    def sign(self) -> int:
        """1 where the interval lies above 0, -1 where it lies below, else 0."""
        return int(self.low > 0) - int(self.high < 0)


def gain_of(differences: Sequence[float], grain: float = 0.0) -> Gain:
    """Return the mean of differences, by Student's t on n - 1 degrees of freedom.

    `grain` is the least standard deviation believed: three seeds that differ by the same number of images
    are a coincidence, not certainty.
    """
    values = np.asarray(differences, dtype=float)
    number, mean = len(values), float(np.mean(values))
    if number < 2:
        return Gain(mean, -math.inf, math.inf, 1.0, math.inf, number)
    error = max(float(values.std(ddof=1)), grain) / math.sqrt(number)
    quantile = float(stats.t.ppf(0.5 + LEVEL / 2, number - 1))
    if error == 0:
        p_value = 1.0 if mean == 0 else 0.0
    else:
        p_value = 2 * float(stats.t.sf(abs(mean) / error, number - 1))
    seen = errors_to_see(number - 1) * error
    return Gain(mean, mean - quantile * error, mean + quantile * error, p_value, seen, number)


def by_place(lines: Iterable[Line]) -> dict[Place, Arms]:
    """Return the lines of one program by place, arm and variant, and pair."""
    found: dict[Place, dict[tuple[str, str], dict[Pair, Line]]] = {}
    for line in lines:
        place = Place(line["protocol"], line["dataset"], line["architecture"], line["image_size"])
        arms = found.setdefault(place, {})
        own = arms.setdefault((line["arm"], line["variant"]), {})
        own[line["classes_seed"], line["seed"]] = line
    return found  # type: ignore[return-value]


def control_of(arms: Arms, variant: str, arm: str = "control") -> str:
    """Return the variant of the control (or base) that an arm's variant is compared with.

    `annotated20-ours` has a control of its own where there is one called `annotated20`.
    """
    own = variant.rpartition("-")[0]
    return own if (arm, own) in arms else ""


def gain_over(
    arms: Arms, arm: str, variant: str, against: str = "control", measure: str = "accuracy"
) -> Gain | None:
    """Return an arm's gain over the control (or the base) in one measure; None where nothing is paired."""
    mine = arms.get((arm, variant), {})
    theirs = arms.get((against, control_of(arms, variant, against)), {})
    pairs = [pair for pair in sorted(mine) if measure in mine[pair] and measure in theirs.get(pair, {})]
    if not pairs:
        return None
    images = min(mine[pair].get("images", math.inf) for pair in pairs)
    # What rounding both sides to whole images does: twice the variance of one, 1/12 of an image.
    grain = 100 / images / math.sqrt(6) if measure in COUNTED else 0.0
    return gain_of([mine[pair][measure] - theirs[pair][measure] for pair in pairs], grain)


def mean_of(arms: Arms, arm: str, variant: str = "", measure: str = "accuracy") -> float | None:
    """Return the mean of a measure over the pairs; None where there is none."""
    values = [line[measure] for line in arms.get((arm, variant), {}).values() if measure in line]
    return float(np.mean(values)) if values else None


@dataclass(frozen=True)
class Summary:
    """One arm over all measured places: the mean of the data sets' gains, with an interval over these.

    Networks on the same data share its images and so its luck: each data set counts once, as the mean of
    its `cells`, and `gain.number` is the number of data sets. `with_interval` cells have two seeds or more;
    of those `above` and `below` have an interval on one side of 0, `holm_above` and `holm_below` also a
    p-value of at most 5 % after Holm's correction over all tests. `detectable` is the median of what the
    cells could have seen, `paper` the paper's mean of the same ones.
    """

    arm: str
    variant: str
    gain: Gain
    cells: int
    with_interval: int
    above: int
    below: int
    holm_above: int
    holm_below: int
    detectable: float
    paper: float | None


def summaries(
    places: Mapping[Place, Arms],
    wanted: Sequence[tuple[str, str]],
    measure: str = "accuracy",
    paper: Mapping[tuple[Place, str], float] | None = None,
) -> tuple[list[Summary], int]:
    """Return a summary of each wanted (arm, variant), and how many tests Holm's correction was over."""
    found = {
        (place, arm, variant): gain
        for place, arms in places.items()
        for arm, variant in wanted
        if (gain := gain_over(arms, arm, variant, measure=measure)) is not None
    }
    tested = [key for key, gain in found.items() if gain.number > 1]
    adjusted = dict(zip(tested, holm([found[key].p_value for key in tested]), strict=True))
    result = []
    for arm, variant in wanted:
        mine = {place: gain for (place, *own), gain in found.items() if own == [arm, variant]}
        if not mine:
            continue
        known = {place: gain for place, gain in mine.items() if gain.number > 1}
        sure = [
            gain.sign for place, gain in known.items() if adjusted[place, arm, variant] <= 1 - LEVEL + 1e-12
        ]
        theirs = [paper[place, arm] for place in mine if (place, arm) in paper] if paper else []
        result.append(
            Summary(
                arm,
                variant,
                gain_of(_per_dataset(mine)),
                len(mine),
                len(known),
                sum(gain.sign > 0 for gain in known.values()),
                sum(gain.sign < 0 for gain in known.values()),
                sum(sign > 0 for sign in sure),
                sum(sign < 0 for sign in sure),
                float(np.median([gain.detectable for gain in known.values()])) if known else math.inf,
                float(np.mean(theirs)) if theirs else None,
            )
        )
    return result, len(tested)


def _per_dataset(gains: Mapping[Place, Gain]) -> list[float]:
    """Return the mean gain of each data set's places."""
    found: dict[str, list[float]] = {}
    for place, gain in gains.items():
        found.setdefault(place.dataset, []).append(gain.mean)
    return [float(np.mean(own)) for own in found.values()]
