"""Say for each error which cause the evidence supports best, with the numbers behind it, or `unknown`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from torchdoctor.diagnosis.causes_result import Cause, Causes, ErrorCause
from torchdoctor.diagnosis.result import Diagnosis
from torchdoctor.diagnosis.statistics import out_of_step
from torchdoctor.images.backgrounds import background_alone, before_other_backgrounds
from torchdoctor.images.batches import Batch, Images, only
from torchdoctor.network.frozen import frozen_eval
from torchdoctor.network.outputs import as_logits, unwrap
from torchdoctor.network.prediction import device_of, dtype_of, predict_logits
from torchdoctor.types import Progress, silent

DONORS = 16  # images, spread over the categories, whose backgrounds are put behind each object
GONE, MOSTLY_GONE = 0.25, 0.4  # share of all errors that vanish on other backgrounds
SELDOM = 0.25  # share of other backgrounds that leave the prediction unchanged, below which it is unstable
RARE = 0.25  # training images, relative to the median category
CHANGED = 0.05  # share of a category's evidence on changed kernels
SAME_ON_TRAINING = 20.0  # training and validation accuracy within these percentage points count as equal
SURE, DENIED = 0.3, 0.1  # probability of the prediction and of the label where a label is doubted
TRUST_FROM, TRUSTED = 0.5, 0.75  # probability of confident predictions, and the share that must be right
CONFUSED = 0.1  # share of training images that two categories lose to each other
BOTH = 0.4  # probability of the two categories together
TIED, OF_TIED = 0.15, 0.8  # difference of the two probabilities in a tie, and their sum
UNFITTED = 70.0  # training accuracy in percent below which a network has not learned its images
GAP = 15.0  # percentage points between training and validation accuracy that count as over-fitting


@dataclass(frozen=True)
class _Facts:
    """What is known of the whole network: accuracies in percent, and shares in 0..1, by category.

    `overall` holds the training and the validation accuracy. `trust[c]`: the number of confident predictions
    of c, and how many of them are right. `changed[c]`: the share of the evidence for c on kernels that are
    out of step with their batch-norm. `confusion` is that of the diagnosis, divided by the row's sum.
    """

    training: Float[np.ndarray, " category"]
    training_images: Int[np.ndarray, " category"]
    validation: Float[np.ndarray, " category"]
    overall: tuple[float, float]
    trust: Int[np.ndarray, "category 2"]
    changed: Float[np.ndarray, " category"]
    confusion: Float[np.ndarray, "category category"]

    @property
    def median(self) -> float:
        """The training images of the median category, among those that have any."""
        some = self.training_images[self.training_images > 0]
        return float(np.median(some)) if len(some) else 1.0

    def of(self, confidences: Float[np.ndarray, " category"], label: int, other: int) -> dict[str, float]:
        """Return the numbers of an error: an image of `label` that was predicted as `other`."""
        confident, right = self.trust[other].tolist()
        if confidences[other] >= TRUST_FROM:
            confident -= 1  # the image itself, which is misclassified, is left out
        return {
            "confidence": float(confidences[other]),
            "label_confidence": float(confidences[label]),
            "training_accuracy": float(self.training[label]),
            "validation_accuracy": float(self.validation[label]),
            "overall_training_accuracy": self.overall[0],
            "overall_validation_accuracy": self.overall[1],
            "training_images_of_median": float(self.training_images[label] / self.median),
            "confused_on_training": float(min(self.confusion[label, other], self.confusion[other, label])),
            "sure_and_right": right / confident if confident >= 5 else float("nan"),
            "evidence_on_changed_kernels": float(max(self.changed[label], self.changed[other])),
        }


def find_causes(
    model: nn.Module,
    images: Images,
    diagnosis: Diagnosis,
    *,
    seed: int = 0,
    progress: Progress = silent,
) -> Causes:
    """Find the most likely cause of every error on images that the network was not trained on.

    `decide` describes the causes. The cause `background` is only found for images with object masks.

    Args:
        model: The network; it is left as it was.
        images: The normalised images, such as those of the validation split.
        diagnosis: The diagnosis of this network on its training images.
        seed: The seed by which images are chosen whose backgrounds are put behind the objects.
        progress: Called with ("causes", errors done, errors in all).

    Returns:
        All misclassified images with their causes, and the accuracy.

    Example:
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
    model = unwrap(model)
    ids, labels, logits = predict_logits(model, images)
    examined = _examined(model, images, diagnosis, (ids, labels, logits), seed, progress)
    known = [error[-1]["label_before_others"] for error in examined if "label_before_others" in error[-1]]
    gone = {"errors_gone_before_others": float(np.mean(known))} if known else {}
    errors = [
        ErrorCause(
            image, diagnosis.classes[label], diagnosis.classes[other], numbers["confidence"],
            decide({**numbers, **gone}), {**numbers, **gone},
        )
        for image, label, other, numbers in sorted(examined, key=lambda error: error[0])
    ]  # fmt: skip
    return Causes(tuple(errors), len(ids), 100.0 * (1 - len(examined) / len(ids)))


