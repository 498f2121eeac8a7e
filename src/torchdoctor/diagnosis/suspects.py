"""Find the training images whose labels look wrong, by the network and by cross-validated linear heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import isotonic_regression
from scipy.special import log_softmax
from torch import Tensor, nn

from torchdoctor.diagnosis.crossed_heads import (
    crossed_log_probabilities,
    crossed_mistakes,
    standardised,
)
from torchdoctor.diagnosis.diagnose import category_names
from torchdoctor.diagnosis.label_doubts import label_doubts
from torchdoctor.diagnosis.suspects_result import Suspect, Suspects
from torchdoctor.evidence.measurement import first_images
from torchdoctor.images.batches import Batch, Images
from torchdoctor.images.loaders import ImageSource, images_of
from torchdoctor.network.frozen import frozen_eval
from torchdoctor.network.outputs import unwrap
from torchdoctor.network.pooled import places_of, pooling
from torchdoctor.network.prediction import device_of, dtype_of, predict_logits
from torchdoctor.processes import ALONE, Processes
from torchdoctor.types import InputError, Progress, silent

LISTED = 0.5  # probability from which a label is listed: it is more probably wrong than right
SIMILAR = 2  # images of each category that are shown beside a suspect
AT_ONCE = 512  # suspects that are compared with a category's images at once
BY_HEART = 99.0  # percent of labels that the network gives back, from which it tells nothing about them
LEARNED = 50.0  # percent of labels that the network gives back, below which it tells nothing about them


@dataclass(frozen=True)
class Seen:
    """What the network says of the images, in the order of their ids; small categories are left out.

    Attributes:
        ids: The ids of the images.
        labels: Their labels, which number the categories in `names`.
        logits: The logits of these categories.
        features: The averaged maps.
        names: The names of the categories that have enough images.
        accuracy: How many of all images are classified as labelled, in percent.
        few: The names of the categories that were left out.
    """

    ids: Int[np.ndarray, " image"]
    labels: Int[np.ndarray, " image"]
    logits: Float[np.ndarray, "image category"]
    features: Float[Tensor, "image feature"]
    names: tuple[str, ...]
    accuracy: float
    few: tuple[str, ...]


def find_suspects(
    model: nn.Module,
    images: ImageSource,
    layers: Sequence[str] | None = None,
    folds: int = 5,
    seed: int = 0,
    *,
    classes: Sequence[str] | None = None,
    progress: Progress = silent,
    processes: Processes = ALONE,
) -> Suspects:
    """Find training images whose labels look wrong; the network is left as it was.

    For each fold of the images a linear classifier (head) is fitted to the network's spatially averaged maps
    of the others. Images are ranked by log p(label) - max over the other categories of log p, where log p is
    the mean of the network's and that of the head fitted without the image. The heads alone give the share of
    wrong labels and the probability of each, which is made to fall along the ranking; from 0.5 on, images are
    listed. Both tend to be too low, because network and heads have learned from the wrong labels too.

    A network that fits all of its training labels repeats the wrong ones: use one trained for fewer epochs.

    Args:
        model: A network that was trained on these images.
        images: Its training images, normalised: a `DataLoader`, a `Dataset`, or a list of `Batch`.
        layers: Names and patterns of the layers whose maps are used; None: the last convolutions of the last
            two sizes of maps, and the input of the linear layer that gives the logits.
        folds: How many heads are fitted; categories with fewer images are left out.
        seed: The seed of the division into folds.
        classes: The names of the categories; None: those of `images`, else numbers.
        progress: Called with ("suspects", heads fitted, heads in all).
        processes: The processes that work together: each predicts some batches, and gets the whole result.

    Returns:
        The listed images, the most probably wrong labels first; none where wrong labels are not proven, or
        where the network classifies fewer than half of the images as labelled.

    Raises:
        InputError: Fewer than two categories have enough images, the network gives NaN, `folds` is below 2,
            or a layer is not there.

    Example:
        >>> from torchdoctor import Batch, find_suspects
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
        >>> images = Batch(torch.randn(40, 3, 8, 8), torch.arange(40) % 2, torch.arange(40))
        >>> find_suspects(model, [images]).images
        40
    """
    if folds < 2:
        raise InputError(f"folds is {folds}; expected at least 2: a head is judged on images it has not seen")
    seen = look(unwrap(model), images_of(images), layers, folds, classes, processes)
    if seen.accuracy < LEARNED:
        return Suspects((), len(seen.ids), 0.0, seen.accuracy, _remarks(seen, folds))
    features = standardised(seen.features)
    heads = crossed_log_probabilities(
        features, seen.labels, len(seen.names),
        folds=folds, seed=seed, device=device_of(model), progress=progress,
    )  # fmt: skip
    ranking = rank(seen, heads, crossed_mistakes(heads, seen.labels, folds=folds, seed=seed))
    suspects = _listed(seen, features, ranking)
    return Suspects(suspects, len(seen.ids), round(ranking.share, 6), seen.accuracy, _remarks(seen, folds))


@dataclass(frozen=True)
class Ranking:
    """All images, ranked by how wrong their labels look.

    Attributes:
        order: The rows of the images, the most suspicious first.
        chances: The probability that each label is wrong, by row; it falls along the ranking.
        proposed: The most probable of the other categories, by row.
        share: The share of wrong labels that is proven.
    """

    order: Int[np.ndarray, " image"]
    chances: Float[np.ndarray, " image"]
    proposed: Int[np.ndarray, " image"]
    share: float


def rank(
    seen: Seen,
    heads: Float[np.ndarray, "image category"],
    mistakes: Float[np.ndarray, "image category"],
) -> Ranking:
    """Rank the images by what the network and the heads say about their labels.

    Args:
        seen: What the network says.
        heads: The log-probabilities by the heads, each for images that it was not fitted on.
        mistakes: How probable each label is as a wrong label of every category (see `crossed_mistakes`).

    Returns:
        The ranking.
    """
    doubts = label_doubts(heads, seen.labels, mistaken=mistakes)
    margin, proposed = margins((log_softmax(seen.logits, axis=1) + heads) / 2, seen.labels)
    order = np.lexsort((seen.ids, margin))
    chances = np.zeros(len(order))
    if doubts.share > 0:
        chances[order] = isotonic_regression(doubts.wrong[order], increasing=False).x.round(4)
    return Ranking(order, chances, proposed, doubts.share)


def _listed(seen: Seen, features: Float[Tensor, "image feature"], ranking: Ranking) -> tuple[Suspect, ...]:
    """Return the images that are listed, with their similar images."""
    proposed, chances = ranking.proposed, ranking.chances
    listed = ranking.order[chances[ranking.order] >= LISTED]
    like_label, like_proposed = (
        _similar(features, seen, category, listed, chances < LISTED) for category in (seen.labels, proposed)
    )
    return tuple(
        Suspect(
            int(seen.ids[row]), seen.names[seen.labels[row]], seen.names[proposed[row]],
            float(chances[row]), like_label[row], like_proposed[row],
        )
        for row in listed.tolist()
    )  # fmt: skip


def look(
    model: nn.Module,
    images: Images,
    layers: Sequence[str] | None,
    folds: int,
    classes: Sequence[str] | None,
    processes: Processes = ALONE,
) -> Seen:
    """Run all images through the network, and check that their labels can be judged.

    Args:
        model: The network.
        images: The images.
        layers: The layers whose maps are kept (see `find_suspects`).
        folds: The number of images that a category needs.
        classes: The names of the categories; None: those of `images`, else numbers.
        processes: The processes that work together: each predicts a share of the batches.

    Returns:
        What the network says.

    Raises:
        InputError: Fewer than two categories have enough images, or the network gives NaN.
    """
    places = places_of(model, first_images(model, images), layers)
    with frozen_eval(model) as frozen, pooling(model, places) as pooled:

        def run(batch: Batch) -> tuple[Tensor, dict[str, list[Tensor]]]:
            return frozen.logits(batch.images.to(device_of(model), dtype_of(model))), pooled.take()

        ids, labels, logits = predict_logits(model, images, run, pooled.add, processes)
    names = category_names(classes, images, logits.shape[1])
    features = pooled.features(len(ids))
    broken = ~(logits.isfinite().all(1) & features.isfinite().all(1))
    if bool(broken.any()):
        raise InputError(
            f"the network gives NaN or infinity for {int(broken.sum())} of {len(ids)} images, such as image "
            f"id {int(ids[broken][0])}: look for damaged weights, or run it in float32"
        )
    counts = np.bincount(labels.numpy(), minlength=len(names))
    enough = np.flatnonzero(counts >= folds)
    if len(enough) < 2:
        raise InputError(
            f"{len(enough)} of {len(names)} categories have {folds} images or more, one for each fold; "
            "expected at least two categories: give more images, or fewer folds"
        )
    rows = torch.argsort(ids)
    rows = rows[torch.isin(labels[rows], torch.from_numpy(enough))]
    number = np.full(len(names), -1)
    number[enough] = np.arange(len(enough))
    return Seen(
        ids=ids[rows].numpy(),
        labels=number[labels[rows].numpy()],
        logits=logits[rows][:, enough].double().numpy(),
        features=features[rows],
        names=tuple(names[category] for category in enough.tolist()),
        accuracy=float(100.0 * (logits.argmax(1) == labels).double().mean()),
        few=tuple(names[category] for category in np.flatnonzero((counts > 0) & (counts < folds)).tolist()),
    )


def _remarks(seen: Seen, folds: int) -> tuple[str, ...]:
    """Say what was left out, and what the network cannot tell."""
    remarks = []
    if seen.few:
        named = ", ".join(seen.few[:4]) + (f" and {len(seen.few) - 4} more" if len(seen.few) > 4 else "")
        remarks.append(f"Not looked at, with fewer than {folds} images each: {named}.")
    if seen.accuracy < LEARNED:
        remarks.append(
            f"Labels were not judged: the network gives back only {seen.accuracy:.1f} % of them, and below "
            f"{LEARNED:g} % it has learned too little to tell which are wrong."
        )
    if seen.accuracy >= BY_HEART:
        remarks.append(
            f"The network gives back {seen.accuracy:.1f} % of its training labels: wrong labels that it has "
            "learned by heart do not show. A network trained for fewer epochs tells more."
        )
    return tuple(remarks)


def margins(
    log_probabilities: Float[np.ndarray, "image category"], labels: Int[np.ndarray, " image"]
) -> tuple[Float[np.ndarray, " image"], Int[np.ndarray, " image"]]:
    """Return how far the label is ahead of the best other category.

    Args:
        log_probabilities: The logarithms of the probabilities, of at least two categories.
        labels: The category that each image is labelled as.

    Returns:
        log p(label) - log p(best other), negative where another is more probable; and the best other.
    """
    rows = np.arange(len(labels))
    others = log_probabilities.copy()
    others[rows, labels] = -np.inf
    best = others.argmax(1)
    return log_probabilities[rows, labels] - others[rows, best], best


def _similar(
    features: Float[Tensor, "image feature"],
    seen: Seen,
    category: Int[np.ndarray, " image"],
    listed: Int[np.ndarray, " suspect"],
    trusted: Bool[np.ndarray, " image"],
) -> dict[int, tuple[int, ...]]:
    """Return, by row of a suspect, the ids of the most similar trusted images of its category."""
    similar: dict[int, tuple[int, ...]] = {}
    for one in np.unique(category[listed]).tolist():
        members = np.flatnonzero(trusted & (seen.labels == one))
        unit = nn.functional.normalize(features[torch.from_numpy(members)], dim=1)
        rows = listed[category[listed] == one]
        for start in range(0, len(rows), AT_ONCE):
            some = rows[start : start + AT_ONCE]
            cosine = nn.functional.normalize(features[torch.from_numpy(some)], dim=1) @ unit.T
            nearest = cosine.topk(min(SIMILAR, len(members)), dim=1).indices.numpy()
            for row, places in zip(some.tolist(), nearest, strict=True):
                similar[row] = tuple(seen.ids[members[places]].tolist())
    return similar
