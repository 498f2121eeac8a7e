"""Per-image sums of evidence, which merge in any order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True)
class ImageRows:
    """What is stored of images at a layer: a row of sums each, so that memory grows with kernels alone.

    Attributes:
        ids: The images' ids.
        labels: The number of each image's label.
        evidence: By kernel, the evidence summed over space and averaged over the draws (the inside of Eq. 4).
        activation: By kernel, the mean absolute value of the map.
        level: By kernel, the mean value of the map.
        background: The share of the evidence outside the object, 0 to 1; NaN without a mask.
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
        """Return the arrays by name, as they are stored on disk.

        Returns:
            One array for each attribute.
        """
        return {column.name: getattr(self, column.name) for column in fields(self)}

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> ImageRows:
        """Return the rows with these arrays.

        Args:
            arrays: One array for each attribute, by its name.

        Returns:
            The rows.
        """
        return cls(**{column.name: arrays[column.name] for column in fields(cls)})

    @classmethod
    def none(cls, kernels: int) -> ImageRows:
        """Return the rows of no image.

        Args:
            kernels: The number of the layer's kernels.

        Returns:
            Rows of length 0.
        """
        table, column = np.zeros((0, kernels)), np.zeros(0, dtype=np.int64)
        return cls(column, column, table, table, table, np.zeros(0))


def merge(parts: Iterable[ImageRows]) -> ImageRows:
    """Put rows of different images together: how they were divided changes no bit.

    Args:
        parts: Rows of different images at the same layer; at least one.

    Returns:
        All rows, by rising id.
    """
    all_parts = [part.arrays() for part in parts]
    joined = {name: np.concatenate([part[name] for part in all_parts]) for name in all_parts[0]}
    order = np.argsort(joined["ids"], kind="stable")
    return ImageRows.of({name: values[order] for name, values in joined.items()})
