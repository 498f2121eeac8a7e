"""Per-image sums of evidence, which merge in any order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True)
class ImageRows:
    """What some images say at one layer: all that is kept of them, so that memory grows with kernels alone.

    `evidence` is summed over space and averaged over the draws; `activation` is the mean absolute map,
    `level` its mean; `background` is the share of the evidence outside the object, NaN without a mask.
    """

    ids: Int[np.ndarray, " image"]
    labels: Int[np.ndarray, " image"]
    evidence: Float[np.ndarray, "image kernel"]
    activation: Float[np.ndarray, "image kernel"]
    level: Float[np.ndarray, "image kernel"]
    background: Float[np.ndarray, " image"]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.ids)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays by name, as they are kept on disk."""
        return {one.name: getattr(self, one.name) for one in fields(self)}

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> ImageRows:
        """Return the rows with these arrays."""
        return cls(**{one.name: arrays[one.name] for one in fields(cls)})

    @classmethod
    def none(cls, kernels: int) -> ImageRows:
        """Return the rows of no image."""
        table, column = np.zeros((0, kernels)), np.zeros(0, dtype=np.int64)
        return cls(column, column, table, table, table, np.zeros(0))


def merge(parts: Iterable[ImageRows]) -> ImageRows:
    """Put rows of different images together, by rising id: how they were divided changes no bit."""
    kept = list(parts)
    joined = {name: np.concatenate([one.arrays()[name] for one in kept]) for name in kept[0].arrays()}
    order = np.argsort(joined["ids"], kind="stable")
    return ImageRows.of({name: values[order] for name, values in joined.items()})
