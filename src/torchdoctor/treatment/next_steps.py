"""Say what to do next about a network's errors: cures, labels, images or masks, the most useful first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from torchdoctor.diagnosis.causes_result import Cause, Causes, ErrorCause
from torchdoctor.diagnosis.result import Diagnosis
from torchdoctor.diagnosis.suspects_result import LIST, Suspects
from torchdoctor.display.cards import listed
from torchdoctor.display.counts import count_of
from torchdoctor.treatment.effects import effect_of

LEAST_ERRORS = 0.5  # expected errors of a cause, below which nothing is proposed for it
LEAST_SHARE = 0.05  # of all errors, likewise
NAMED = 3  # categories, or pairs of them, that a step names
OWN_MISTAKES: tuple[Cause, ...] = ("preparation", "category order")  # said first: all else rests on them
FOR_MASKS = 20  # masks per category that were enough for backgrounds


@dataclass(frozen=True)
class NextStep:
    """An action that would lessen a network's errors.

    Attributes:
        action: What to do, in one sentence.
        cause: The cause of the errors that it is for; `all`: it is for all errors.
        errors: The expected number of errors of that cause among the images that were looked at.
        share: Their share of all errors, in 0..1.
        effect: What the action brought where the cause was planted, or what it repairs of these errors, in
            one sentence; empty where nothing was measured.
        command: What to run; empty where nothing can be run yet.
    """

    action: str
    cause: Cause | Literal["all"]
    errors: float
    share: float
    effect: str = ""
    command: str = ""

    @property
    def for_errors(self) -> str:
        """For how many errors the action is, in words."""
        number = f"{self.errors:.0f}"
        return f"about {number} error{'' if number == '1' else 's'} ({100 * self.share:.0f} %)"


@dataclass(frozen=True)
class Known:
    """What is known of a network when steps are proposed.

    Attributes:
        causes: The causes of its errors.
        diagnosis: Its diagnosis.
        suspects: Training images whose labels look wrong; None: nobody looked.
        has_masks: Whether training images have object masks.
        command: The command that runs a checkup of this network; empty where there is none.
        treated: Whether a checkup has already tried the cures of the causes.
        review: The command that asks a person about labels and masks; empty where there is none.
        second_opinion: The command that finds causes again, with a network with published weights that judges
            labels too; empty where there is none, or where other networks have judged them.
    """

    causes: Causes
    diagnosis: Diagnosis
    suspects: Suspects | None = None
    has_masks: bool = False
    command: str = ""
    treated: bool = False
    review: str = ""
    second_opinion: str = ""

    def of(self, cause: Cause) -> list[ErrorCause]:
        """Return the errors of a cause.

        Args:
            cause: The cause.

        Returns:
            Those of which it is said; where it is said of none, those for which it is most probable.
        """
        said = [error for error in self.causes.errors if error.cause == cause]
        probable = sorted(self.causes.errors, key=lambda error: -error.probabilities.get(cause, 0.0))
        return said or [error for error in probable if error.probabilities.get(cause, 0.0) > 0]

    def count(self, category: str) -> int:
        """Return how many training images a category has.

        Args:
            category: Its name.

        Returns:
            The number.
        """
        return int(self.diagnosis.confusion.sum(1)[list(self.diagnosis.classes).index(category)])


def next_steps(known: Known) -> tuple[NextStep, ...]:
    """Propose what to do about the errors of a network.

    Args:
        known: What is known of it.

    Returns:
        The steps: mistakes in the preparation of the images first, then those for the most errors, and last
        what tells more about errors without a cause.
    """
    causes = known.causes
    total = len(causes.errors)
    steps = []
    for cause, errors in causes.expected.items():
        if cause not in STEPS or errors < max(LEAST_ERRORS, LEAST_SHARE * total):
            continue
        proposed = STEPS[cause](known)
        if proposed is not None:
            action, effect, command = proposed
            steps.append(NextStep(action, cause, errors, errors / max(total, 1), effect, command))
    return tuple(
        sorted(
            steps,
            key=lambda step: (step.cause == "unknown", step.cause not in OWN_MISTAKES, -step.errors),
        )
    )


Step = tuple[str, str, str]  # action, effect, command
CHECKED = "The cures for it have been tried in this run; see its comparison."


def _come_right(number: int) -> str:
    """Begin a sentence about errors that come right."""
    return count_of(number, "of these errors comes right", "of these errors come right")


def _preparation(known: Known) -> Step:
    number = len(known.of("preparation"))
    return (
        "Prepare the images as in the training of these weights: in another usual way (mean and standard "
        "deviation, order of colours, range of values) they come right.",
        f"{_come_right(number)} when only the preparation is changed.",
        "",
    )


def _order(known: Known) -> Step:
    pairs = Counter((error.label, error.prediction) for error in known.of("category order"))
    named = listed([f"{one} taken for {other}" for (one, other), _ in pairs.most_common(NAMED)])
    return (
        f"Compare the order of the categories with that of the weights ({named}): the categories of the data "
        "have to come in the order of the training.",
        f"{_come_right(sum(pairs.values()))} in the right order.",
        "",
    )


def _detail(known: Known) -> Step:
    number = len(known.of("too little detail"))
    return (
        "Give the network larger images, and train it further on them (--image-size, half as much again).",
        f"{_come_right(number)} with 1.5 times the pixels.",
        "",
    )


def _unlike(known: Known) -> Step:
    number = len(known.of("unlike the training images"))
    return (
        f"Look at {'this image' if number == 1 else f'these {number} images'} (causes.json names "
        f"{'it' if number == 1 else 'them'}): remove what is broken, and collect training images like the "
        "rest.",
        "",
        "",
    )


def _rare(known: Known) -> Step:
    rare = [
        name for name, _ in Counter(error.label for error in known.of("rare category")).most_common(NAMED)
    ]
    usual = int(np.median(known.diagnosis.confusion.sum(1)))
    counts = listed([f"{name} has {count_of(known.count(name), 'training image')}" for name in rare])
    collect = f"Collect images of {listed(rare)} ({counts}; the median category has {usual})"
    if known.treated:
        return f"{collect}.", CHECKED, ""
    return (
        f"{collect}, and meanwhile let a checkup balance the categories.",
        effect_of("rare category"),
        known.command,
    )


def _kernels(known: Known) -> Step | None:
    if known.treated:
        return None
    return (
        "Train the network a little further: kernels no longer do what they did in training, after pruning, "
        "quantisation, or an edit of the weights.",
        effect_of("wrong kernels"),
        known.command,
    )


def _labels(known: Known) -> Step:
    suspects = known.suspects.suspects if known.suspects is not None else ()
    if not suspects:
        other = " A network with published weights that judges them too may prove it."
        return (
            "Look at the labels of these images: the answers of the network speak against them. No training "
            "label is listed, because that any is wrong is not proven."
            + (other if known.second_opinion else ""),
            "",
            known.second_opinion,
        )
    assert known.suspects is not None
    expected = 100 * known.suspects.expected()
    number = len(suspects)
    which = "this training image" if number == 1 else f"these {number:,} training images"
    page = f" {known.review} asks about them in a browser, one key each." if known.review else ""
    return (
        f"Write the right category into the column answer of {LIST} for {which} ({expected:.0f} % of the "
        f"labels are expected to be wrong), and let a checkup train with the answers.{page}",
        effect_of("label looks wrong"),
        f"{known.command} --labels {LIST}" if known.command else "",
    )


def _ambiguous(known: Known) -> Step:
    return (
        "Accept two answers for images about which people would disagree. Where one answer is needed, let "
        "several people decide the labels, and give more pixels.",
        "",
        "",
    )


def _close(known: Known) -> Step:
    pairs = Counter(tuple(sorted((error.label, error.prediction))) for error in known.of("close categories"))
    named = listed([f"{one} and {other}" for (one, other), _ in pairs.most_common(NAMED)])
    return (
        f"Merge {named}, or say in the labelling rules what tells them apart and look at their labels again: "
        "the network takes them for each other in training too.",
        f"Merged, {sum(pairs.values())} of the {count_of(len(known.causes.errors), 'error')} "
        f"{'is' if sum(pairs.values()) == 1 else 'are'} none.",
        "",
    )


def _under_fitted(known: Known) -> Step | None:
    if known.treated:
        return "Train longer: give the next checkup more --epochs.", CHECKED, known.command
    return (
        "Train longer, at a learning rate that is measured: the network has not learned its training images.",
        effect_of("under-fitted"),
        known.command,
    )


def _background(known: Known) -> Step | None:
    if known.has_masks and known.treated:
        return None
    if known.has_masks:
        return (
            "Let a checkup train with objects before other backgrounds: the network goes by the background.",
            effect_of("background"),
            known.command,
        )
    wanted = min(FOR_MASKS, max((len(low) for low in known.diagnosis.sifting.low), default=0))
    return (
        f"Draw masks, or boxes, around the objects of {count_of(wanted or FOR_MASKS, 'image')} of "
        "each category (the "
        "diagnosis lists the most useful), and run a checkup on them: the network goes by the background.",
        effect_of("background"),
        known.review,
    )


def _over_fitted(known: Known) -> Step:
    if known.treated:
        return "Collect more training images.", CHECKED, ""
    return (
        "Collect more training images; meanwhile let a checkup train with more augmentation and decay.",
        effect_of("over-fitted"),
        known.command,
    )


def _unknown(known: Known) -> Step | None:
    if not known.second_opinion:
        return None
    return (
        "Let a network with published weights judge the labels too: one network alone can hardly tell "
        "whether people would reject a label or disagree about an image.",
        "",
        known.second_opinion,
    )


STEPS: Mapping[Cause, Callable[[Known], Step | None]] = {
    "preparation": _preparation,
    "category order": _order,
    "too little detail": _detail,
    "unlike the training images": _unlike,
    "rare category": _rare,
    "wrong kernels": _kernels,
    "label looks wrong": _labels,
    "ambiguous": _ambiguous,
    "close categories": _close,
    "under-fitted": _under_fitted,
    "background": _background,
    "over-fitted": _over_fitted,
    "unknown": _unknown,
}
"""What is proposed for each cause; None where nothing is left to do."""


def sentences(steps: Sequence[NextStep]) -> list[str]:
    """Return the steps as a numbered list.

    Args:
        steps: The steps.

    Returns:
        A line for each: what to do, for how many errors, what it brings, and the command.
    """
    lines = []
    for number, step in enumerate(steps, 1):
        errors = "" if step.cause == "all" else f"For {step.for_errors}: {step.cause}."
        parts = [f"{number}. {step.action}", errors, step.effect, step.command and f"Run: {step.command}"]
        lines.append(" ".join(part for part in parts if part))
    return lines
