"""What is read back of the two files of a diagnosis, and whether its arrays fit each other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from torchdoctor.files.reading import Number, Record
from torchdoctor.types import Evidence, InputError

AXES = {
    "correlation": ("category", "kernel"),
    "variance": ("category", "kernel"),
    "interval": ("bound", "category", "kernel"),
    "quantiles": ("quantile", "category", "kernel"),
    "activation": ("category", "kernel"),
    "level": ("kernel",),
    "correlated": ("category", "kernel"),
    "agreement": ("quantile", "category"),
    "background_share": ("category",),
    "drift": ("kernel",),
}  # the arrays of a layer, in `diagnosis.safetensors` named after the layer's number: `0.correlation`


class SiftingRecord(Record):
    """The selected images in `diagnosis.json`: the fields of a `Sifting`."""

    high: tuple[tuple[int, ...], ...]
    low: tuple[tuple[int, ...], ...]
    confidence: Number
    images_per_category: int


class LayerRecord(Record):
    """A layer in `diagnosis.json`: those fields of a `LayerDiagnosis` that are no arrays."""

    name: str
    delta: Number
    standard_deviation: Number
    path: str
    flags: tuple[str, ...]


class DiagnosisRecord(Record):
    """What `diagnosis.json` holds: those fields of a `Diagnosis` that are no arrays."""

    classes: tuple[str, ...]
    layers: tuple[LayerRecord, ...]
    evidence: Evidence
    draws: int | Literal["exact"]
    theta: Number
    seed: int
    model_sha256: str
    sifting: SiftingRecord


def layer_arrays(arrays: Mapping[str, np.ndarray], number: int, file: Path) -> dict[str, Any]:
    """Take the arrays of a layer out of those of `diagnosis.safetensors`.

    Args:
        arrays: All arrays of the file.
        number: The place of the layer in `diagnosis.json`.
        file: The file's path, for errors.

    Returns:
        The arrays under the names of the fields of a `LayerDiagnosis`.

    Raises:
        InputError: Where an array is missing or its shape does not fit the others.
    """
    sizes = {"category": len(array_of(arrays, "counts", file))}
    chosen: dict[str, Any] = {}
    for name, axes in AXES.items():
        array = array_of(arrays, f"{number}.{name}", file)
        known = tuple(sizes.get(axis) for axis in axes)
        if array.ndim != len(axes) or any(
            size not in (None, length) for size, length in zip(known, array.shape, strict=True)
        ):
            expected = " x ".join(
                axis if size is None else f"{size} {axis}" for axis, size in zip(axes, known, strict=True)
            )
            raise InputError(
                f"{str(file)!r}: array {number}.{name} has shape {list(array.shape)}, expected {expected}"
            )
        sizes.update(zip(axes, array.shape, strict=True))
        chosen[name] = array
    return chosen


def array_of(arrays: Mapping[str, np.ndarray], name: str, file: Path) -> np.ndarray:
    """Return an array of a file.

    Args:
        arrays: All arrays of the file.
        name: The name of the array.
        file: The file's path, for the error.

    Returns:
        The array.

    Raises:
        InputError: Where the file has no array of this name.
    """
    if name not in arrays:
        raise InputError(f"{str(file)!r} has no array {name!r}, which {file.stem}.json tells of")
    return arrays[name]
