"""The built-in remedies, each with its price, its needs and the causes that it is meant for.

A remedy is a function of the network, the training images, the diagnosis and a seed. It returns a `Course`:
in what its arm differs from the control.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from torchdoctor.diagnosis.causes_result import Cause
from torchdoctor.diagnosis.result import Diagnosis
from torchdoctor.images.batches import TrainingImages
from torchdoctor.treatment.balancing import balance, balanced_head
from torchdoctor.treatment.cure import JOINED_BY, Cure, Need, together
from torchdoctor.treatment.labels_by_hand import ANSWERED, drop_suspects, unanswered
from torchdoctor.treatment.masked_remedies import background_swap, input_gradients
from torchdoctor.treatment.norm_statistics import damaged_layers, renewed_statistics
from torchdoctor.treatment.recipe import PLAIN, Course
from torchdoctor.treatment.regularising import (
    MIXED_FROM,
    SHARP_FROM,
    cutmix,
    label_smoothing,
    late_sam,
    mixup,
    moving_average,
    regularise,
    stronger_decay,
    trivial_augment,
    weight_averaging,
)
from torchdoctor.treatment.reweighting import last_layer, weighed_errors


def control(model: nn.Module, images: TrainingImages, diagnosis: Diagnosis, seed: int) -> Course:
    """Train on with the classification loss alone: every remedy is compared with this arm.

    Args:
        model: Not used.
        images: Not used.
        diagnosis: Not used.
        seed: Not used.

    Returns:
        The course: the cross-entropy.
    """
    del model, images, diagnosis, seed
    return PLAIN


LABELS: frozenset[Need] = frozenset({"labels"})
MASKS: frozenset[Need] = frozenset({"masks"})
HEAD: frozenset[Need] = frozenset({"linear head"})
NORM: frozenset[Need] = frozenset({"batch-norm"})
DRIFTED: frozenset[Need] = frozenset({"batch-norm", "drifted kernels"})
RARE: tuple[Cause, ...] = ("rare category",)
WRONG_LABELS: tuple[Cause, ...] = ("label looks wrong",)
OVER_FITTED: tuple[Cause, ...] = ("over-fitted",)

_BUILT_IN: tuple[Cure, ...] = (
    Cure("control", control, causes=("under-fitted",)),
    Cure("balance", balance, causes=RARE, needs=HEAD, passes=0.0),
    # A last layer that is solved to its end is also what a short training has not reached.
    Cure("balanced-head", balanced_head, causes=(*RARE, "under-fitted"), needs=HEAD, passes=0.0),
    # Other backgrounds also make few images more varied, of a category or of all.
    Cure("swap", background_swap, causes=("background", *OVER_FITTED, *RARE), needs=MASKS),
    Cure("dfr", last_layer, causes=("background",), needs=HEAD, passes=0.0, solves_on_validation=True),
    Cure("weighed-errors", weighed_errors, causes=("background",)),
    # Without masks those come first that harmed no network (benchmarks/results/planted_cures.jsonl).
    Cure("averaging", weight_averaging, causes=OVER_FITTED),
    Cure("ema", moving_average, causes=OVER_FITTED),
    Cure("rrr", input_gradients, causes=("background",), needs=MASKS, passes=3.0),
    Cure("batchnorm", renewed_statistics, causes=("wrong kernels",), needs=NORM, passes=0.0),
    Cure("damaged-layers", damaged_layers, causes=("wrong kernels",), needs=DRIFTED),
    Cure("decay", stronger_decay, causes=OVER_FITTED),
    Cure("smoothing", label_smoothing, causes=OVER_FITTED),
    Cure("augment", trivial_augment, causes=OVER_FITTED),
    Cure("sam", late_sam, causes=OVER_FITTED, passes=2.0 - SHARP_FROM),
    Cure("cutmix", cutmix, causes=OVER_FITTED, least_epochs=MIXED_FROM),
    Cure("mixup", mixup, causes=OVER_FITTED, least_epochs=MIXED_FROM),
    Cure("regularise", regularise, causes=OVER_FITTED),
    Cure(ANSWERED, unanswered, causes=(*WRONG_LABELS, "close categories"), needs=LABELS),
    Cure("drop-suspects", drop_suspects, causes=WRONG_LABELS),
)
REMEDIES: Mapping[str, Cure] = {cure.name: cure for cure in _BUILT_IN}
FROM_LISTS = (ANSWERED, "drop-suspects")  # cures that a run or a user completes with a list of images
COMPLETED = (*FROM_LISTS, "dfr")  # what a run may complete: with lists, or with groups of images
AVERAGES = ("averaging", "ema")  # hand back a mean of the weights of many steps
GENERAL = ("averaging", "ema", "smoothing")  # what is tried where no cause of errors has a cure


def cure_named(name: str) -> Cure | None:
    """Return a built-in remedy, or two of them joined.

    Args:
        name: A name in REMEDIES, or two joined by a plus sign, such as `swap+balance`: the network is trained
            with the first, and then edited by the second.

    Returns:
        The remedy; None where there is none of that name, or where the second trains in a way of its own.
    """
    first, joined, then = name.partition(JOINED_BY)
    if not joined:
        return REMEDIES.get(name)
    edit = REMEDIES.get(then)
    if first not in REMEDIES or edit is None or edit.passes or REMEDIES[first].passes == 0:
        return None
    return together(REMEDIES[first], edit)


def meant_for(cause: str) -> tuple[str, ...]:
    """Return the built-in remedies that are meant for a cause of errors.

    Args:
        cause: The name of the cause, such as `rare category`.

    Returns:
        Their names; the control is among them where further training is the cure.
    """
    return tuple(name for name, cure in REMEDIES.items() if cause in cure.causes)
