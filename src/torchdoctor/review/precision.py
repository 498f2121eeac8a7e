"""Say how often a list of labels was right about those that a person has looked at, and where to stop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import binomtest

from torchdoctor.display.counts import count_of

LEAST_ANSWERS = 50  # with fewer the precision is too uncertain to speak of
AHEAD = 50  # how many of the next images a proposal to stop is about
LEAST_WRONG = 0.1  # of them that should be wrong for the work to go on
LEVEL = 0.95  # of the interval
NEARLY_ONE = 0.95  # wrong labels, from which on their number is said


@dataclass(frozen=True)
class Precision:
    """How well a list of suspicious labels has done, by a person's answers.

    Attributes:
        answered: How many of the listed images have an answer.
        wrong: How many of these labels are wrong: another category is right, or none.
        low: The lower bound of a 95 % interval of the share of wrong labels, in 0..1; NaN without answers.
        high: The upper bound.
        left: How many images of the list have no answer.
        expected: How many of their labels are expected to be wrong: the sum of their probabilities, scaled by
            what the answers say of the probabilities of the answered ones.
        stop: Whether the answers say that going on is hardly worth it.
        remaining: How many more images are worth a look; equal to `left` where all are.
    """

    answered: int
    wrong: int
    low: float
    high: float
    left: int
    expected: float
    stop: bool
    remaining: int

    @property
    def sentences(self) -> tuple[str, ...]:
        """What the page says of it; nothing before 50 answers."""
        if self.answered < LEAST_ANSWERS:
            return ()
        wrong = f"labels that you looked at {'is' if self.wrong == 1 else 'are'} wrong"
        share = (
            f"{self.wrong} of the {self.answered} {wrong} "
            f"({100 * self.wrong / self.answered:.0f} %, 95 % interval {100 * self.low:.0f} to "
            f"{100 * self.high:.0f} %)."
        )
        if not self.left:
            return (share, "The list is done.")
        about = f"about {count_of(max(round(self.expected), 1), 'is', 'are')}"
        number = "less than one is" if self.expected < NEARLY_ONE else about
        more = f"Of the {self.left} left, {number} expected to be wrong."
        if self.stop:
            return (share, more, "You can stop here: fewer than 1 in 10 of the next ones would be wrong.")
        if self.remaining < self.left:
            return (share, more, f"Stop after about {self.remaining} more: then fewer than 1 in 10 would be.")
        return (share, more, "The whole list is worth it.")


def measured_precision(probabilities: Sequence[float], wrong: Sequence[bool | None]) -> Precision:
    """Measure the precision of a list by the answers about it, and say where to stop.

    The probabilities of the images without an answer are multiplied by (wrong labels among the answered) /
    (sum of the probabilities of the answered). Stopping is proposed at the first image from which on the next
    50 together are expected to have fewer than one wrong label in ten.

    Args:
        probabilities: The probability that each label is wrong, 0..1, in the order of the list.
        wrong: What the answers say of each label: wrong, right, or None without an answer.

    Returns:
        The precision.
    """
    answers = [
        (chance, bool(one)) for chance, one in zip(probabilities, wrong, strict=True) if one is not None
    ]
    left = [chance for chance, one in zip(probabilities, wrong, strict=True) if one is None]
    number = sum(one for _, one in answers)
    low = high = float("nan")
    if answers:
        interval = binomtest(number, len(answers)).proportion_ci(LEVEL, method="wilson")
        low, high = float(interval.low), float(interval.high)
    believed = sum(chance for chance, _ in answers)
    ratio = number / believed if believed else 1.0
    scaled = [min(1.0, ratio * chance) for chance in left]
    worthy = len(left)
    if len(answers) >= LEAST_ANSWERS:
        windows = (scaled[start : start + AHEAD] for start in range(len(scaled)))
        worthy = next(
            (start for start, part in enumerate(windows) if sum(part) < LEAST_WRONG * len(part)), len(left)
        )
    return Precision(
        len(answers), number, low, high, len(left), float(sum(scaled)), bool(left) and worthy == 0, worthy
    )
