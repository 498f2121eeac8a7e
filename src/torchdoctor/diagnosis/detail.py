"""Predict the same images with more pixels, to find errors that come from too little detail."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import binomtest
from torch import Tensor, nn

from torchdoctor.images.batches import Images
from torchdoctor.network.prediction import predict_logits
from torchdoctor.processes import ALONE, Processes
from torchdoctor.types import InputError

SURE = 1e-3  # largest p value at which images with more pixels are said to be classified better


def with_more_pixels(
    model: nn.Module,
    larger: Images,
    ids: Int[Tensor, " image"],
    right: Bool[np.ndarray, " image"],
    processes: Processes = ALONE,
) -> dict[str, Float[np.ndarray, " image"]] | None:
    """Predict the same images with more pixels.

    Args:
        model: The network; it is left as it was.
        larger: The images with more pixels, with the same ids in any order.
        ids: The ids of the images.
        right: Which of them are classified correctly as they are.
        processes: The processes that work together: each predicts a share of the batches.

    Returns:
        Numbers of each image. `right_if_larger`: 1 where it is classified correctly with more pixels, else 0.
        `repaired_if_larger_beyond_chance`, the same for all: the share of the repaired errors that is beyond
        chance, (repaired - broken) / repaired, 0 where the difference could be chance. None for a network
        that takes no larger images.

    Raises:
        InputError: `larger` holds other ids.
    """
    try:
        found, labels, logits = predict_logits(model, larger, processes=processes)
    except (RuntimeError, ValueError, AssertionError, TypeError, IndexError):
        return None
    if not torch.equal(found.sort().values, ids.sort().values):
        raise InputError("`larger` holds other images than `images`: give the same ids")
    by_id = dict(zip(found.tolist(), (logits.argmax(1) == labels).tolist(), strict=True))
    right_larger = np.array([by_id[image] for image in ids.tolist()])
    repaired, broken = int((right_larger & ~right).sum()), int((right & ~right_larger).sum())
    beyond = 0.0
    if repaired > broken and binomtest(repaired, repaired + broken).pvalue <= SURE:
        beyond = (repaired - broken) / repaired
    return {
        "right_if_larger": right_larger.astype(float),
        "repaired_if_larger_beyond_chance": np.full(len(right), beyond),
    }
