"""Turn figures and photographs into small pictures that are stored inside an HTML page."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float

from torchdoctor.diagnosis.result import Diagnosis
from torchdoctor.diagnosis.robustness_result import Robustness
from torchdoctor.display import overlays
from torchdoctor.proof.result import Comparison

if TYPE_CHECKING:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

SIDE = 160  # the smallest longer side of a photograph in pixels; the largest is twice that
MOST_CATEGORIES = 100  # how many categories a figure shows at most
MOST_LAYERS = 16  # how many layers get a heat map at most
LARGEST_PAGE = 10_000_000  # bytes of a report: it can be sent by mail


@dataclass(frozen=True)
class Picture:
    """A picture inside the page.

    Attributes:
        source: The content as a data URI.
        width: The width in CSS pixels.
        height: The height in CSS pixels.
        alt: What it shows, in words.
    """

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
    """Draw all figures of a report.

    With more than 100 categories the heat maps show the 100 least accurate, and the figures of gains the 50
    greatest and the 50 smallest gains. Then the last layer's heat map of all categories, and the confusion
    matrix, are pictures without names.

    Args:
        diagnosis: The diagnosis of the base network.
        comparison: The comparison of the treated networks with it; None without.
        most_layers: How many layers get a heat map at most; the last layers are chosen.
        robustness: The noise curves of adversarial images; None without.

    Returns:
        `layers`: pairs of a layer's name and its heat map; `everything`: that of all categories or None;
        `confusion`: the confusion matrix;
        `sparsity`: the share of kernels that carry the evidence; `noise`: the noise curves or None. With a
        comparison also `summary`: the accuracies; `gains`: pairs of a split's name and its figure.
    """
    fewer = diagnosis.least_accurate(MOST_CATEGORIES)
    drawn: dict[str, Any] = {
        "layers": [
            (layer.name, draw(fewer.correlation_figure(layer.name), f"Heat map of layer {layer.name}"))
            for layer in fewer.layers[-most_layers:]
        ],
        "everything": None,
        "confusion": draw(diagnosis.confusion_figure(), "Confusion matrix of the diagnosed images"),
        "sparsity": draw(fewer.sparsity_figure(), "Share of kernels that carry the evidence, by layer"),
        "noise": None,
    }
    if robustness is not None:
        drawn["noise"] = draw(robustness.figure(), "Accuracy of normal and adversarial images under noise")
    if fewer is not diagnosis and diagnosis.layers:
        alt = f"Heat map of all {len(diagnosis.classes)} categories at the last layer"
        drawn["everything"] = draw(diagnosis.correlation_figure(), alt)
    if comparison is not None:
        alt = "Accuracy of base, control and treated on every split"
        drawn["summary"] = draw(comparison.accuracy_figure(), alt)
        extreme = {name: comparison.most_changed(name, MOST_CATEGORIES) for name in comparison.splits}
        drawn["gains"] = [
            (name, draw(extreme[name].category_gains_figure(name), f"Gain of each category on {name}"))
            for name in sorted(comparison.splits, key=lambda name: name != comparison.primary)
        ]
    return drawn


def draw(figure: Figure, alt: str) -> Picture:
    """Turn a figure into a PNG with 256 colours, at twice the resolution of a plain screen.

    Args:
        figure: The figure.
        alt: What it shows, in words.

    Returns:
        The picture.
    """
    from PIL import Image

    with _canvas(figure, dpi=200) as canvas:
        canvas.draw()
        picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    small = picture.quantize(256, dither=Image.Dither.NONE)
    return Picture(_uri(small, "png", optimize=True), picture.width // 2, picture.height // 2, alt)


def photograph(
    pixels: Float[np.ndarray, "height width 3"], mask: Bool[np.ndarray, "height width"] | None, alt: str
) -> Picture:
    """Turn an image into a picture whose longer side has 160 to 320 pixels.

    Small images are enlarged by a whole factor, so that every pixel becomes a sharp square.

    Args:
        pixels: The RGB image, in 0..1.
        mask: True on the object, whose outline is drawn; None draws no outline.
        alt: What the picture shows, in words.

    Returns:
        The picture: PNG for enlarged images, JPEG for others.
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
    """Return the colours of the legend of evidence maps.

    Args:
        steps: The number of colours.

    Returns:
        CSS colours from no evidence to the maximum, as `overlays.overlay` draws them on grey.
    """
    amounts = np.linspace(0, 1, steps)[None]
    colours = overlays.overlay(np.full((1, steps, 3), 0.5), amounts, 1.0)[0]
    return [f"rgb({', '.join(f'{255 * part:.0f}' for part in colour)})" for colour in colours]


def figure_files(figure: Figure) -> dict[str, bytes]:
    """Encode a figure as PNG and as SVG; the same figure always gives the same bytes.

    Args:
        figure: The figure.

    Returns:
        The contents of the files by their ending, `png` and `svg`.
    """
    from matplotlib import rc_context

    png, svg = io.BytesIO(), io.BytesIO()
    with _canvas(figure, dpi=150) as canvas:
        canvas.print_png(png, metadata={"Software": None})
    with rc_context({"svg.hashsalt": "torchdoctor"}):
        figure.savefig(svg, format="svg", dpi=150, metadata={"Date": None, "Creator": None})
    return {"png": png.getvalue(), "svg": svg.getvalue()}


@contextmanager
def _canvas(figure: Figure, dpi: int) -> Iterator[FigureCanvasAgg]:
    """Give a figure a resolution and a canvas for the time being.

    The same pixels as those of `Figure.savefig`, which draws a figure twice: once to lay it out.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    before = figure.dpi
    figure.dpi = dpi
    try:
        yield FigureCanvasAgg(figure)
    finally:
        figure.dpi = before


def _grown(area: Bool[np.ndarray, "height width"]) -> Bool[np.ndarray, "height width"]:
    """Return the area enlarged by the pixels that share an edge with it."""
    padded = np.pad(area, 1)
    return padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:] | area


def _uri(picture: Any, kind: str, **options: Any) -> str:
    """Return a Pillow image as a data URI."""
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
