"""Remedies from what a person, or a list of suspects, says of the training labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NoReturn

from torch import nn

from torchdoctor.diagnosis.result import Diagnosis
from torchdoctor.diagnosis.suspects import find_suspects
from torchdoctor.images.batches import Images, TrainingImages
from torchdoctor.treatment.altered_images import Relabelled, Without
from torchdoctor.treatment.cure import MISSING, Cure
from torchdoctor.treatment.recipe import Course
from torchdoctor.types import InputError

ANSWERED = "relabelled"  # the cure that uses a person's answers about labels


def without(ids: Iterable[int], name: str = "drop-suspects") -> Cure:
    """Return the remedy that trains without some of the images.

    Args:
        ids: The ids of the images to leave out, such as those whose label is wrong almost surely.
        name: The name of the arm.

    Returns:
        The remedy; its arm has as many steps as the control.

    Example:
        >>> from torchdoctor.treatment.labels_by_hand import without
        >>> without([3, 7]).causes
        ('label looks wrong',)
    """
    left_out = frozenset(int(one) for one in ids)

    def drop(model: nn.Module, images: TrainingImages, diagnosis: Diagnosis, seed: int) -> Course:
        """Train without the images whose labels are probably wrong."""
        del model, diagnosis, seed
        _check_known(left_out, images)
        return _leaving_out(left_out, images)

    return Cure(name, drop, causes=("label looks wrong",))


def drop_suspects(model: nn.Module, images: TrainingImages, diagnosis: Diagnosis, seed: int) -> Course:
    """Train without the images whose labels are probably wrong; `find_suspects` finds them.

    Args:
        model: The network; it is left as it was.
        images: The training images.
        diagnosis: Not used.
        seed: What the search for suspects depends on.

    Returns:
        The course; that of the control where no suspect is found.

    Raises:
        InputError: Nothing can be said about the labels (see `find_suspects`).
    """
    del diagnosis
    return _leaving_out(frozenset(one.id for one in find_suspects(model, images, seed=seed).suspects), images)


def unanswered(model: nn.Module, images: TrainingImages, diagnosis: Diagnosis, seed: int) -> NoReturn:
    """Train with the labels that a person has corrected.

    Args:
        model: Not used.
        images: Not used.
        diagnosis: Not used.
        seed: Not used.

    Raises:
        InputError: Always: `relabelled` makes the remedy that holds the labels.
    """
    del model, images, diagnosis, seed
    raise InputError(f"arm 'relabelled' needs {MISSING['labels']}; in Python: relabelled({{id: label}})")


def _leaving_out(ids: frozenset[int], images: TrainingImages) -> Course:
    """Return the course without some of the images."""
    facts = ({"left_out": len(ids)},)
    return Course(images=Without(images, ids), facts=facts) if ids else Course(facts=facts)


def relabelled(labels: Mapping[int, int], name: str = ANSWERED, *, left_out: Iterable[int] = ()) -> Cure:
    """Return the remedy that trains with corrected labels.

    Args:
        labels: The right category of some images, by their ids.
        name: The name of the arm.
        left_out: The ids of images that show no category, and are left out.

    Returns:
        The remedy.

    Example:
        >>> from torchdoctor.treatment.labels_by_hand import relabelled
        >>> relabelled({3: 1}).name
        'relabelled'
    """
    right = {int(identity): int(label) for identity, label in labels.items()}
    unusable = frozenset(int(one) for one in left_out)

    def relabel(model: nn.Module, images: TrainingImages, diagnosis: Diagnosis, seed: int) -> Course:
        """Train with the labels that a person has corrected."""
        del model, seed
        _check_known([*right, *unusable], images)
        wrong = sorted(label for label in right.values() if not 0 <= label < len(diagnosis.classes))
        if wrong:
            raise InputError(
                f"label {wrong[0]}: expected the number of a category, 0 to {len(diagnosis.classes) - 1}"
            )
        corrected = Relabelled(images, right)
        return Course(
            images=Without(corrected, unusable) if unusable else corrected,
            facts=({"relabelled": len(right), "left_out": len(unusable)},),
        )

    return Cure(name, relabel, causes=("label looks wrong", "close categories"))


def _check_known(ids: Iterable[int], images: Images) -> None:
    """Raise InputError where an id is not among the images."""
    known = {identity for batch in images for identity in batch.ids.tolist()}
    unknown = sorted(set(ids) - known)
    if unknown:
        raise InputError(f"image id {unknown[0]}: not among the {len(known)} training images")
