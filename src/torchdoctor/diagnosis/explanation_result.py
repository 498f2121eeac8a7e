"""The result of `explain`: which kernels a prediction depends on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float

from torchdoctor.display.cards import Card, listed
from torchdoctor.display.overlays import explanation_panels
from torchdoctor.files.reading import Number, Record, read_record, read_tensors
from torchdoctor.files.writing import write_json, write_weights
from torchdoctor.types import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILE = "explanation"


@dataclass(frozen=True)
class StandingOut:
    """A kernel whose evidence for the prediction is more than usual for the predicted category.

    Attributes:
        layer: The name of the layer.
        kernel: The number of the kernel.
        evidence: The evidence for the predicted category, summed over the map.
        usual: The mean evidence over the images of that category; None without a diagnosis.
        deviations: How many standard deviations of these images `evidence` is above `usual`; None likewise.
        times_mean: The evidence, divided by the mean of the layer's kernels in this image.
        owners: The categories that the kernel is correlated with, those with the most evidence first.
    """

    layer: str
    kernel: int
    evidence: float
    usual: float | None
    deviations: float | None
    times_mean: float
    owners: tuple[str, ...]

    @property
    def prominence(self) -> float:
        """The number that kernels of all layers are ranked by: `deviations`, else `times_mean`."""
        return self.times_mean if self.deviations is None else self.deviations

    def __repr__(self) -> str:
        """Return a single line; of many owners the first few."""
        owners = f", correlated with {listed(self.owners)}" if self.owners else ""
        return (
            f"StandingOut({self.layer}[{self.kernel}]: evidence {self.evidence:.3g}, "
            f"{self.times_mean:.1f} times the layer's mean{owners})"
        )


@dataclass(frozen=True)
class CausalCheck:
    """What happens when the kernels that stand out are silenced, compared with random sets of kernels.

    Attributes:
        prediction: The predicted category without the kernels.
        confidence: Its probability, in 0..1.
        drop: By how much the lead of the first prediction over the next category falls, in logits.
        random_drop: The largest drop that any of the 19 random sets caused.
        agrees: Whether the prediction changes and `drop` is larger than `random_drop`.
    """

    prediction: str
    confidence: float
    drop: float
    random_drop: float
    agrees: bool


@dataclass(frozen=True)
class Explanation:
    """What a prediction depends on. Confidences and shares are in 0..1.

    Attributes:
        label: The true category; None where it is unknown.
        prediction: The predicted category.
        runner_up: The category with the next highest probability.
        confidence: The probability of the prediction.
        runner_up_confidence: The probability of the runner-up.
        label_confidence: The probability of the label; None where it is unknown.
        kernels: The kernels that stand out, the most prominent first.
        check: What happens when they are silenced; None without any.
        alike: For each layer the cosine between the evidence and the category's mean, and the 5 % and 95 %
            quantiles of that cosine over the category's images.
        layer: The name of the layer of `summed_map`.
        summed_map: The sum of its evidence over kernels, resized to the image (Fig. 2b).
        background_share: The share of its evidence that lies on the background; None without a mask.
        usual_background_share: The mean share over the category's images; None where it is unknown.
        compared: Whether there was a diagnosis to compare the image with.
    """

    label: str | None
    prediction: str
    runner_up: str
    confidence: float
    runner_up_confidence: float
    label_confidence: float | None
    kernels: tuple[StandingOut, ...]
    check: CausalCheck | None
    alike: Mapping[str, tuple[float, float, float]]
    layer: str
    summed_map: Float[np.ndarray, "height width"]
    background_share: float | None
    usual_background_share: float | None
    compared: bool = True

    @property
    def sentences(self) -> tuple[str, ...]:
        """The explanation in words, with "because" only where the causal check agrees."""
        said = [
            f"Predicted {self.prediction} ({100 * self.confidence:.0f} %), then {self.runner_up} "
            f"({100 * self.runner_up_confidence:.0f} %)."
        ]
        if self.label is not None and self.label != self.prediction:
            said.append(f"The label is {self.label} ({100 * (self.label_confidence or 0):.0f} %).")
        names = ", ".join(f"{kernel.layer}[{kernel.kernel}]" for kernel in self.kernels)
        them = "it" if len(self.kernels) == 1 else "them"
        if self.check is None:
            said.append("No kernel's evidence is unusual for this category.")
        elif self.check.agrees:
            said.append(
                f"It is predicted because of {names}: with {them} silenced the prediction is "
                f"{self.check.prediction}, which no random set of kernels achieved as clearly."
            )
        else:
            after = (
                f"the prediction stays {self.prediction}"
                if self.check.prediction == self.prediction
                else f"the prediction becomes {self.check.prediction}, but random kernels matter as much"
            )
            if len(self.kernels) == 1:
                what = "stands out" if self.compared else "holds the most evidence in its layer"
                said.append(f"{names} {what}, but it does not decide: with it silenced {after}.")
            else:
                what = "stand out" if self.compared else "hold the most evidence in their layers"
                said.append(f"{names} {what}, but they do not decide: with them silenced {after}.")
        if self.background_share is not None:
            usual = self.usual_background_share
            beside = f", {100 * usual:.0f} % in this category" if usual is not None else ""
            said.append(
                f"{100 * self.background_share:.0f} % of the evidence lies on the background{beside}."
            )
        if not self.compared:
            said.append(
                "Without a diagnosis nothing is known of what is usual: name a run with --diagnosis RUN."
            )
        return tuple(said)

    def __repr__(self) -> str:
        """Return a few lines: the sentences, and the kernels that stand out."""
        return self._card().text()

    def _repr_html_(self) -> str:
        """Return the same as an HTML table, which notebooks show."""
        return self._card().html()

    def _card(self) -> Card:
        """Summarise the explanation."""
        rows = tuple(
            (
                f"{kernel.layer}[{kernel.kernel}]",
                f"{kernel.evidence:.3g}",
                "-" if kernel.usual is None else f"{kernel.usual:.3g}",
                "-" if kernel.deviations is None else f"{kernel.deviations:.1f}",
                listed(kernel.owners) or "-",
            )
            for kernel in self.kernels
        )
        title, *lines = self.sentences
        return Card(
            f"Explanation: {title}",
            tuple(lines),
            ("kernel", "evidence", "usual", "deviations", "correlated with"),
            rows,
        )

    def figure(
        self,
        image: np.ndarray,
        mask: Bool[np.ndarray, "height width"] | None = None,
        cam: Float[np.ndarray, "height width"] | None = None,
    ) -> Figure:
        """Draw the image, the evidence laid over it (Fig. 2b), and the kernels that stand out.

        Args:
            image: The image as [height, width, 3] in 0..1, of the size that the network was given.
            mask: True on the object, which gets an outline.
            cam: A Grad-CAM map for a panel of its own.

        Returns:
            A matplotlib figure.

        Raises:
            InputError: Where the image has another shape than the explanation's map.
        """
        expected = (*self.summed_map.shape, 3)
        if np.shape(image) != expected:
            raise InputError(
                f"image has shape {list(np.shape(image))}, expected {list(expected)}: the image that was "
                "explained, its colours last"
            )
        kernels = [
            (f"{kernel.layer}[{kernel.kernel}]", kernel.evidence, kernel.usual) for kernel in self.kernels
        ]
        return explanation_panels(
            image, self.summed_map, kernels, layer=self.layer, caption=self._caption(), mask=mask, cam=cam
        )

    def _caption(self) -> str:
        """Say the prediction and what the causal check showed, in a single line."""
        said = [self.sentences[0]]
        if self.label not in (None, self.prediction):
            said.append(f"Label: {self.label}.")
        if self.check is not None:
            after = self.check.prediction
            same = f"stays {after}" if after == self.prediction else f"becomes {after}"
            one = len(self.kernels) == 1
            which, they, do = ("this kernel", "it", "does") if one else ("these kernels", "they", "do")
            decide = "decides" if one else "decide"
            verdict = f"{they} {decide}" if self.check.agrees else f"{they} {do} not decide"
            said.append(f"With {which} silenced it {same}: {verdict}.")
        return " ".join(said)

    def record(self) -> dict[str, Any]:
        """Return what JSON says about the explanation: everything but the map, and the sentences.

        Returns:
            The fields by name, `alike` with its three numbers named, `because` (whether the causal check
            agrees) and `sentences`.
        """
        record: dict[str, Any] = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name not in ("summed_map", "alike")
        }
        record["kernels"] = tuple(asdict(kernel) for kernel in self.kernels)
        record["check"] = None if self.check is None else asdict(self.check)
        record["alike"] = {
            layer: dict(zip(("cosine", "usual_from", "usual_to"), numbers, strict=True))
            for layer, numbers in self.alike.items()
        }
        because = self.check is not None and self.check.agrees
        return {**record, "because": because, "sentences": self.sentences}

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write `explanation.json` (an entry of `explain.json`) and `explanation.safetensors` (the map).

        Args:
            folder: Where to write them; made where it is missing.

        Raises:
            ModelDoctorError: Where a file cannot be written.
        """
        tensor = torch.from_numpy(np.ascontiguousarray(self.summed_map))
        write_weights(Path(folder) / f"{FILE}.safetensors", {"summed_map": tensor})
        write_json(Path(folder) / f"{FILE}.json", self.record())

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Explanation:
        """Read an explanation back that `save` wrote.

        Args:
            folder: The folder with the two files.

        Returns:
            The explanation.

        Raises:
            InputError: Where a file is missing, damaged or of another kind.
        """
        record = read_record(Path(folder) / f"{FILE}.json", ExplanationRecord)
        file = Path(folder) / f"{FILE}.safetensors"
        tensors = read_tensors(file)
        if "summed_map" not in tensors or tensors["summed_map"].ndim != 2:
            raise InputError(f"{str(file)!r} holds {sorted(tensors)}; expected a single matrix, summed_map")
        saved = record.model_dump(exclude={"kernels", "check", "alike"})
        return cls(
            **saved,
            kernels=tuple(StandingOut(**kernel.model_dump()) for kernel in record.kernels),
            check=None if record.check is None else CausalCheck(**record.check.model_dump()),
            alike={
                layer: (numbers.cosine, numbers.usual_from, numbers.usual_to)
                for layer, numbers in record.alike.items()
            },
            summed_map=tensors["summed_map"].numpy(),
        )


class KernelRecord(Record):
    """A kernel that stands out, in `explanation.json`: the fields of a `StandingOut`."""

    layer: str
    kernel: int
    evidence: Number
    usual: float | None
    deviations: float | None
    times_mean: Number
    owners: tuple[str, ...]


class CheckRecord(Record):
    """The causal check in `explanation.json`: the fields of a `CausalCheck`."""

    prediction: str
    confidence: Number
    drop: Number
    random_drop: Number
    agrees: bool


class AlikeRecord(Record):
    """The three numbers of `Explanation.alike` in `explanation.json`."""

    cosine: Number
    usual_from: Number
    usual_to: Number


class ExplanationRecord(Record):
    """What `explanation.json` holds: the fields of an `Explanation` without its summed map."""

    label: str | None
    prediction: str
    runner_up: str
    confidence: Number
    runner_up_confidence: Number
    label_confidence: float | None
    kernels: tuple[KernelRecord, ...]
    check: CheckRecord | None
    alike: dict[str, AlikeRecord]
    layer: str
    background_share: float | None
    usual_background_share: float | None
    compared: bool
