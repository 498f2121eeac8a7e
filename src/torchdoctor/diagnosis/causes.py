"""Say for each error which cause the evidence supports best, with the numbers behind it, or `unknown`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from torchdoctor.diagnosis.background_trial import (
    Trial,
    donors_of,
    over_all,
    over_right,
    try_backgrounds,
)
from torchdoctor.diagnosis.cause_rules import MOSTLY, NEVER, SAID, decide
from torchdoctor.diagnosis.causes_result import Causes, ErrorCause
from torchdoctor.diagnosis.detail import with_more_pixels
from torchdoctor.diagnosis.preparation_check import better_preparation, right_if
from torchdoctor.diagnosis.renaming import other_order
from torchdoctor.diagnosis.result import Diagnosis
from torchdoctor.diagnosis.second_opinion import Doubts, Opinions, accuracies_of, doubts_of, second_logits
from torchdoctor.diagnosis.statistics import out_of_step
from torchdoctor.diagnosis.unlike import FAR, distances, logits_and_features, unlike_others
from torchdoctor.images.batches import Batch, Images, only
from torchdoctor.images.loaders import ImageSource, images_of
from torchdoctor.network.outputs import unwrap
from torchdoctor.processes import ALONE, Processes
from torchdoctor.types import Progress, silent

LEAST_EXAMINED = 20  # images of a category from which on shares of them are looked at


@dataclass(frozen=True)
class _Facts:
    """What is known of the whole network: accuracies in percent, and shares in 0..1, by category.

    `overall` holds the training and the validation accuracy. `changed[c]`: the share of the evidence for c on
    kernels that are out of step with their batch-norm. `confusion` is that of the diagnosis, divided by the
    row's sum, and `examined` that of the images that are examined. `doubts` is about their labels.
    `order`: the category that each is taken for, where another order explains the confusion far better.
    """

    training: Float[np.ndarray, " category"]
    training_images: Int[np.ndarray, " category"]
    validation: Float[np.ndarray, " category"]
    overall: tuple[float, float]
    changed: Float[np.ndarray, " category"]
    confusion: Float[np.ndarray, "category category"]
    examined: Float[np.ndarray, "category category"]
    examined_images: Int[np.ndarray, " category"]
    doubts: Doubts
    order: Int[np.ndarray, " category"] | None

    @property
    def median(self) -> float:
        """The training images of the median category, among those that have any."""
        some = self.training_images[self.training_images > 0]
        return float(np.median(some)) if len(some) else 1.0

    @property
    def lost(self) -> float:
        """The share of its training images that a category loses to any one other on average."""
        trained = self.training_images > 0
        others = max(len(self.confusion) - 1, 1)
        return float((1 - self.confusion.diagonal()[trained]).mean() / others) if trained.any() else 0.0

    def never_right(self, category: int) -> bool:
        """Whether next to no training image of a category is classified correctly."""
        return bool(self.training_images[category] > 0 and self.confusion[category, category] <= NEVER)

    def confused_unseen(self, label: int, other: int) -> dict[str, float]:
        """Return the share of examined images that two categories lose to each other; none of few images."""
        if min(self.examined_images[label], self.examined_images[other]) < LEAST_EXAMINED:
            return {}
        lost = 1 - self.examined.diagonal()[self.examined.any(1)]
        both = float(min(self.examined[label, other], self.examined[other, label]))
        usual = float(np.median(lost)) / max(len(self.examined) - 1, 1)
        return {"confused_on_examined": both, "confused_on_examined_beyond": both / max(usual, 1e-9)}

    def exchanged(self, label: int, other: int) -> bool:
        """Whether most training images of each of two categories are taken for the other."""
        return all(
            self.confusion[one, two] >= max(MOSTLY, 2 * self.confusion[one, one])
            for one, two in ((label, other), (other, label))
        )

    def in_another_order(self, label: int, other: int) -> bool:
        """Whether two categories have each other's place, or the first that of the second in an order."""
        both = self.never_right(label) and self.never_right(other)
        moved = self.order is not None and int(self.order[label]) == other
        return both or moved or self.exchanged(label, other)

    def of(
        self, confidences: Float[np.ndarray, " category"], label: int, other: int, row: int
    ) -> dict[str, float]:
        """Return the numbers of an error: the image in `row`, of `label`, that was predicted as `other`."""
        confused = float(min(self.confusion[label, other], self.confusion[other, label]))
        return {
            "confidence": float(confidences[other]),
            "label_confidence": float(confidences[label]),
            "training_accuracy": float(self.training[label]),
            "validation_accuracy": float(self.validation[label]),
            "overall_training_accuracy": self.overall[0],
            "overall_validation_accuracy": self.overall[1],
            "training_images_of_median": float(self.training_images[label] / self.median),
            "confused_on_training": confused,
            "confused_beyond_others": confused / max(self.lost, 1e-9),
            **self.confused_unseen(label, other),
            "label_never_right": float(self.in_another_order(label, other)),
            "taken_for_prediction": float(self.confusion[label, other]),
            "wrong_labels": self.doubts.labels.share,
            "label_wrong_by_share": float(self.doubts.labels.wrong[row]),
            "log_odds": float(self.doubts.labels.log_odds[row]),
            "second_on_label": float(self.doubts.second[row]),
            "confused_back": float(self.examined[other, label]),
            "evidence_on_changed_kernels": float(max(self.changed[label], self.changed[other])),
        }


