"""Remedies from what a person, or a list of suspects, says of the training labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import nn

from torchdoctor.diagnosis.result import Diagnosis
from torchdoctor.images.batches import Images, TrainingImages
from torchdoctor.treatment.altered_images import Relabelled, Without
from torchdoctor.treatment.cure import Cure
from torchdoctor.treatment.recipe import Course
from torchdoctor.types import InputError


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
        return Course(images=Without(images, left_out), facts=({"left_out": len(left_out)},))

    return Cure(name, drop, causes=("label looks wrong",))


def relabelled(labels: Mapping[int, int], name: str = "relabelled") -> Cure:
    """Return the remedy that trains with corrected labels.

    Args:
        labels: The right category of some images, by their ids.
        name: The name of the arm.

    Returns:
        The remedy.

    Example:
        >>> from torchdoctor.treatment.labels_by_hand import relabelled
        >>> relabelled({3: 1}).name
        'relabelled'
    """
    right = {int(identity): int(label) for identity, label in labels.items()}

    def relabel(model: nn.Module, images: TrainingImages, diagnosis: Diagnosis, seed: int) -> Course:
        """Train with the labels that a person has corrected."""
        del model, seed
        _check_known(right, images)
        wrong = sorted(label for label in right.values() if not 0 <= label < len(diagnosis.classes))
        if wrong:
            raise InputError(
                f"label {wrong[0]}: expected the number of a category, 0 to {len(diagnosis.classes) - 1}"
            )
        return Course(images=Relabelled(images, right), facts=({"relabelled": len(right)},))

    return Cure(name, relabel, causes=("label looks wrong", "close categories"))


def _check_known(ids: Iterable[int], images: Images) -> None:
    """Raise InputError where an id is not among the images."""
    known = {identity for batch in images for identity in batch.ids.tolist()}
    unknown = sorted(set(ids) - known)
    if unknown:
        raise InputError(f"image id {unknown[0]}: not among the {len(known)} training images")
