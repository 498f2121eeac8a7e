"""The result of a diagnosis: which images were sifted, and what Eq. 2-4 say about each layer."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from torchdoctor.diagnosis.record import AXES, DiagnosisRecord, array_of, layer_arrays
from torchdoctor.diagnosis.sifting import Sifting
from torchdoctor.diagnosis.sparsity import sparsity
from torchdoctor.display.cards import Card, listed
from torchdoctor.display.counts import count_of
from torchdoctor.display.curves import sparsity_by_layer
from torchdoctor.display.matrices import confusion_matrix, correlation_heat_map
from torchdoctor.files.reading import read_record, read_tensors
from torchdoctor.files.writing import write_json, write_weights
from torchdoctor.types import Evidence, InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
FILE = "diagnosis"


@dataclass(frozen=True)
class LayerDiagnosis:
    """The evidence of each category on each kernel of a layer (Eq. 2-4).

    Rows of categories that were not diagnosed are 0; `agreement` and `background_share` are NaN there.

    Attributes:
        name: The name of the layer.
        correlation: The mean evidence over the images of a category.
        variance: The variance of the evidence over these images.
        interval: The lower and upper bound of the 95 % confidence interval of `correlation`.
        quantiles: The quantiles 5, 25, 50, 75 and 95 % of the evidence over the images.
        activation: The mean absolute value of the map.
        level: The mean of the map over all diagnosed categories; a silenced kernel is set to it.
        correlated: Whether the kernel is correlated with the category (see `correlated_kernels`).
        agreement: The same quantiles of the cosine between an image's evidence and the mean of its category's
            other images.
        background_share: The share of the evidence that lies on the background, 0..1; NaN without masks.
        drift: How far the kernel's mean and variance over the images are from the running statistics of the
            batch-norm behind it, in its standard deviations; NaN without a batch-norm. Large where something
            has changed since training.
        delta: Half the range of the noise that was added to the map, in units of the map.
        standard_deviation: The standard deviation of the map.
        path: How the evidence was computed, in words.
        flags: What is unusual about the layer, in words.
    """

    name: str
    correlation: Float[np.ndarray, "category kernel"]
    variance: Float[np.ndarray, "category kernel"]
    interval: Float[np.ndarray, "bound category kernel"]
    quantiles: Float[np.ndarray, "quantile category kernel"]
    activation: Float[np.ndarray, "category kernel"]
    level: Float[np.ndarray, " kernel"]
    correlated: Bool[np.ndarray, "category kernel"]
    agreement: Float[np.ndarray, "quantile category"]
    background_share: Float[np.ndarray, " category"]
    drift: Float[np.ndarray, " kernel"]
    delta: float
    standard_deviation: float
    path: str
    flags: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """Return a single line without the arrays."""
        categories, kernels = self.correlation.shape
        flags = f", flags: {listed(self.flags)}" if self.flags else ""
        return (
            f"LayerDiagnosis({self.name!r}: {count_of(kernels, 'kernel')}, "
            f"{count_of(categories, 'category', 'categories')}, "
            f"{count_of(self.correlated_kernels, 'kernel')} correlated with a category{flags})"
        )

    @property
    def correlated_kernels(self) -> int:
        """The number of kernels that are correlated with any category."""
        return int(self.correlated.any(0).sum())


@dataclass(frozen=True)
class Diagnosis:
    """The result of `diagnose`: the evidence at each layer, and the errors on the training images.

    Attributes:
        classes: The names of the categories.
        layers: The statistics of each diagnosed layer, from the first to the last in the network.
        sifting: The images that were diagnosed, and those to annotate.
        counts: The number of diagnosed images of each category; 0: the category was not diagnosed.
        confusion: The number of images of each category (row) by predicted category (column).
        evidence: The formula of the evidence.
        draws: The number of noise draws of each image, or `exact`: the limit of many draws.
        theta: The threshold of relative evidence above which a kernel is correlated with a category.
        seed: The seed of the noise.
        model_sha256: The sha256 of the network's parameters and buffers (see `state_sha256`).
    """

    classes: tuple[str, ...]
    layers: tuple[LayerDiagnosis, ...]
    sifting: Sifting
    counts: Int[np.ndarray, " category"]
    confusion: Int[np.ndarray, "category category"]
    evidence: Evidence
    draws: int | Literal["exact"]
    theta: float
    seed: int
    model_sha256: str

    def layer(self, name: str) -> LayerDiagnosis:
        """Return the diagnosis of a layer.

        Args:
            name: The name of the layer.

        Returns:
            Its statistics.

        Raises:
            KeyError: The layer was not diagnosed; the text lists those that were.
        """
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(
            f"{name!r} was not diagnosed; diagnosed: {', '.join(known.name for known in self.layers)}"
        )

    @property
    def accuracy(self) -> Float[np.ndarray, " category"]:
        """Per-category accuracy over the diagnosed images, in percent; NaN for a category without images."""
        totals = self.confusion.sum(axis=1)
        with np.errstate(invalid="ignore"):
            return np.where(totals > 0, 100.0 * np.diag(self.confusion) / np.maximum(totals, 1), np.nan)

    @property
    def not_diagnosed(self) -> tuple[str, ...]:
        """Names of the categories without a single confident correct image."""
        return tuple(
            name for name, count in zip(self.classes, self.counts.tolist(), strict=True) if count == 0
        )

    @property
    def inconclusive(self) -> bool:
        """Whether more than half of the categories could not be diagnosed."""
        return 2 * len(self.not_diagnosed) > len(self.classes)

    def __repr__(self) -> str:
        """Return a few lines: accuracy, lowest categories, and each layer's correlated kernels."""
        return self._card().text()

    def _repr_html_(self) -> str:
        """Return the same as an HTML table, which notebooks show."""
        return self._card().html()

    def _card(self) -> Card:
        """Summarise the diagnosis."""
        images = int(self.confusion.sum())
        overall = 100.0 * np.trace(self.confusion) / max(images, 1)
        order = np.argsort(np.nan_to_num(self.accuracy, nan=101.0), kind="stable")[:3]
        lowest = [f"{self.classes[category]} {self.accuracy[category]:.1f} %" for category in order]
        lines = [
            f"accuracy {overall:.1f} % on {count_of(images, 'training image')}; lowest: {listed(lowest)}"
        ]
        if self.not_diagnosed:
            lines.append(f"not diagnosed: {listed(self.not_diagnosed)}")
        rows = tuple(
            (layer.name, str(layer.correlated.shape[1]), str(layer.correlated_kernels),
             listed(layer.flags, 2) or "-")
            for layer in self.layers
        )  # fmt: skip
        layers = count_of(len(self.layers), "layer")
        return Card(
            f"Diagnosis of {len(self.classes)} categories at {layers} ({self.evidence}, draws: {self.draws}, "
            f"theta {self.theta:g}, seed {self.seed})",
            tuple(lines),
            ("layer", "kernels", "correlated", "flags"),
            rows,
        )

    def least_accurate(self, most: int) -> Diagnosis:
        """Return the diagnosis of the least accurate categories only.

        Args:
            most: The greatest number of categories to keep.

        Returns:
            A diagnosis with these categories in their order; itself where there are no more.
        """
        if len(self.classes) <= most:
            return self
        order = np.argsort(np.nan_to_num(self.accuracy, nan=101.0), kind="stable")
        chosen = np.sort(order[:most])
        layers = []
        for layer in self.layers:
            arrays: dict[str, Any] = {
                name: np.take(getattr(layer, name), chosen, axis=axes.index("category"))
                for name, axes in AXES.items()
                if "category" in axes
            }
            layers.append(replace(layer, **arrays))
        return replace(
            self,
            classes=tuple(self.classes[category] for category in chosen),
            layers=tuple(layers),
            counts=self.counts[chosen],
            confusion=self.confusion[np.ix_(chosen, chosen)],
        )

    def correlation_figure(self, layer: str | None = None, *, most_kernels: int = 128) -> Figure:
        """Draw how strongly each category relies on each kernel of a layer (Fig. 2a).

        Args:
            layer: The name of the layer; by default the last.
            most_kernels: The greatest number of kernels to draw: those with the highest maximum.

        Returns:
            A matplotlib figure: a row for each category, a column for each kernel, a dot where they are
            correlated. Beyond 100 categories rows have neither names nor dots; `least_accurate(100)` has.

        Raises:
            InputError: Where no such layer was diagnosed.
        """
        try:
            chosen = self.layers[-1] if layer is None else self.layer(layer)
        except (IndexError, KeyError) as error:
            raise InputError(str(error.args[0])) from error
        return correlation_heat_map(
            chosen.correlation,
            chosen.correlated,
            self.counts > 0,
            self.classes,
            layer=chosen.name,
            theta=self.theta,
            most_kernels=most_kernels,
        )

    def confusion_figure(self) -> Figure:
        """Draw the confusion matrix, as shares of each category's images.

        Returns:
            A matplotlib figure: a row for each category, a column for each predicted category; beyond
            100 categories without names.
        """
        return confusion_matrix(self.confusion, self.classes)

    def sparsity_figure(self) -> Figure:
        """Draw the share of each layer's kernels that carries 90 % of the evidence for a category.

        Returns:
            A matplotlib figure: a column for each layer, a dot for each category, a line at the median.
        """
        diagnosed = self.counts > 0
        return sparsity_by_layer(
            {layer.name: sparsity(layer.correlation)[diagnosed] for layer in self.layers}
        )

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write `diagnosis.safetensors` (the arrays) and `diagnosis.json` (everything else).

        Args:
            folder: Where to write them; made where it is missing.

        Raises:
            ModelDoctorError: Where a file cannot be written.
        """
        tensors = {
            "counts": torch.from_numpy(np.ascontiguousarray(self.counts)),
            "confusion": torch.from_numpy(np.ascontiguousarray(self.confusion)),
        }
        layers = []
        for number, layer in enumerate(self.layers):
            for name in AXES:
                array = np.ascontiguousarray(getattr(layer, name))
                tensors[f"{number}.{name}"] = torch.from_numpy(array)
            layers.append(
                {
                    "name": layer.name,
                    "delta": layer.delta,
                    "standard_deviation": layer.standard_deviation,
                    "path": layer.path,
                    "flags": layer.flags,
                    "correlated_kernels": layer.correlated.sum(1),
                    "background_share": layer.background_share,
                }
            )
        write_weights(Path(folder) / f"{FILE}.safetensors", tensors)
        record = {
            "classes": self.classes,
            "layers": layers,
            "counts": self.counts,
            "accuracy": self.accuracy,
            "not_diagnosed": self.not_diagnosed,
            "evidence": self.evidence,
            "draws": self.draws,
            "theta": self.theta,
            "seed": self.seed,
            "model_sha256": self.model_sha256,
            "sifting": asdict(self.sifting),
        }
        write_json(Path(folder) / f"{FILE}.json", record)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Diagnosis:
        """Read a diagnosis back that `save` or a run wrote.

        Args:
            folder: The folder with the two files, such as `RUN/diagnosis`.

        Returns:
            The diagnosis, equal to what was saved to the last bit.

        Raises:
            InputError: Where a file is missing, damaged, of another kind, or does not fit the other.
        """
        record = read_record(Path(folder) / f"{FILE}.json", DiagnosisRecord)
        file = Path(folder) / f"{FILE}.safetensors"
        arrays = {name: tensor.numpy() for name, tensor in read_tensors(file).items()}
        layers = tuple(
            LayerDiagnosis(**layer.model_dump(), **layer_arrays(arrays, number, file))
            for number, layer in enumerate(record.layers)
        )
        saved = record.model_dump(exclude={"layers", "sifting"})
        counts, confusion = array_of(arrays, "counts", file), array_of(arrays, "confusion", file)
        if counts.shape != (len(record.classes),) or confusion.shape != counts.shape * 2:
            raise InputError(
                f"{str(file)!r} is of {counts.size} categories; {FILE}.json names {len(record.classes)}"
            )
        sifting = Sifting(**record.sifting.model_dump())
        return cls(**saved, layers=layers, sifting=sifting, counts=counts, confusion=confusion)
