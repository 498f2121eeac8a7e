"""Draw images with the evidence laid over them (Fig. 2b)."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float

from torchdoctor.display.style import AMOUNTS, BLUE, INK, MUTED, RULE, canvas, literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DIM = 0.6  # brightness of the grey image below the colours


def overlay(
    image: Float[np.ndarray, "height width 3"], summed_map: Float[np.ndarray, "height width"], maximum: float
) -> Float[np.ndarray, "height width 3"]:
    """Lay a summed derivative map (Fig. 2b) over the dimmed grey image.

    Where the map is 0 only the dimmed image is left.

    Args:
        image: The image in 0..1.
        summed_map: The summed derivatives, not negative.
        maximum: The top of the colour scale; maps drawn with the same top can be compared by eye.

    Returns:
        The picture in 0..1.
    """
    from matplotlib import colormaps

    grey = DIM * (np.clip(image, 0, 1) @ np.array([0.299, 0.587, 0.114]))
    usable = np.isfinite(maximum) and maximum > 0
    amount = np.clip(np.nan_to_num(summed_map) / maximum, 0, 1) if usable else np.zeros(grey.shape)
    opacity = np.minimum(1.0, 1.6 * amount)[..., None]
    colours = np.asarray(colormaps[AMOUNTS](0.15 + 0.85 * amount))[..., :3]
    return (1 - opacity) * grey[..., None] + opacity * colours


def overlays(
    images: Sequence[tuple[str, Float[np.ndarray, "height width 3"]]],
    maps: Sequence[Sequence[tuple[str, Float[np.ndarray, "map_height map_width"]]]],
) -> Figure:
    """Draw images in rows, each with its summed derivative maps at several layers (Fig. 2b).

    Every layer has the same colour scale for all images, so that the images can be compared.

    Args:
        images: The name of each image and its pixels in 0..1.
        maps: For each image: the name of each layer and its summed derivatives.

    Returns:
        The figure.
    """
    columns = 1 + max(map(len, maps), default=0)
    figure, axes = canvas(1.75 * len(images) + 0.3, panels=(1.0,) * columns, rows=len(images))
    tops = [
        max(float(np.nan_to_num(row[place][1]).max()) for row in maps if place < len(row))
        for place in range(columns - 1)
    ]
    for number, ((name, image), layers) in enumerate(zip(images, maps, strict=True)):
        row = axes[number * columns : (number + 1) * columns]
        row[0].imshow(np.clip(image, 0, 1), interpolation="nearest")
        row[0].set_ylabel(literal(name, 22), fontsize=8.5, color=INK)
        for place, (layer, summed) in enumerate(layers):
            row[place + 1].imshow(overlay(image, summed, tops[place]), interpolation="nearest", cmap=AMOUNTS)
            if number == 0:
                row[place + 1].set_title(literal(layer, 24), fontsize=9, loc="left")
        for panel in row:
            panel.set_xticks([])
            panel.set_yticks([])
    return figure


def explanation_panels(
    image: Float[np.ndarray, "height width 3"],
    summed_map: Float[np.ndarray, "height width"],
    kernels: Sequence[tuple[str, float, float | None]],
    *,
    layer: str,
    caption: str,
    mask: Bool[np.ndarray, "height width"] | None = None,
    cam: Float[np.ndarray, "height width"] | None = None,
) -> Figure:
    """Draw an image, its summed derivative map (Fig. 2b), that of Grad-CAM if it is passed, and some kernels.

    Args:
        image: The image in 0..1.
        summed_map: The summed derivatives at `layer`, stretched onto the image.
        kernels: The name, evidence and usual evidence (None where it is not known) of each kernel to show.
        layer: The name of the layer, for the title.
        caption: A sentence or two below the panels.
        mask: True on the object, which gets an outline.
        cam: A Grad-CAM map for a panel of its own.

    Returns:
        The figure.
    """
    panels = 2 if cam is None else 3
    figure, axes = canvas(4.1, panels=(1.0,) * panels + (1.3,))
    pictures = [
        ("image", image),
        (f"evidence at {literal(layer, 22)}", overlay(image, summed_map, float(summed_map.max()))),
    ]
    if cam is not None:
        empty = "" if cam.max() > 0 else ": nothing positive"
        pictures.append((f"Grad-CAM{empty}", overlay(image, cam, float(cam.max()))))
    for panel, (title, pixels) in zip(axes, pictures, strict=False):
        panel.imshow(np.clip(pixels, 0, 1), interpolation="nearest")
        panel.set_xticks([])
        panel.set_yticks([])
        panel.set_title(title, fontsize=9.5, loc="left")
        if mask is not None:
            panel.contour(mask.astype(float), levels=[0.5], colors="white", linewidths=0.9)
    _kernels(axes[-1], kernels)
    figure.supxlabel(textwrap.fill(literal(caption, 400), 112), fontsize=10, color=INK, x=0.01, ha="left")
    return figure


def _kernels(axes: Axes, kernels: Sequence[tuple[str, float, float | None]]) -> None:
    """Draw the kernels that stand out, each beside what is usual for the category."""
    if not kernels:
        axes.set_axis_off()
        axes.text(0, 0.5, "no kernel stands out", color=MUTED, fontsize=9.5, transform=axes.transAxes)
        return
    places = np.arange(len(kernels))
    axes.barh(places, [evidence for _, evidence, _ in kernels], height=0.56, color=BLUE, label="this image")
    if any(usual is not None for *_, usual in kernels):
        marks = [np.nan if usual is None else usual for *_, usual in kernels]
        axes.scatter(marks, places, marker="|", s=120, color=INK, zorder=3, label="usual for the category")
        axes.legend(frameon=False, fontsize=8, labelcolor=INK, loc="lower right")
    axes.set_yticks(places, [literal(name, 26) for name, *_ in kernels], fontsize=8.5)
    axes.set_ylim(len(kernels) - 0.4, -0.6)
    axes.grid(axis="x", color=RULE, linewidth=0.7)
    axes.set_title("evidence of what stands out", fontsize=9.5, loc="left")
