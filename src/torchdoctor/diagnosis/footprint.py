"""Compute how many bytes a diagnosis keeps, from its numbers of images, kernels and categories alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torchdoctor.diagnosis.record import AXES
from torchdoctor.diagnosis.result import QUANTILES

DOUBLE, SINGLE, WHOLE = 8, 4, 8  # bytes of a float64, a float32 and a whole number
TABLES = 3  # an image's rows of evidence, activation and level, each with a number for every kernel
INDEX = 130  # bytes for each image of a loader's table and of the plan of an epoch, with a name of 40 letters
MOMENTS = 3  # count, sum and sum of squares of an image's map (`evidence.survey`)


@dataclass(frozen=True)
class DiagnosisBytes:
    """What a diagnosis keeps, in bytes.

    Attributes:
        survey: Of all images: logits, ids, labels, and count, sum and sum of squares of each layer's map.
        sifting: What the choice of images takes beside the survey while it is made: the logits and their
            probabilities in float64.
        rows: Of the sifted images: a row for each layer, with three numbers for every kernel.
        statistics: Of the categories: the arrays of `diagnosis.safetensors`.
    """

    survey: int
    sifting: int
    rows: int
    statistics: int

    @property
    def most_in_memory(self) -> int:
        """The most that is held at once: while images are chosen, or when the rows are summarised."""
        return self.survey + max(self.sifting, self.rows + self.statistics)

    @property
    def on_disk(self) -> int:
        """The most on disk: what an interrupted run goes on with, and the result."""
        return self.survey + self.rows + self.statistics

    @property
    def gathered(self) -> int:
        """What several processes gather so that each has all of it: the survey and the rows."""
        return self.survey + self.rows


def diagnosis_bytes(images: int, sifted: int, kernels: Sequence[int], categories: int) -> DiagnosisBytes:
    """Count what a diagnosis keeps.

    Args:
        images: The number of training images.
        sifted: The number of images whose evidence is measured.
        kernels: The number of kernels of each layer.
        categories: The number of categories.

    Returns:
        The bytes, by what they are for.
    """
    return DiagnosisBytes(
        survey=images * survey_bytes(len(kernels), categories),
        sifting=2 * DOUBLE * images * categories,
        rows=sifted * sum(row_bytes(number) for number in kernels),
        statistics=sum(statistics_bytes(number, categories) for number in kernels)
        + WHOLE * categories * (1 + categories),
    )


def survey_bytes(layers: int, categories: int) -> int:
    """Count what is kept of an image when all images are predicted.

    Args:
        layers: The number of diagnosed layers.
        categories: The number of categories.

    Returns:
        Bytes of its logits, id and label, and of count, sum and sum of squares of each layer's map.
    """
    return SINGLE * categories + 2 * WHOLE + layers * MOMENTS * DOUBLE


def row_bytes(kernels: int) -> int:
    """Count an image's row at a layer (`ImageRows`).

    Args:
        kernels: The number of the layer's kernels.

    Returns:
        Bytes of its tables, of id and label, and of the share on the background.
    """
    return TABLES * kernels * DOUBLE + 2 * WHOLE + DOUBLE


def statistics_bytes(kernels: int, categories: int) -> int:
    """Count the statistics of a layer (`LayerDiagnosis`).

    Args:
        kernels: The number of the layer's kernels.
        categories: The number of categories.

    Returns:
        Bytes of all arrays that are saved.
    """
    sizes = {"kernel": kernels, "category": categories, "bound": 2, "quantile": len(QUANTILES)}
    total = 0
    for name, axes in AXES.items():
        size = 1 if name == "correlated" else DOUBLE
        for axis in axes:
            size *= sizes[axis]
        total += size
    return total