def find_causes(
    model: nn.Module,
    images: ImageSource,
    diagnosis: Diagnosis,
    *,
    larger: ImageSource | None = None,
    second: Opinions = None,
    seed: int = 0,
    progress: Progress = silent,
    processes: Processes = ALONE,
) -> Causes:
    """Find the causes of every error on images that the network was not trained on.

    `torchdoctor.diagnosis.cause_rules.decide` describes the causes, and how probable each is. The cause
    `background` is only found for images with object masks.

    Args:
        model: The network; it is left as it was.
        images: The normalised images, such as those of the validation split.
        diagnosis: The diagnosis of this network on its training images.
        larger: The same images with more pixels, to find errors that come from too little detail; a network
            that takes no larger images is not tried on them. None: the cause is not looked for.
        second: Another network, or several, whose predictions for these images are also used to judge labels
            (`label looks wrong`, `ambiguous`); None: only those of the network itself.
        seed: The seed of the choice of images whose backgrounds are used, and of the folds of new heads.
        progress: Called with ("causes", errors done, errors in all); see also `by_new_heads`.
        processes: The processes that work together: each computes some batches, and gets the whole result.

    Returns:
        All misclassified images with their causes, and the accuracy.

    Raises:
        InputError: Another network has other categories, or `second` or `larger` holds other images.

    Example:
        >>> import torch
        >>> from torchdoctor import Batch, diagnose, find_causes
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
        >>> pixels = torch.randn(8, 3, 8, 8)
        >>> right = model(pixels).argmax(1)
        >>> training = Batch(pixels, labels=right, ids=torch.arange(8))
        >>> validation = Batch(pixels, labels=1 - right, ids=torch.arange(8))
        >>> diagnosis = diagnose(model, [training], layers=["0"], confidence=0.0)
        >>> len(find_causes(model, [validation], diagnosis).errors)
        8
    """
    model, images = unwrap(model), images_of(images)
    named = [layer.name for layer in diagnosis.layers]
    (ids, labels, logits), features = logits_and_features(model, images, named, processes)
    right = (logits.argmax(1) == labels).numpy()
    heard = second_logits(second, ids, labels, logits.shape[1], seed, progress, processes)
    more = unlike_others(distances(features, right), right)
    if larger is not None and not right.all():
        more |= with_more_pixels(model, images_of(larger), ids, right, processes) or {}
    outputs = (ids, labels, logits, heard)
    examined = _examined(model, images, diagnosis, outputs, more, seed, progress, processes)
    errors = tuple(_judged(diagnosis.classes, *error) for error in sorted(examined, key=lambda each: each[0]))
    accuracy = 100.0 * (1 - len(examined) / len(ids))
    return Causes(errors, len(ids), accuracy, accuracies_of(second, heard, labels.numpy()))


def _judged(
    classes: tuple[str, ...], image: int, label: int, other: int, numbers: dict[str, float]
) -> ErrorCause:
    """Return an error with its cause: an image of `label` that was predicted as `other`, and its numbers."""
    cause, probabilities = decide(numbers)
    return ErrorCause(
        image, classes[label], classes[other], numbers["confidence"], cause, probabilities, numbers
    )


