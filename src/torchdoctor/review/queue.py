"""What a review asks, in which order, and what an answer is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from torchdoctor.data.table import ImageTable
from torchdoctor.diagnosis.causes_result import Cause, Causes
from torchdoctor.diagnosis.result import Diagnosis
from torchdoctor.diagnosis.suspects_result import Suspects
from torchdoctor.treatment.next_steps import FOR_MASKS, NextStep

WRONG = "The network is sure of another category here."
UNSURE = "The network is right here, but not sure."
FOR_LABELS: Cause = "label looks wrong"  # the causes of errors that the two queues are about
FOR_OBJECTS: Cause = "background"


@dataclass(frozen=True)
class LabelQuestion:
    """A training image whose label looks wrong.

    Attributes:
        id: The id of the image.
        name: Its name.
        given: The category that it is labelled as.
        proposed: The category that it looks like.
        probability: The probability that the label is wrong, in 0..1.
        like_given: The ids of similar images of the labelled category, the nearest first.
        like_proposed: The same of the proposed category.
    """

    id: int
    name: str
    given: str
    proposed: str
    probability: float
    like_given: tuple[int, ...] = ()
    like_proposed: tuple[int, ...] = ()


@dataclass(frozen=True)
class MaskQuestion:
    """A training image whose mask teaches much.

    Attributes:
        id: The id of the image.
        name: Its name.
        category: The category that it is labelled as.
        reason: Why it is asked for, in a sentence.
    """

    id: int
    name: str
    category: str
    reason: str


@dataclass(frozen=True)
class Queue:
    """The questions of a review, the most useful first.

    Attributes:
        labels: The questions about labels, those whose labels are most surely wrong first.
        masks: The questions about objects: one of each category in turn.
        label_worth: What answers about labels bring, in a sentence; empty where the run does not say.
        mask_worth: The same of masks.
    """

    labels: tuple[LabelQuestion, ...]
    masks: tuple[MaskQuestion, ...]
    label_worth: str = ""
    mask_worth: str = ""

    @property
    def images(self) -> frozenset[int]:
        """The ids of all images that are asked about or shown beside them."""
        beside = (image for one in self.labels for image in (one.id, *one.like_given, *one.like_proposed))
        return frozenset((*beside, *(one.id for one in self.masks)))


def queue_of(
    table: ImageTable,
    diagnosis: Diagnosis,
    suspects: Suspects | None,
    causes: Causes | None,
    steps: Sequence[NextStep],
) -> Queue:
    """Make the questions of a run.

    Args:
        table: Its training images.
        diagnosis: Its diagnosis, which ranks the images whose masks teach most.
        suspects: Training images whose labels look wrong; None: nobody looked.
        causes: The causes of its validation errors; categories with most errors by the background are asked
            for first. None: nobody looked.
        steps: What the run proposes to do next.

    Returns:
        The questions; images that have a mask already are not asked about, and those whose labels look wrong
        come last among the masks of their category.
    """
    names = dict(zip(table.ids.tolist(), map(str, table.names), strict=True))
    listed = suspects.suspects if suspects is not None else ()
    labels = tuple(
        LabelQuestion(
            one.id, names[one.id], one.label, one.proposed, one.probability, one.like_label, one.like_proposed
        )
        for one in listed
        if one.id in names
    )
    masks = _mask_questions(table, names, diagnosis, causes, {one.id for one in labels})
    worth = {step.cause: worth_of(step) for step in steps}
    return Queue(labels, masks, worth.get(FOR_LABELS, ""), worth.get(FOR_OBJECTS, ""))


def worth_of(step: NextStep) -> str:
    """Say what following a step brings.

    Args:
        step: A step of `next_steps.json`.

    Returns:
        For how many errors it is, and what it brought elsewhere.
    """
    return f"For {step.for_errors} of cause {step.cause!r}. {step.effect}".strip()


def _mask_questions(
    table: ImageTable,
    names: Mapping[int, str],
    diagnosis: Diagnosis,
    causes: Causes | None,
    doubted: Set[int],
) -> tuple[MaskQuestion, ...]:
    """Return the images to mask, one of each category in turn, those whose labels are doubted last."""
    masked = set(table.ids[table.has_mask].tolist())
    wrong = diagnosis.confusion.sum(1) - diagnosis.confusion.diagonal()
    by_category = []
    for category, ranked in enumerate(diagnosis.sifting.low):
        questions = [
            MaskQuestion(
                image, names[image], diagnosis.classes[category], WRONG if rank < wrong[category] else UNSURE
            )
            for rank, image in enumerate(ranked)
            if image in names and image not in masked
        ]
        questions.sort(key=lambda question: question.id in doubted)
        by_category.append(questions[:FOR_MASKS])
    errors = background_errors(diagnosis.classes, causes)
    order = sorted(range(len(by_category)), key=lambda category: -errors[category])
    longest = max(map(len, by_category), default=0)
    return tuple(
        by_category[category][turn]
        for turn in range(longest)
        for category in order
        if turn < len(by_category[category])
    )


def background_errors(classes: Sequence[str], causes: Causes | None) -> list[float]:
    """Return the expected number of errors by the background that involve each category.

    Args:
        classes: The names of the categories.
        causes: The causes of the errors; None: nothing is known.

    Returns:
        A number for each category: errors of its images, and images taken for it.
    """
    sums = dict.fromkeys(classes, 0.0)
    for error in causes.errors if causes is not None else ():
        for name in {error.label, error.prediction} & set(sums):
            sums[name] += error.probabilities.get(FOR_OBJECTS, 0.0)
    return list(sums.values())
