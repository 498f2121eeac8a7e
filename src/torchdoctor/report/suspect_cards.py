"""Prepare training images whose labels look wrong for a page: each beside images of its two categories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from torchdoctor.diagnosis.suspects_result import Suspect
from torchdoctor.report.pictures import Picture, photograph

Pixels = Float[np.ndarray, "height width 3"]


@dataclass(frozen=True)
class ShownSuspect:
    """A training image whose label looks wrong, with the images that it is compared with.

    Attributes:
        name: The name of the image.
        suspect: What is said of it.
        image: Its RGB pixels, in 0..1.
        beside: By the name of a category (the label, and the proposed one), the pixels of a similar image.
    """

    name: str
    suspect: Suspect
    image: Pixels
    beside: Mapping[str, Pixels]


def suspect_cards(shown: Sequence[ShownSuspect]) -> list[dict[str, Any]]:
    """Prepare suspects for the page.

    Args:
        shown: The suspects.

    Returns:
        For each a card with `suspect`, `name`, and `pictures`: pairs of a caption and a picture, the image
        itself first.
    """
    cards = []
    for one in shown:
        pictures: list[tuple[str, Picture]] = [
            (f"labelled {one.suspect.label}", photograph(one.image, None, f"Image {one.name}"))
        ]
        pictures += [
            (f"similar, {category}", photograph(pixels, None, f"An image of {category}"))
            for category, pixels in one.beside.items()
        ]
        cards.append({"suspect": one.suspect, "name": one.name, "pictures": pictures})
    return cards
