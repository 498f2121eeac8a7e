"""Prepare example images for a page: what two networks say about them, and where their evidence lies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float

from torchdoctor.display import overlays
from torchdoctor.report.pictures import Picture, photograph

Kind = Literal["repaired", "broken", "still wrong", "annotated"]
KINDS: Mapping[Kind, str] = {
    "repaired": "wrong before, right after the treatment",
    "broken": "right before, wrong after the treatment",
    "still wrong": "wrong before and after",
    "annotated": "the object was marked, so the background is known",
}


@dataclass(frozen=True)
class Example:
    """An image with what the base network and the treated network say, and where their evidence lies.

    Attributes:
        split: The name of the test split that the image is from.
        name: The name of the image.
        image: The RGB pixels, in 0..1.
        mask: True on the object; None where it is not known.
        label: The true category.
        before: The prediction of the base network.
        before_confidence: Its confidence, in 0..1.
        after: The prediction of the treated network.
        after_confidence: Its confidence, in 0..1.
        map_before: The evidence of the base network at each pixel: absolute derivatives summed over kernels.
        map_after: The evidence of the treated network at each pixel.
        background_before: The share of the base network's evidence on the background, in 0..1; None without
            a mask.
        background_after: The share of the treated network's evidence on the background.
        kind: Why the image is an example.
    """

    split: str
    name: str
    image: Float[np.ndarray, "height width 3"]
    mask: Bool[np.ndarray, "height width"] | None
    label: str
    before: str
    before_confidence: float
    after: str
    after_confidence: float
    map_before: Float[np.ndarray, "height width"]
    map_after: Float[np.ndarray, "height width"]
    background_before: float | None
    background_after: float | None
    kind: Kind

    @property
    def maximum(self) -> float:
        """The greatest value of both maps, which are drawn on the same scale."""
        return max(float(np.nan_to_num(evidence).max()) for evidence in (self.map_before, self.map_after))


def example_groups(
    examples: Sequence[Example], arm: str | None
) -> list[tuple[Kind, str, list[dict[str, Any]]]]:
    """Group examples by kind and draw their pictures.

    Args:
        examples: The examples.
        arm: The name of the treated network; None if nothing was treated, and its map is left out.

    Returns:
        For each kind that occurs: the kind, its meaning, and a card for each example with `example` and
        `pictures`, the latter as pairs of a caption and a picture.
    """
    groups = []
    for kind, meaning in KINDS.items():
        cards = [
            {"example": example, "pictures": _pictures(example, arm)}
            for example in examples
            if example.kind == kind
        ]
        if cards:
            groups.append((kind, meaning, cards))
    return groups


def _pictures(example: Example, arm: str | None) -> list[tuple[str, Picture]]:
    """Draw the image, the map of the base network and, with an arm, the map of the treated network."""
    maps = [("base", example.map_before)] + ([(arm, example.map_after)] if arm else [])
    pictures = [("image", photograph(example.image, example.mask, f"Image {example.name}"))]
    for network, evidence in maps:
        pixels = overlays.overlay(example.image, evidence, example.maximum)
        alt = f"Evidence of the {network} network in {example.name}"
        pictures.append((network, photograph(pixels, example.mask, alt)))
    return pictures
