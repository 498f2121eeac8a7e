"""Judge labels by the predictions of a second network as well."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.special import log_softmax
from torch import Tensor, nn

from torchdoctor.diagnosis.label_doubts import LabelDoubts, label_doubts
from torchdoctor.images.loaders import ImageSource, images_of
from torchdoctor.network.outputs import unwrap
from torchdoctor.network.prediction import predict_logits
from torchdoctor.processes import ALONE, Processes
from torchdoctor.types import InputError


@dataclass(frozen=True)
class SecondOpinion:
    """Another network for the same categories in the same order; a more accurate one judges labels better.

    Attributes:
        model: The network. It was not trained on the images whose errors are examined.
        images: These images, with the same ids and labels, prepared for this network.
    """

    model: nn.Module
    images: ImageSource


@dataclass(frozen=True)
class Doubts:
    """What one or two networks say about the labels of images.

    Attributes:
        labels: The estimates: `share` and `wrong` by both networks together, `temperature` and `log_odds` by
            the examined network alone.
        second: Natural log p(label) of each image by the second network, after scaling; NaN without one.
    """

    labels: LabelDoubts
    second: Float[np.ndarray, " image"]


def second_logits(
    second: SecondOpinion | None, ids: Int[Tensor, " image"], labels: Int[Tensor, " image"], categories: int,
    processes: Processes = ALONE,
) -> Float[np.ndarray, "image category"] | None:  # fmt: skip
    """Return the logits of the second network for images.

    Args:
        second: The network with the images prepared for it; None: there is no second network.
        ids: The ids of the images, in the order of the result.
        labels: Their labels.
        categories: The number of categories.
        processes: The processes that work together: each predicts a share of the batches.

    Returns:
        The logits of each image, in float64 and finite; None without a second network.

    Raises:
        InputError: The second network has other categories or was given other images.
    """
    if second is None:
        return None
    own_ids, own_labels, logits = predict_logits(
        unwrap(second.model), images_of(second.images), processes=processes
    )
    if logits.shape[1] != categories:
        raise InputError(
            f"the second opinion has {logits.shape[1]} logits, the examined network {categories}: give a "
            "network for the same categories"
        )
    place = {image: row for row, image in enumerate(own_ids.tolist())}
    rows = [place.get(image, -1) for image in ids.tolist()]
    if -1 in rows:
        raise InputError(
            f"the images of the second opinion lack {rows.count(-1)} of {len(rows)} images that are "
            "examined: give the same images, with the same ids"
        )
    differ = int((own_labels[rows] != labels).sum())
    if differ:
        raise InputError(
            f"{differ} of {len(rows)} images have another label among those of the second opinion: give the "
            "same images, and number the categories alike"
        )
    finite = torch.nan_to_num(logits[rows].double(), nan=0.0, posinf=1e6, neginf=-1e6)
    return finite.numpy()


def doubts_of(
    logits: Float[np.ndarray, "image category"],
    second: Float[np.ndarray, "image category"] | None,
    labels: Int[np.ndarray, " image"],
    believed: Bool[np.ndarray, " image"],
) -> Doubts:
    """Estimate which labels are wrong, by one network or by two.

    With two networks, the logarithms of their probabilities are added, each after scaling by its own
    temperature, and the share of wrong labels is estimated from the sums as from the logits of one network.

    Args:
        logits: The logits of the examined network.
        second: Those of the second network; None: there is none.
        labels: The labels of the images.
        believed: The images to estimate from (see `label_doubts`).

    Returns:
        The estimates.
    """
    own = label_doubts(logits, labels, believed)
    if second is None:
        return Doubts(own, np.full(len(labels), np.nan))
    other = label_doubts(second, labels, believed)
    said = log_softmax(second / other.temperature, axis=1)
    both = label_doubts(log_softmax(logits / own.temperature, axis=1) + said, labels, believed)
    return Doubts(
        replace(own, share=both.share, wrong=both.wrong), np.asarray(said[np.arange(len(labels)), labels])
    )
