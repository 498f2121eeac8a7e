"""Draw what a diagnosis, an explanation and the noise curves say; every function returns a Figure."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float

from torchdoctor.diagnosis.explanation import Explanation
from torchdoctor.diagnosis.result import Diagnosis
from torchdoctor.diagnosis.robustness import Robustness
from torchdoctor.diagnosis.statistics import sparsity
from torchdoctor.report.plots import AMOUNTS, BLUE, GREY, INK, MUTED, ORANGE, RULE, canvas, literal, overlay

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_NAMED = 40  # layers whose names still fit under the axis
CURVES = {
    "normal": ("normal images, still right", BLUE, "-", "o"),
    "restored": ("adversarial, back at the true label", ORANGE, "--", "s"),
    "fooled": ("adversarial, still at the false label", GREY, ":", "^"),
}


def sparsity_by_layer(diagnosis: Diagnosis) -> Figure:
    """Draw the share of each layer's kernels that carries 90 % of the evidence, a dot per category.

    The paper's first discovery: few kernels speak for a category, the fewer the deeper the layer.
    """
    figure, (axes,) = canvas(3.4)
    diagnosed = diagnosis.counts > 0
    middles = []
    for place, layer in enumerate(diagnosis.layers):
        shares = 100 * sparsity(layer.correlation)[diagnosed]
        shares = shares[~np.isnan(shares)]
        spread = np.linspace(-0.16, 0.16, len(shares)) if len(shares) > 1 else np.zeros(len(shares))
        axes.scatter(place + spread, shares, s=14, color=BLUE, alpha=0.35, linewidths=0)
        middles.append(float(np.median(shares)) if len(shares) else np.nan)
    axes.plot(range(len(middles)), middles, color=INK, marker="o", markersize=5, linewidth=1.4)
    axes.set_ylim(0, 102)
    axes.set_xlim(-0.5, len(middles) - 0.5)
    axes.grid(axis="y", color=RULE, linewidth=0.7)
    names = [literal(one.name, 26) for one in diagnosis.layers]
    step = 1 + (len(names) - 1) // MOST_NAMED
    turned: Any = {"rotation": 60, "ha": "right", "rotation_mode": "anchor"} if len(names) > 4 else {}
    axes.set_xticks(range(0, len(names), step), names[::step], fontsize=8.5, **turned)
    axes.set_ylabel("% of the layer's kernels")
    axes.set_title(
        "kernels that carry 90 % of the evidence: a dot per category, the line is their median",
        loc="left",
        fontsize=10,
    )
    return figure


def noise_curves(found: Robustness) -> Figure:
    """Draw the noise curves (Fig. 3): the mean over the repeats, and the range of all of them."""
    figure, (axes,) = canvas(3.6)
    for name, (label, colour, style, mark) in CURVES.items():
        values = getattr(found, name)
        axes.fill_between(found.ranges, values.min(1), values.max(1), color=colour, alpha=0.13, linewidth=0)
        axes.plot(
            found.ranges,
            values.mean(1),
            color=colour,
            linestyle=style,
            marker=mark,
            markersize=5,
            label=label,
        )
    axes.set_ylim(-2, 103)
    axes.grid(color=RULE, linewidth=0.7)
    unit = "standard deviations of the layer's map" if found.units == "deviation" else "units of the map"
    axes.set_xlabel(f"noise range, {unit}")
    axes.set_ylabel(f"% of {found.images} images")
    kinds = list(dict.fromkeys(found.layers))
    where = literal(kinds[0], 40) if len(kinds) == 1 else f"one of {len(kinds)} layers at a time"
    axes.set_title(
        f"noise at {where}, {len(found.layers)} repeats; FGSM with ε = {255 * found.epsilon:.3g}/255 fooled "
        f"{found.attack_success:.0f} %",
        loc="left",
        fontsize=10,
    )
    axes.legend(frameon=False, labelcolor=INK, fontsize=9, loc="best")
    return figure


def explanation_figure(
    explanation: Explanation,
    image: Float[np.ndarray, "height width 3"],
    mask: Bool[np.ndarray, "height width"] | None = None,
    cam: Float[np.ndarray, "height width"] | None = None,
) -> Figure:
    """Draw one image, its summed derivative map (Fig. 2b), Grad-CAM's where given, and what stands out.

    `image` is in 0..1; `mask` is True on the object, which gets an outline.
    """
    panels = 2 if cam is None else 3
    figure, axes = canvas(4.1, panels=(1.0,) * panels + (1.3,))
    summed = explanation.summed_map
    shown = [
        ("image", image),
        (f"evidence at {literal(explanation.layer, 22)}", overlay(image, summed, float(summed.max()))),
    ]
    if cam is not None:
        empty = "" if cam.max() > 0 else ": nothing positive"
        shown.append((f"Grad-CAM{empty}", overlay(image, cam, float(cam.max()))))
    for panel, (title, pixels) in zip(axes, shown, strict=False):
        panel.imshow(np.clip(pixels, 0, 1), interpolation="nearest")
        panel.set_xticks([])
        panel.set_yticks([])
        panel.set_title(title, fontsize=9.5, loc="left")
        if mask is not None:
            panel.contour(mask.astype(float), levels=[0.5], colors="white", linewidths=0.9)
    _kernels(axes[-1], explanation)
    caption = textwrap.fill(literal(_caption(explanation), 400), 112)
    figure.supxlabel(caption, fontsize=10, color=INK, x=0.01, ha="left")
    return figure


def _caption(explanation: Explanation) -> str:
    """Say the prediction and what the causal check found, in one line."""
    said = [explanation.sentences[0]]
    if explanation.label not in (None, explanation.prediction):
        said.append(f"Label: {explanation.label}.")
    if explanation.check is not None:
        after = explanation.check.prediction
        same = f"stays {after}" if after == explanation.prediction else f"becomes {after}"
        verdict = "they decide" if explanation.check.agrees else "they do not decide"
        said.append(f"With these kernels silenced it {same}: {verdict}.")
    return " ".join(said)


def _kernels(axes: Axes, explanation: Explanation) -> None:
    """Draw the kernels that stand out, each beside what is usual for the category."""
    kernels = explanation.kernels
    if not kernels:
        axes.set_axis_off()
        axes.text(0, 0.5, "no kernel stands out", color=MUTED, fontsize=9.5, transform=axes.transAxes)
        return
    places = np.arange(len(kernels))
    axes.barh(places, [one.evidence for one in kernels], height=0.56, color=BLUE, label="this image")
    usual = [one.usual for one in kernels if one.usual is not None]
    if usual:
        marks = [one.usual if one.usual is not None else np.nan for one in kernels]
        axes.scatter(marks, places, marker="|", s=120, color=INK, zorder=3, label="usual for the category")
        axes.legend(frameon=False, fontsize=8, labelcolor=INK, loc="lower right")
    axes.set_yticks(places, [literal(f"{one.layer}[{one.kernel}]", 26) for one in kernels], fontsize=8.5)
    axes.set_ylim(len(kernels) - 0.4, -0.6)
    axes.grid(axis="x", color=RULE, linewidth=0.7)
    axes.set_title("evidence of what stands out", fontsize=9.5, loc="left")


def overlays(
    images: Sequence[tuple[str, Float[np.ndarray, "height width 3"]]],
    maps: Sequence[Sequence[tuple[str, Float[np.ndarray, "map_height map_width"]]]],
) -> Figure:
    """Draw images in rows, each with its summed derivative maps at several layers (Fig. 2b).

    Every layer has one scale for all images, so that the images can be compared; names are written above.
    """
    columns = 1 + max((len(one) for one in maps), default=0)
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
        for one in row:
            one.set_xticks([])
            one.set_yticks([])
    return figure