def _examined(
    model: nn.Module,
    images: Images,
    diagnosis: Diagnosis,
    outputs: tuple[Tensor, Tensor, Tensor, tuple[np.ndarray, ...]],
    more: Mapping[str, Float[np.ndarray, " image"]],
    seed: int,
    progress: Progress,
    processes: Processes,
) -> list[tuple[int, int, int, dict[str, float]]]:
    """Return the id, label, prediction and numbers of each misclassified image.

    `outputs` are the ids, labels and logits of all images, and the logits of the other networks;
    `more` are further numbers of each image.
    """
    ids, labels, logits, second = outputs
    confidences, predicted = logits.double().softmax(1), logits.argmax(1)
    right = (predicted == labels).numpy()
    if "right_if_larger" in more and more["repaired_if_larger_beyond_chance"][0] >= SAID:
        right = right | (more["right_if_larger"] == 1)  # too little detail is no gap between training and now
    known = ~((more["as_far"] <= FAR) & (more["far_beyond_chance"] >= SAID))
    facts = _facts(diagnosis, labels.numpy(), (logits.double().numpy(), second), right, known)
    row_of = {image: row for row, image in enumerate(ids.tolist())}
    wrong = ids[predicted != labels].tolist()
    donors = donors_of(model, images, labels, ids, seed)
    other_way = better_preparation(model, images, ids.tolist(), seed) if wrong else None
    done = 0

    def examined(batch: Batch) -> list[tuple[int, int, int, dict[str, float], Trial | None]]:
        nonlocal done
        errors: list[tuple[int, int, int, dict[str, float], Trial | None]] = []
        called = predicted[[row_of[image] for image in batch.ids.tolist()]]
        tried = try_backgrounds(model, batch, called, donors)
        mended = right_if(model, batch, other_way[1]) if other_way is not None else None
        for row, (image, label) in enumerate(zip(batch.ids.tolist(), batch.labels.tolist(), strict=True)):
            other, place = int(called[row]), row_of[image]
            numbers = facts.of(confidences[place].numpy(), label, other, place)
            numbers |= {name: float(values[place]) for name, values in more.items()}
            trial = tried[row]
            if trial is not None:
                numbers |= trial.numbers
            if mended is not None:
                numbers["right_if_prepared_otherwise"] = float(mended[row])
            errors.append((image, label, other, numbers, trial))
        done = min(done + processes.count * len(errors), len(wrong))
        progress("causes", done, len(wrong))
        return errors

    shares = map(examined, only(images, wrong, processes))
    errors = [error for errors in processes.in_order(shares) for error in errors]
    together = over_all([trial for *_, trial in errors], donors, logits.shape[1])
    if together:
        together |= over_right(
            model, images, ids[predicted == labels], donors, logits.shape[1], seed, processes
        )
    return [(*error, {**numbers, **together}) for *error, numbers, _trial in errors]


def _facts(
    diagnosis: Diagnosis,
    labels: np.ndarray,
    outputs: tuple[np.ndarray, tuple[np.ndarray, ...]],
    right: np.ndarray,
    known: np.ndarray,
) -> _Facts:
    """Gather what is known of the whole network.

    `outputs` are its logits and those of the other networks. `right` are the images that it
    can classify correctly, `known` those that are like its training images: predictions for other images
    say nothing about their labels.
    """
    logits, second = outputs
    categories = len(diagnosis.classes)
    validation = np.full(categories, np.nan)
    examined = np.zeros((categories, categories))
    np.add.at(examined, (labels, logits.argmax(1)), 1)
    for category in range(categories):
        if (labels == category).any():
            validation[category] = 100.0 * right[labels == category].mean()
    trained = diagnosis.confusion.sum(1)
    confusion = diagnosis.confusion / np.maximum(trained, 1)[:, None]
    overall = 100.0 * np.trace(diagnosis.confusion) / max(int(trained.sum()), 1)
    return _Facts(
        training=diagnosis.accuracy,
        training_images=trained,
        validation=validation,
        overall=(float(overall), float(100.0 * right.mean())),
        changed=_evidence_on_changed(diagnosis),
        confusion=confusion,
        order=other_order(confusion, trained > 0),
        examined=examined / np.maximum(examined.sum(1), 1)[:, None],
        examined_images=np.bincount(labels, minlength=categories),
        # Categories that are seldom right tell of another fault than wrong labels.
        doubts=doubts_of(logits, second, labels, known & ~_seldom_right(confusion)[labels]),
    )


def _seldom_right(confusion: Float[np.ndarray, "category category"]) -> Bool[np.ndarray, " category"]:
    """Return the categories whose training images are next to never right, or mostly taken for another."""
    right = confusion.diagonal()
    taken = (confusion - np.diag(right)).max(1)
    seldom = (right <= NEVER) | ((taken >= MOSTLY) & (right <= taken / 2))
    return seldom & confusion.any(1)


def _evidence_on_changed(diagnosis: Diagnosis) -> Float[np.ndarray, " category"]:
    """Return the largest share of a category's evidence, over layers, on kernels that are out of step."""
    shares = np.zeros(len(diagnosis.classes))
    for layer in diagnosis.layers:
        changed = list(out_of_step(layer.drift))
        total = layer.correlation.sum(1)
        with np.errstate(invalid="ignore", divide="ignore"):
            share = np.where(total > 0, layer.correlation[:, changed].sum(1) / total, float(bool(changed)))
        shares = np.maximum(shares, share)
    return shares
