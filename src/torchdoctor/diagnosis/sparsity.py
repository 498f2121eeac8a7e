"""Measure how few kernels carry most of the evidence for a category."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def sparsity(
    correlation: Float[np.ndarray, "category kernel"], evidence_share: float = 0.9
) -> Float[np.ndarray, " category"]:
    """Return the least share of a layer's kernels that carries most of a category's evidence.

    Args:
        correlation: The mean evidence of each category for each kernel.
        evidence_share: How much of a category's evidence the kernels must carry together, 0..1.

    Returns:
        The share of the kernels for each category, 0..1; small where few kernels carry its evidence. NaN for
        a category without evidence.
    """
    falling = -np.sort(-correlation, axis=1)
    total = falling.sum(1, keepdims=True)
    reached = np.cumsum(falling, axis=1) >= evidence_share * total * (1 - 1e-12)
    needed = reached.argmax(1) + 1.0
    return np.where(total[:, 0] > 0, needed / correlation.shape[1], np.nan)
