"""Accumulate how strongly every category depends on every kernel (Eq. 2-4), and where its evidence lies."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int
from torch import nn

from torchdoctor.diagnosis.result import Diagnosis, LayerDiagnosis
from torchdoctor.diagnosis.settings import EVIDENCE_ALONE, DiagnosisSettings
from torchdoctor.diagnosis.sifting import Sifting, sift
from torchdoctor.diagnosis.statistics import summarise
from torchdoctor.evidence.measurement import Parts, first_images, measure, tensor_bytes
from torchdoctor.evidence.probes import Draws
from torchdoctor.evidence.survey import Survey
from torchdoctor.images.batches import Images
from torchdoctor.images.loaders import ImageSource, images_of
from torchdoctor.network.layers import chosen_layers, refuse_text
from torchdoctor.network.norms import norms_behind
from torchdoctor.network.outputs import unwrap
from torchdoctor.network.prediction import predict_logits
from torchdoctor.network.taps import map_shapes
from torchdoctor.processes import ALONE, Processes
from torchdoctor.types import Evidence, InputError, Progress, silent

DEFAULTS = DiagnosisSettings()


def diagnose(
    model: nn.Module,
    images: ImageSource,
    *,
    layers: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    evidence: Evidence | None = None,
    draws: Draws | None = None,
    confidence: float | None = None,
    seed: int = 0,
    settings: DiagnosisSettings = DEFAULTS,
    parts: Parts | None = None,
    progress: Progress = silent,
    processes: Processes = ALONE,
) -> Diagnosis:
    """Diagnose a trained classifier on its training images; the network is left as it was.

    For every category c and kernel k (Eq. 4 of the paper): the mean a over the sifted images (correct with
    high confidence) and the noise draws of the sum over space of abs(d y_c / d(m_k + sigma)), with y_c the
    logit, m_k the kernel's map, and sigma uniform in [-delta, delta], 0 without draws (Eq. 3). A kernel is
    correlated with c where (a - min) / (max - min) >= theta, with min and max over the layer's kernels.

    Args:
        model: A network that returns logits [batch, category].
        images: Its training images, normalised: a `DataLoader`, a `Dataset`, or a list of `Batch`.
        layers: Names, patterns (`layer3.*`), `all` or `last:3`; None as in `settings`.
        classes: The names of the categories; None: those of `images`, else numbers.
        evidence: `gradient` or `gradient_x_activation`; None as in `settings`.
        draws: Noise draws of each image: 0, a number, or `exact`, their limit; None as in `settings`.
        confidence: The probability (0..1) above which a correct image is used; None as in `settings`.
        seed: The seed of the noise, which also depends on the id of each image.
        settings: Everything else, and the values of what is None above.
        parts: Where results are saved as they come, so that an interrupted diagnosis can go on.
        progress: Called with (stage, images done, images in all).
        processes: The processes that work together: each computes some batches, and gets the whole result.

    Returns:
        The mean evidence [category, kernel] of each layer, the sifted images, and the confusion matrix.

    Raises:
        InputError: A setting is out of range, a layer cannot be used, or names and logits differ in number.

    Example:
        >>> import torch
        >>> from torchdoctor import Batch, diagnose
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
        ...     torch.nn.Linear(4, 2),
        ... )
        >>> images = Batch(torch.randn(8, 3, 9, 9), torch.zeros(8, dtype=torch.long), torch.arange(8))
        >>> diagnose(model, [images], layers=["0"], confidence=0.0).layer("0").correlation.shape
        (2, 4)
    """
    if isinstance(draws, int) and draws < 0:
        raise InputError(f"draws is {draws}; expected 0 (no noise), a number of draws, or 'exact'")
    if layers is not None:
        refuse_text(layers)
    names = tuple(layers) if layers is not None else None
    settings = settings.given(layers=names, evidence=evidence, draws=draws, confidence=confidence)
    return _diagnosed(unwrap(model), images_of(images), classes, settings, seed, parts, progress, processes)


def _diagnosed(
    model: nn.Module,
    images: Images,
    classes: Sequence[str] | None,
    settings: DiagnosisSettings,
    seed: int,
    parts: Parts | None,
    progress: Progress,
    processes: Processes,
) -> Diagnosis:
    """Predict all images, sift them, and measure the sifted ones."""
    example = first_images(model, images)
    asked = None if settings.layers == "auto" else settings.layers
    chosen = tuple(map_shapes(model, example, chosen_layers(model, example, asked)))  # first to last
    sha256 = state_sha256(model)
    survey = Survey(model, chosen, parts, sha256)
    ids, labels, logits = predict_logits(model, images, survey.look, survey.add, processes)
    categories = category_names(classes, images, logits.shape[1])
    sifting = sift(
        ids,
        labels,
        logits,
        images_per_category=settings.images_per_category,
        confidence=settings.confidence,
        annotations_per_category=settings.annotations_per_category,
        low_order=settings.low_order,
    )
    measurement = _Measurement(model, images, chosen, sifting, settings, seed, sha256, processes)
    norms = norms_behind(model, example, chosen)
    return Diagnosis(
        classes=categories,
        layers=measurement.layers(survey, ids.tolist(), norms, parts, progress),
        sifting=sifting,
        counts=measurement.counts,
        confusion=_confusion(labels.numpy(), logits.argmax(1).numpy(), len(categories)),
        evidence=measurement.evidence,
        draws=settings.diagnosis_draws,
        theta=settings.theta,
        seed=seed,
        model_sha256=sha256,
    )


def category_names(classes: Sequence[str] | None, images: Images, logits: int) -> tuple[str, ...]:
    """Return the names of the categories.

    Args:
        classes: The names that were given; None: those of `images`, else numbers.
        images: The images.
        logits: The number of logits.

    Returns:
        A name for each logit.

    Raises:
        InputError: The number of names is not that of the logits.
    """
    if classes is None:
        classes = getattr(images, "classes", None)
    names = tuple(classes) if classes is not None else tuple(map(str, range(logits)))
    if len(names) != logits:
        raise InputError(f"{len(names)} class names for {logits} logits: one name each is expected")
    return names


def _confusion(
    labels: Int[np.ndarray, " image"], predicted: Int[np.ndarray, " image"], categories: int
) -> Int[np.ndarray, "category category"]:
    """Count the images by category (row) and predicted category (column)."""
    confusion = np.zeros((categories, categories), dtype=np.int64)
    np.add.at(confusion, (labels, predicted), 1)
    return confusion


@dataclass(frozen=True)
class _Measurement:
    """The evidence of the sifted images, layer by layer."""

    model: nn.Module
    images: Images
    names: tuple[str, ...]
    sifting: Sifting
    settings: DiagnosisSettings
    seed: int
    sha256: str
    processes: Processes

    @property
    def evidence(self) -> Evidence:
        """The formula of the evidence."""
        return EVIDENCE_ALONE if self.settings.evidence == "auto" else self.settings.evidence

    @property
    def counts(self) -> Int[np.ndarray, " category"]:
        """How many images of each category were sifted."""
        return np.array([len(category) for category in self.sifting.high], dtype=np.int64)

    def layers(
        self,
        survey: Survey,
        ids: list[int],
        norms: Mapping[str, nn.Module],
        parts: Parts | None,
        progress: Progress,
    ) -> tuple[LayerDiagnosis, ...]:
        """Measure the evidence at every layer and summarise it by category."""
        chosen = [image for category in self.sifting.high for image in category]
        deviations, drifts = survey.deviations(ids, chosen), survey.drifts(norms)
        deltas = {name: self._delta(deviations[name]) for name in self.names}
        rows, paths = measure(
            self.model, self.images, chosen, deltas,
            draws=self.settings.diagnosis_draws, evidence=self.evidence, seed=self.seed, parts=parts,
            sha256=self.sha256, progress=progress, processes=self.processes,
        )  # fmt: skip
        return tuple(
            summarise(
                name, rows[name], self.counts,
                theta=self.settings.theta, delta=deltas[name], deviation=deviations[name],
                drift=drifts[name], path=paths[name],
            )
            for name in self.names
        )  # fmt: skip

    def _delta(self, deviation: float) -> float:
        """Return half the range of the noise at a layer whose map has this standard deviation."""
        if self.settings.diagnosis_draws == 0:
            return 0.0
        return 0.1 * deviation if self.settings.delta == "auto" else self.settings.delta


def state_sha256(model: nn.Module) -> str:
    """Return the sha256 of all parameters and buffers: names, types, shapes and bytes.

    Args:
        model: The network.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()