def _examined(
    model: nn.Module,
    images: Images,
    diagnosis: Diagnosis,
    outputs: tuple[Tensor, Tensor, Tensor],
    seed: int,
    progress: Progress,
) -> list[tuple[int, int, int, dict[str, float]]]:
    """Return the id, label, prediction and numbers of each misclassified image.

    `outputs` are the ids, labels and logits of all images.
    """
    ids, labels, logits = outputs
    confidences, predicted = logits.double().softmax(1), logits.argmax(1)
    facts = _facts(diagnosis, labels.numpy(), confidences.numpy())
    wrong = ids[predicted != labels].tolist()
    prediction = dict(zip(ids.tolist(), predicted.tolist(), strict=True))
    confidence = dict(zip(ids.tolist(), confidences.numpy(), strict=True))
    donors = _donors(images, labels, ids, seed)
    errors: list[tuple[int, int, int, dict[str, float]]] = []
    for batch in only(images, wrong):
        called = torch.tensor([prediction[image] for image in batch.ids.tolist()])
        tried = _before_backgrounds(model, batch, called, donors)
        for row, (image, label) in enumerate(zip(batch.ids.tolist(), batch.labels.tolist(), strict=True)):
            other = int(called[row])
            errors.append((image, label, other, {**facts.of(confidence[image], label, other), **tried[row]}))
        progress("causes", len(errors), len(wrong))
    return errors


def decide(numbers: Mapping[str, float]) -> Cause:
    """Return the first cause whose conditions hold.

    In this order, where "the categories" are the label and the prediction:

    - `rare category`: the label has fewer than a quarter of the training images of the median category.
    - `wrong kernels`: a category relies on kernels that are out of step with their batch-norm, and training
      images of the label are misclassified almost as often.
    - `ambiguous`: the categories are confused with each other on training images too.
    - `under-fitted`: few training images are classified correctly.
    - `background`: a quarter of all errors vanish on other backgrounds, and this error does; or two fifths
      do, and the background alone gives the same prediction.
    - `over-fitted`: training images are classified much better than validation images.
    - `background`: the background alone gives the prediction, which few other backgrounds do.
    - `label looks wrong`: the label has almost no probability, and confident predictions of the predicted
      category are usually right.
    - `ambiguous`: the categories have almost the same probability.

    Args:
        numbers: Values by the names in NUMBERS; a missing value or NaN meets no condition.

    Returns:
        The cause, or `unknown` where no condition holds.
    """
    n = {**dict.fromkeys(NUMBERS, float("nan")), **numbers}
    gap = n["training_accuracy"] - n["validation_accuracy"]
    both, apart = n["confidence"] + n["label_confidence"], n["confidence"] - n["label_confidence"]
    changed = n["evidence_on_changed_kernels"] >= CHANGED
    doubted = n["confidence"] >= SURE and n["label_confidence"] <= DENIED
    gone = n["errors_gone_before_others"]
    elsewhere = n["label_before_others"] == 1 and gone >= GONE
    alone = n["background_alone_predicts_it"] == 1
    overall = n["overall_training_accuracy"]
    rules: tuple[tuple[Cause, bool], ...] = (
        ("rare category", n["training_images_of_median"] < RARE),
        ("wrong kernels", changed and gap <= SAME_ON_TRAINING),
        ("ambiguous", n["confused_on_training"] >= CONFUSED and both >= BOTH),
        ("under-fitted", overall < UNFITTED and gap < GAP),
        ("background", elsewhere or (alone and gone >= MOSTLY_GONE)),
        ("over-fitted", overall - n["overall_validation_accuracy"] >= GAP and gap >= GAP),
        ("background", alone and n["prediction_before_others"] <= SELDOM),
        ("label looks wrong", doubted and n["sure_and_right"] >= TRUSTED),
        ("ambiguous", both >= OF_TIED and apart <= TIED),
    )
    return next((cause for cause, holds in rules if holds), "unknown")


