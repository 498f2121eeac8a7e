"""Turn figures and photographs into small pictures that a page can carry inside itself."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float

from torchdoctor.diagnosis.result import Diagnosis
from torchdoctor.diagnosis.robustness import Robustness
from torchdoctor.proof.result import Comparison
from torchdoctor.report import plots as figures
from torchdoctor.report.diagnosis_plots import noise_curves, sparsity_by_layer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIDE = 160
MOST_CATEGORIES = 100
MOST_LAYERS = 16


@dataclass(frozen=True)
class Picture:
    """An image inside the page: a data URI, its size in CSS pixels, and what it shows in words."""

    source: str
    width: int
    height: int
    alt: str


def drawn_figures(
    diagnosis: Diagnosis,
    comparison: Comparison | None,
    most_layers: int,
    robustness: Robustness | None = None,
) -> dict[str, Any]:
    """Draw all figures of a report; heat maps and gains come as (name, picture) pairs.

    With more than 100 categories the heat maps show the least accurate ones, the gains the best and the
    worst, and there is no confusion matrix (None).
    """
    fewer = least_accurate(diagnosis, MOST_CATEGORIES)
    drawn: dict[str, Any] = {
        "layers": [
            (one.name, draw(figures.correlation_heat_map(fewer, one.name), f"Heat map of layer {one.name}"))
            for one in fewer.layers[-most_layers:]
        ],
        "confusion": None,
        "sparsity": draw(sparsity_by_layer(fewer), "Share of kernels that carry the evidence, by layer"),
        "noise": None,
    }
    if robustness is not None:
        drawn["noise"] = draw(
            noise_curves(robustness), "Accuracy of normal and adversarial images under noise"
        )
    if fewer is diagnosis:
        alt = "Confusion matrix of the diagnosed images"
        drawn["confusion"] = draw(figures.confusion_matrix(diagnosis), alt)
    if comparison is not None:
        alt = "Accuracy of base, control and treated on every split"
        drawn["summary"] = draw(figures.accuracy_summary(comparison), alt)
        extreme = {name: most_changed(comparison, name, MOST_CATEGORIES) for name in comparison.splits}
        drawn["gains"] = [
            (name, draw(figures.category_gains(extreme[name], name), f"Gain of each category on {name}"))
            for name in sorted(comparison.splits, key=lambda name: name != comparison.primary)
        ]
    return drawn


def least_accurate(diagnosis: Diagnosis, most: int) -> Diagnosis:
    """Return the diagnosis of the `most` least accurate categories only, in their order."""
    if len(diagnosis.classes) <= most:
        return diagnosis
    kept = np.sort(np.argsort(np.nan_to_num(diagnosis.accuracy, nan=101.0), kind="stable")[:most])
    layers = tuple(
        replace(
            one,
            correlation=one.correlation[kept],
            variance=one.variance[kept],
            interval=one.interval[:, kept],
            quantiles=one.quantiles[:, kept],
            activation=one.activation[kept],
            correlated=one.correlated[kept],
            agreement=one.agreement[:, kept],
            background_share=one.background_share[kept],
        )
        for one in diagnosis.layers
    )
    names, counts = tuple(diagnosis.classes[one] for one in kept), diagnosis.counts[kept]
    confusion = diagnosis.confusion[np.ix_(kept, kept)]
    return replace(diagnosis, classes=names, counts=counts, confusion=confusion, layers=layers)


def most_changed(comparison: Comparison, split: str, most: int) -> Comparison:
    """Return the comparison on one split with only the categories that won or lost most."""
    chosen = comparison.splits[split]
    if len(comparison.classes) <= most:
        return comparison
    order = np.argsort(-np.nan_to_num(chosen.first.gain_per_category), kind="stable")
    kept = [*order[: most // 2].tolist(), *order[-(most // 2) :].tolist()]
    rows = {arm: tuple(values[one] for one in kept) for arm, values in chosen.per_category.items()}
    gains = tuple(chosen.first.gain_per_category[one] for one in kept)
    first = replace(chosen.first, gain_per_category=gains)
    fewer = replace(chosen, per_category=rows, arms={**chosen.arms, comparison.arm: first})
    names = tuple(comparison.classes[one] for one in kept)
    return replace(comparison, classes=names, splits={split: fewer})


def draw(figure: Figure, alt: str) -> Picture:
    """Turn a figure into a PNG of 256 colours at twice the screen's resolution."""
    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=200)
    picture = Image.open(buffer).convert("RGB")
    small = picture.quantize(256, dither=Image.Dither.NONE)
    return Picture(_uri(small, "png", optimize=True), picture.width // 2, picture.height // 2, alt)


def photograph(
    pixels: Float[np.ndarray, "height width 3"], mask: Bool[np.ndarray, "height width"] | None, alt: str
) -> Picture:
    """Encode an image of 0..1 with its longer side at 160 to 320 pixels, the object outlined where known.

    Small images are enlarged by a whole factor, so that every pixel stays a sharp square.
    """
    from PIL import Image

    times = max(1, math.ceil(SIDE / max(pixels.shape[:2])))
    block = np.ones((times, times), dtype=np.uint8)
    large = np.kron((255 * np.clip(pixels, 0, 1)).round().astype(np.uint8), block[..., None])
    if mask is not None:
        inside = np.kron(mask, block).astype(bool)
        large[~inside & _grown(inside)] = 30
        large[inside & _grown(~inside)] = 255
    picture = Image.fromarray(large)
    picture.thumbnail((2 * SIDE, 2 * SIDE))
    if times > 1:
        return Picture(_uri(picture, "png", optimize=True), *picture.size, alt)
    return Picture(_uri(picture, "jpeg", quality=88, subsampling=0), *picture.size, alt)


def ramp(steps: int = 9) -> list[str]:
    """Return the colours of a legend bar from 0 to the maximum, as the overlay draws them on mid grey."""
    amounts = np.linspace(0, 1, steps)[None]
    colours = figures.overlay(np.full((1, steps, 3), 0.5), amounts, 1.0)[0]
    return [f"rgb({', '.join(f'{255 * part:.0f}' for part in colour)})" for colour in colours]


def figure_files(figure: Figure) -> dict[str, bytes]:
    """Return a figure as PNG and as SVG, the same bytes each time."""
    from matplotlib import rc_context

    found = {}
    with rc_context({"svg.hashsalt": "torchdoctor"}):
        for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
            found[kind] = buffer.getvalue()
    return found


def _grown(area: Bool[np.ndarray, "height width"]) -> Bool[np.ndarray, "height width"]:
    """Return the area with the pixels that share an edge with it."""
    padded = np.pad(area, 1)
    return padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:] | area


def _uri(picture: Any, kind: str, **options: Any) -> str:
    """Return a Pillow image as a data URI."""
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
