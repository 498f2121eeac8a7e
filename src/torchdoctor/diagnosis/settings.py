"""The settings of a diagnosis, with their defaults."""

from __future__ import annotations

from typing import Literal

from torchdoctor.diagnosis.sifting import LowOrder
from torchdoctor.glossary import GLOSSARY
from torchdoctor.settings import Amount, Count, SettingsGroup, Share, Whole, setting
from torchdoctor.types import Evidence

# Why these two differ: a diagnosis by itself shows what the paper defines (Eq. 2-4). Before a treatment, the
# correlated kernels must be those of the evidence that the constraints penalise, or the constraints would
# choose kernels by a different measure from that which they penalise.
EVIDENCE_ALONE: Evidence = "gradient"
EVIDENCE_OF_TREATMENT: Evidence = "gradient_x_activation"
DRAWS = 10  # noise draws of each image in a diagnosis, where none are asked for


class EvidenceSettings(SettingsGroup):
    """The formula of the evidence."""

    evidence: Evidence | Literal["auto"] = setting(
        "auto",
        GLOSSARY["evidence"],
        left_out=f"diagnose, robustness: {EVIDENCE_ALONE}; treat, checkup: {EVIDENCE_OF_TREATMENT}",
    )


class DiagnosisSettings(EvidenceSettings):
    """Which layers are diagnosed, on which images, under how much noise."""

    layers: tuple[str, ...] | Literal["auto"] = setting(
        "auto",
        "The layers to diagnose: names, patterns such as layer3.*, last:N, or all; separated by commas. "
        "Constraints act at the last of them unless they name their own.",
        left_out="the last convolution and two earlier ones",
    )
    draws: Whole | Literal["exact", "auto"] = setting(
        "auto",
        GLOSSARY["draws"] + " 0 means no noise, exact the limit of many draws.",
        left_out=f"diagnosis: {DRAWS}; training step: 1",
    )
    delta: Amount | Literal["auto"] = setting(
        "auto",
        GLOSSARY["delta"],
        left_out="a tenth of the map's standard deviation",
    )
    theta: Share = setting(0.2, GLOSSARY["theta"])
    images_per_category: Count = setting(100, "How many images of each category are diagnosed at most.")
    confidence: Share = setting(
        0.9, "Only images that are classified correctly with at least this probability are diagnosed."
    )
    annotations_per_category: Count = setting(
        20, "How many images of each category are proposed for drawing masks."
    )
    low_order: LowOrder = setting(
        "mistakes_first",
        "Which images are proposed for drawing masks first.",
    )

    @property
    def diagnosis_draws(self) -> int | Literal["exact"]:
        """The noise draws of a diagnosis."""
        return DRAWS if self.draws == "auto" else self.draws


class CausesSettings(SettingsGroup):
    """How the causes of errors are found."""

    second_opinion: tuple[str, ...] | None = setting(
        None,
        "Other networks that judge labels too, separated by commas: pretrained (EfficientNet-Lite2) or "
        "another network with published weights, such as torchvision:resnet50, for training and validation "
        "images; or runs or weights of networks for the same categories, ideally more accurate ones, for "
        "validation images.",
        left_out="the network judges labels alone",
    )
