"""Find the training images whose labels look wrong, by the network and by cross-validated linear heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

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
from torchdoctor.diagnosis.label_doubts import label_doubts
from torchdoctor.diagnosis.second_opinion import (
    Opinions,
    SecondOpinion,
    by_new_heads,
    log_of_mean,
    several,
)
from torchdoctor.diagnosis.seen_labels import Seen, look
from torchdoctor.diagnosis.suspects_result import Suspect, Suspects
from torchdoctor.images.loaders import ImageSource, images_of
from torchdoctor.network.outputs import unwrap
from torchdoctor.network.prediction import device_of
from torchdoctor.processes import ALONE, Processes
from torchdoctor.types import InputError, Progress, silent

LISTED = 0.5  # probability from which a label is listed: it is more probably wrong than right
SIMILAR = 2  # images of each category that are shown beside a suspect
AT_ONCE = 512  # suspects that are compared with a category's images at once
BY_HEART = 99.0  # percent of labels that the network gives back, from which it tells nothing about them
LEARNED = 50.0  # percent of labels that the network gives back, below which it tells nothing about them


def find_suspects(
    model: nn.Module,
    images: ImageSource,
    layers: Sequence[str] | None = None,
    folds: int = 5,
    seed: int = 0,
    *,
    classes: Sequence[str] | None = None,
    second: Opinions = None,
    progress: Progress = silent,
    processes: Processes = ALONE,
) -> Suspects:
    """Find training images whose labels look wrong; the network is left as it was.

    For each fold of the images a linear classifier (head) is fitted to the network's spatially averaged maps
    of the others. Images are ranked by log p(label) - max over the other categories of log p, where log p is
    the mean of the network's and that of the head fitted without the image. The heads alone give the share of
    wrong labels and the probability of each, which is made to fall along the ranking; from 0.5 on, images are
    listed. Both tend to be too low, because network and heads have learned from the wrong labels too.
    With `second`, the mean probabilities of the heads on all networks' features take the place of log p.

    Args:
        model: A network that was trained on these images; one that fits all labels repeats the wrong ones.
        images: Its training images, normalised: a `DataLoader`, a `Dataset`, or a list of `Batch`.
        layers: Names and patterns of the layers whose maps are used; None: the last convolutions of the last
            two sizes of maps, and the input of the linear layer that gives the logits.
        folds: How many heads are fitted; categories with fewer images are left out.
        seed: The seed of the division into folds.
        classes: The names of the categories; None: those of `images`, else numbers.
        second: Other networks with `new_head`, and these images prepared for them; `training` is not used.
        progress: Called with ("suspects", heads fitted, heads in all); see also `by_new_heads`.
        processes: The processes that work together: each predicts some batches, and gets the whole result.

    Returns:
        The listed images, the most probably wrong labels first; none where wrong labels are not proven, or
        where the network classifies fewer than half of the images as labelled and there is no other.

    Raises:
        InputError: Too few images, NaN by the network, `folds` below 2, a layer that is not there, another
            network without new head or with other images.

    Example:
        >>> from torchdoctor import Batch, find_suspects
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
        >>> images = Batch(torch.randn(40, 3, 8, 8), torch.arange(40) % 2, torch.arange(40))
        >>> find_suspects(model, [images]).images
        40
    """
    others = _checked(folds, second)
    seen = look(unwrap(model), images_of(images), layers, folds, classes, processes)
    if seen.accuracy < LEARNED and not others:
        return Suspects((), len(seen.ids), 0.0, seen.accuracy, _remarks(seen, folds, 0))
    features = standardised(seen.features)
    heads = _judged(seen, features.to(device_of(model)), others, (folds, seed), progress, processes)
    mistakes = crossed_mistakes(heads, seen.labels, folds=folds, seed=seed)
    ranking = rank(seen, heads, mistakes, with_network=not others)
    return Suspects(
        _listed(seen, features, ranking), len(seen.ids), round(ranking.share, 6), seen.accuracy,
        _remarks(seen, folds, len(others)),
    )  # fmt: skip


def _checked(folds: int, second: Opinions) -> tuple[SecondOpinion, ...]:
    """Return opinions as a sequence; InputError for one fold, or a network that has learned the labels."""
    if folds < 2:
        raise InputError(f"folds is {folds}; expected at least 2: a head is judged on images it has not seen")
    others = several(second)
    if any(not opinion.new_head for opinion in others):
        raise InputError(
            "a second opinion about training labels has no new head: a network that was trained on these "
            "labels repeats them. Give networks that were trained on other images, with new_head=True"
        )
    return others


def _judged(
    seen: Seen,
    features: Float[Tensor, "image feature"],
    others: Sequence[SecondOpinion],
    division: tuple[int, int],
    progress: Progress,
    processes: Processes,
) -> Float[np.ndarray, "image category"]:
    """Return the log-probabilities of heads on the network's features, or their mean with those of others.

    `division` are the number of folds and their seed. The heads of a network that has learned too little are
    left out of a mean.
    """
    folds, seed = division
    heads = crossed_log_probabilities(
        features, seen.labels, len(seen.names),
        folds=folds, seed=seed, device=features.device, progress=progress,
    )  # fmt: skip
    if not others:
        return heads
    ids, labels = torch.from_numpy(seen.ids), torch.from_numpy(seen.numbers[seen.labels])
    said = [np.exp(heads)] if seen.accuracy >= LEARNED else []
    for opinion in others:
        judged = by_new_heads(
            replace(opinion, training=None), ids, labels, seen.categories,
            folds=folds, seed=seed, progress=progress, processes=processes,
        )  # fmt: skip
        said.append(np.exp(judged[:, seen.numbers]))
    together = log_of_mean(said)
    return np.where(np.isnan(together), heads, together)


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
    *,
    with_network: bool = True,
) -> Ranking:
    """Rank the images by what the network and the heads say about their labels.

    Args:
        seen: What the network says.
        heads: The log-probabilities by the heads, each for images that it was not fitted on.
        mistakes: How probable each label is as a wrong label of every category (see `crossed_mistakes`).
        with_network: Whether images are ranked by the mean of the network's log-probabilities and those by
            the heads, or by the heads alone.

    Returns:
        The ranking.
    """
    doubts = label_doubts(heads, seen.labels, mistaken=mistakes)
    judged = (log_softmax(seen.logits, axis=1) + heads) / 2 if with_network else heads
    margin, proposed = margins(judged, seen.labels)
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


def _remarks(seen: Seen, folds: int, others: int) -> tuple[str, ...]:
    """Say what was left out, and what the network cannot tell where there are no others."""
    remarks = []
    if seen.few:
        named = ", ".join(seen.few[:4]) + (f" and {len(seen.few) - 4} more" if len(seen.few) > 4 else "")
        remarks.append(f"Not looked at, with fewer than {folds} images each: {named}.")
    if seen.accuracy < LEARNED and not others:
        remarks.append(
            f"Labels were not judged: the network gives back only {seen.accuracy:.1f} % of them, and below "
            f"{LEARNED:g} % it has learned too little to tell which are wrong."
        )
    if seen.accuracy >= BY_HEART and not others:
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