NUMBERS = (
    "confidence", "label_confidence", "training_accuracy", "validation_accuracy",
    "overall_training_accuracy", "overall_validation_accuracy", "training_images_of_median",
    "confused_on_training", "sure_and_right", "evidence_on_changed_kernels", "label_before_others",
    "prediction_before_others", "background_alone_predicts_it", "errors_gone_before_others",
)  # fmt: skip


def _facts(diagnosis: Diagnosis, labels: np.ndarray, confidences: np.ndarray) -> _Facts:
    """Gather what is known of the whole network."""
    right = confidences.argmax(1) == labels
    categories = len(diagnosis.classes)
    validation = np.full(categories, np.nan)
    trust = np.zeros((categories, 2), dtype=np.int64)
    confident = confidences.max(1) >= TRUST_FROM
    for category in range(categories):
        if (labels == category).any():
            validation[category] = 100.0 * right[labels == category].mean()
        called = confident & (confidences.argmax(1) == category)
        trust[category] = called.sum(), (called & right).sum()
    trained = diagnosis.confusion.sum(1)
    overall = 100.0 * np.trace(diagnosis.confusion) / max(int(trained.sum()), 1)
    return _Facts(
        training=diagnosis.accuracy,
        training_images=trained,
        validation=validation,
        overall=(float(overall), float(100.0 * right.mean())),
        trust=trust,
        changed=_evidence_on_changed(diagnosis),
        confusion=diagnosis.confusion / np.maximum(trained, 1)[:, None],
    )


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


def _donors(images: Images, labels: Tensor, ids: Tensor, seed: int) -> tuple[Tensor, Tensor] | None:
    """Choose images with masks, spread over the categories, for their backgrounds; None without any."""
    turn: dict[int, int] = {}
    ranked: list[tuple[int, int, int]] = []
    for row in torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed)).tolist():
        label = int(labels[row])
        ranked.append((turn.get(label, 0), len(ranked), int(ids[row])))
        turn[label] = turn.get(label, 0) + 1
    wanted = [image for _, _, image in sorted(ranked)[: 4 * DONORS]]
    place = {image: rank for rank, image in enumerate(wanted)}
    usable: dict[int, tuple[Tensor, Tensor]] = {}
    for batch in only(images, wanted):
        for row in usable_masks(batch).nonzero()[:, 0].tolist():
            assert batch.masks is not None
            usable[place[int(batch.ids[row])]] = (batch.images[row], batch.masks[row])
    if not usable:
        return None
    pixels, masks = zip(*(usable[rank] for rank in sorted(usable)[:DONORS]), strict=True)
    return torch.stack(pixels), torch.stack(masks)


def usable_masks(batch: Batch) -> Bool[Tensor, " batch"]:
    """Return which images have a mask with both object and background.

    Args:
        batch: The images.

    Returns:
        True where the object covers more than 0.5 % and less than 98 % of the image.
    """
    if batch.masks is None:
        return torch.zeros(len(batch.ids), dtype=torch.bool)
    share = batch.masks.float().mean((1, 2, 3)).cpu()
    known = (share > 0.005) & (share < 0.98)
    return known if batch.annotated is None else known & batch.annotated.cpu()


def _before_backgrounds(
    model: nn.Module,
    batch: Batch,
    called: Int[Tensor, " batch"],
    donors: tuple[Tensor, Tensor] | None,
) -> list[dict[str, float]]:
    """Predict each object before other backgrounds, and its background without the object."""
    numbers: list[dict[str, float]] = [{} for _ in range(len(batch.ids))]
    usable = usable_masks(batch)
    if donors is None or not bool(usable.any()):
        return numbers
    assert batch.masks is not None
    device, dtype = device_of(model), dtype_of(model)
    for row in usable.nonzero()[:, 0].tolist():
        image, mask = batch.images[row : row + 1], batch.masks[row : row + 1]
        others = before_other_backgrounds(image, mask, *donors)[0]
        pixels = torch.cat([others, background_alone(image, mask)]).to(device, dtype)
        with frozen_eval(model), torch.no_grad():
            logits = as_logits(model(pixels)).double().cpu()
        mean = logits[:-1].log_softmax(1).mean(0)
        numbers[row] = {
            "label_before_others": float(mean.argmax() == batch.labels[row]),
            "prediction_before_others": float((logits[:-1].argmax(1) == called[row]).double().mean()),
            "background_alone_predicts_it": float(logits[-1].argmax() == called[row]),
        }
    return numbers
