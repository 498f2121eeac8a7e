"""Whether the proof is calibrated and sharp: A/A comparisons, power and coverage on simulated predictions.

    python benchmarks/study/proof.py [--quick] [--json] [--runs N] [--out FILE.jsonl]

Predictions are drawn, and judged by the product's own `compare_split`. An image has a difficulty; a network
classifies it correctly where the difficulty plus some luck of this network stays below a threshold that
gives the wanted accuracy. The luck is such that two trainings of the same arm differ on about 30 of 1,000
images each way at an accuracy of 80 %. A seed moves the accuracy of each network by a normal number with the
standard deviation `sd`, in points; control and treated network of one seed share half of that variance. The
treated arm is `gain` points more accurate, and changes the difficulty of every image a little.

Every repetition draws new images and new seeds: the interval shall cover the gain over both. In a cell with
several arms, `helped` and `harmed` count comparisons in which any arm got this verdict (after Holm's
correction). `before` judges the same predictions as this package did until November 2026: an interval with a
quantile for seeds - 1 degrees of freedom on an error that counts the rest twice.

`--quick` draws 600 repetitions of the cells that a test bounds, in less than two minutes.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool
from scipy import special, stats

from torchdoctor.proof.statistics import LEVEL, compare_split

LUCK = 0.03  # the share of the variance of an image's difficulty that is drawn anew for each network
CHANGED = 0.01  # the share of that variance which a treatment changes for good
SHARED = 0.5  # the share of a seed's variance that control and treated network have in common


@dataclass(frozen=True)
class Cell:
    """What is simulated.

    Attributes:
        seeds: How often each arm is trained.
        sd: Standard deviation of a network's accuracy over seeds, in percentage points.
        gain: The true gain of every arm over the control, in percentage points.
        accuracy: The control's accuracy in percent.
        arms: How many arms are compared with the control.
        images: How many test images there are.
    """

    seeds: int
    sd: float
    gain: float
    accuracy: float = 80.0
    arms: int = 1
    images: int = 1000


def cells(*, quick: bool) -> Iterator[Cell]:
    """Yield the cells of the study.

    Args:
        quick: Only the cells that a test bounds.

    Yields:
        The cells.
    """
    for seeds in (3, 5, 8) if quick else (1, 2, 3, 5, 8):
        for sd in (0.3, 0.7) if quick else (0.3, 0.7, 1.5):
            for gain in (0.0, 2.0):
                yield Cell(seeds, sd, gain)
    if quick:
        return
    for accuracy in (60.0, 90.0, 99.0):
        for gain in (0.0, min(2.0, (100.0 - accuracy) / 2)):
            yield Cell(3, 0.7 if accuracy < 95 else 0.1, gain, accuracy)
    for seeds in (3, 5):
        for gain in (0.0, 2.0):
            yield Cell(seeds, 0.7, gain, arms=4)
    for images in (50, 200):
        for gain in (0.0, 5.0):
            yield Cell(3, 0.7, gain, images=images)


def draw(generator: np.random.Generator, cell: Cell) -> dict[str, Bool[np.ndarray, "seed image"]]:
    """Draw which images the control and every arm classify correctly.

    Args:
        generator: The source of random numbers.
        cell: What is simulated.

    Returns:
        By arm, booleans [seed, image].
    """
    difficulty = generator.standard_normal(cell.images)
    common = generator.standard_normal(cell.seeds)
    right = {}
    for arm in ["control", *(f"arm{number}" for number in range(cell.arms))]:
        own = difficulty
        gain = 0.0 if arm == "control" else cell.gain
        if gain:  # an arm without effect is a second control
            own = math.sqrt(1 - CHANGED) * difficulty
            own = own + math.sqrt(CHANGED) * generator.standard_normal(cell.images)
        of_seed = math.sqrt(SHARED) * common + math.sqrt(1 - SHARED) * generator.standard_normal(cell.seeds)
        accuracy = np.clip((cell.accuracy + gain + cell.sd * of_seed) / 100, 1e-4, 1 - 1e-4)
        luck = generator.standard_normal((cell.seeds, cell.images))
        hard = math.sqrt(1 - LUCK) * own + math.sqrt(LUCK) * luck
        right[arm] = hard < special.ndtri(accuracy)[:, None]
    return right


def before(
    control: Bool[np.ndarray, "seed image"], treated: Bool[np.ndarray, "seed image"]
) -> tuple[float, float]:
    """Return the interval as it was: variances of images and seeds added, seeds - 1 degrees of freedom.

    Args:
        control: Which images the control classifies correctly.
        treated: The same for the other arm.

    Returns:
        The bounds in percentage points.
    """
    difference = treated.astype(float) - control.astype(float)
    seeds, images = difference.shape
    of_seeds = difference.mean(1).var(ddof=1) / seeds if seeds > 1 else 0.0
    error = math.sqrt(difference.mean(0).var() / images + of_seeds)
    reach = error * float(stats.t.ppf(0.5 + LEVEL / 2, seeds - 1 if seeds > 1 else images - 1))
    return 100 * (difference.mean() - reach), 100 * (difference.mean() + reach)


def study(cell: Cell, runs: int, seed: int = 0) -> dict[str, object]:
    """Simulate a cell.

    Args:
        cell: What is simulated.
        runs: How many repetitions.
        seed: Seeds the simulation.

    Returns:
        The cell's numbers, and in percent of the repetitions: `helped`, `harmed`, `coverage` (of the first
        arm's interval), the same of the proof as it was (`before_...`, first arm alone), and in points the
        median `half_width` of the interval and the median gain that it says to be detectable.
    """
    generator = np.random.default_rng([seed, runs])
    counts = dict.fromkeys(
        ("helped", "harmed", "coverage", "before_helped", "before_harmed", "before_coverage"), 0
    )
    widths, detectable, each_way = [], [], []
    labels, ids = np.zeros(cell.images, dtype=np.int64), np.arange(cell.images)
    for _ in range(runs):
        right = draw(generator, cell)
        split = compare_split({name: list(rows) for name, rows in right.items()}, labels, ids, 1)
        verdicts, gain = [one.verdict for one in split.arms.values()], split.first.gain
        counts["helped"] += "helped" in verdicts
        counts["harmed"] += "harmed" in verdicts
        counts["coverage"] += gain.low <= cell.gain <= gain.high
        low, high = before(right["control"], right["arm0"])
        counts["before_helped"] += low > 0
        counts["before_harmed"] += high < 0
        counts["before_coverage"] += low <= cell.gain <= high
        widths.append((gain.high - gain.low) / 2)
        detectable.append(gain.detectable)
        each_way.append(1000 * float((right["arm0"][0] & ~right["control"][0]).mean()))
    return {
        **asdict(cell),
        "runs": runs,
        **{name: round(100 * count / runs, 1) for name, count in counts.items()},
        "half_width": round(float(np.median(widths)), 2),
        "detectable": round(float(np.median(detectable)), 2),
        "repaired_per_1000": round(float(np.mean(each_way)), 1),
    }


def main() -> None:
    """Print a line per cell as it comes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer cells and repetitions: under two minutes")
    parser.add_argument("--json", action="store_true", help="print lines of JSON")
    parser.add_argument("--runs", type=int, help="repetitions per cell; default 1000, with --quick 600")
    parser.add_argument("--out", type=Path, help="a file of JSON lines to write")
    given = parser.parse_args()
    lines, runs = [], given.runs or (600 if given.quick else 1000)
    for cell in cells(quick=given.quick):
        line = study(cell, runs)
        lines.append(line)
        if given.json:
            print(json.dumps(line), flush=True)
        else:
            shown = " ".join(f"{name}={value}" for name, value in line.items() if name != "runs")
            print(shown, flush=True)
    if given.out:
        given.out.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    main()
