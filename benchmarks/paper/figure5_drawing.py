"""Draw Figure 5: test images in rows, the evidence of each network over them in columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.experiment.cells import MEAN, STD, Cell
from torchdoctor import InputError
from torchdoctor.diagnosis.grad_cam import grad_cam
from torchdoctor.display.overlays import overlay
from torchdoctor.display.style import INK, MUTED, canvas, literal
from torchdoctor.evidence.per_image import background_shares_of, clean_evidence, summed_maps
from torchdoctor.images.batches import Batch
from torchdoctor.network.frozen import frozen_eval
from torchdoctor.network.prediction import predict_logits
from torchdoctor.treatment.recipe import move
from torchdoctor.types import Evidence

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROWS = 5
MOST_COVERED = 0.75
WORDS = {"gradient": "summed derivative map", "gradient_x_activation": "gradient x activation"}


def draw_maps(cell: Cell, networks: Mapping[str, nn.Module], layer: str, evidence: Evidence) -> Figure:
    """Draw the images that the base is least sure of, with every network's evidence for the true category.

    Every map has a scale of its own: networks differ in the size of their gradients.
    """
    batch, said = least_sure(cell)
    pixels = batch.images.to(cell.bench.device)
    columns: dict[str, list[tuple[np.ndarray, str]]] = {}
    for arm, network in networks.items():
        with frozen_eval(network) as frozen:
            found = clean_evidence(frozen, pixels, batch.labels.to(pixels.device), [layer], evidence)[0]
        shares = background_shares_of(found[layer].cpu(), batch)
        maps = summed_maps(found[layer], (pixels.shape[2], pixels.shape[3]))
        name = arm if arm in ("base", "control") else f"+{arm}"
        columns[name] = [
            (one, f"{100 * share:.0f} % background") for one, share in zip(maps, shares, strict=True)
        ]
    cams = _cams(networks["base"], pixels, layer, batch.labels)
    if cams:
        columns["Grad-CAM of base"] = [(one, "") for one in cams]
    width = len(columns) + 1
    figure, grid = canvas(1.55 * len(said) + 0.75, panels=(1.0,) * width, rows=len(said))
    for row, image in enumerate(_as_seen(batch.images)):
        label = literal(cell.tables.classes[int(batch.labels[row])], 22)
        mask = None if batch.masks is None else batch.masks[row, 0].numpy() > 0.5
        _panel(grid[width * row], image, mask, f"{label}\n{said[row]}", "image" if row == 0 else "")
        for column, (title, maps) in enumerate(columns.items(), start=1):
            shown, words = maps[row]
            laid = overlay(image, shown, float(shown.max()))
            _panel(grid[width * row + column], laid, mask, words, title if row == 0 else "")
    title = (
        f"{cell.architecture}, {cell.dataset}: {WORDS[evidence]} of the true category at {literal(layer)}; "
        "each from 0 to its own maximum"
    )
    figure.suptitle(title, x=0.01, ha="left", fontsize=9.5, color=MUTED)
    return figure


def least_sure(cell: Cell) -> tuple[Batch, list[str]]:
    """Return test images, each of another category, by rising confidence, and what the base says of them.

    Only images with a mask are taken, and of those the ones that show some background.
    """
    ids, labels, logits = predict_logits(cell.base, cell.test)
    certainty, predicted = logits.double().softmax(1).max(1)
    masked = _with_background(cell)
    chosen: dict[int, int] = {}
    for row in certainty.argsort(stable=True).tolist():
        if int(ids[row]) in masked:
            chosen.setdefault(int(labels[row]), row)
    rows = list(chosen.values())[:ROWS]
    names = cell.tables.classes
    said = [
        f"base: {literal(names[int(predicted[row])], 16)} {100 * float(certainty[row]):.0f} %" for row in rows
    ]
    wanted = [int(ids[row]) for row in rows]
    batch = move(next(iter(cell.test.select(wanted))), torch.device("cpu"), torch.float32)
    return batch, said


def _with_background(cell: Cell) -> set[int]:
    """Return the test images whose object leaves a quarter free; if none does, all that have a mask."""
    covered: dict[int, float] = {}
    for batch in cell.test:
        if batch.masks is not None and batch.annotated is not None:
            shares = batch.masks.mean((1, 2, 3))[batch.annotated.to(batch.masks.device)]
            covered.update(zip(batch.ids.cpu()[batch.annotated].tolist(), shares.tolist(), strict=True))
    return {one for one, share in covered.items() if share <= MOST_COVERED} or set(covered)


def _cams(model: nn.Module, pixels: Tensor, layer: str, labels: Tensor) -> list[np.ndarray]:
    """Return Grad-CAM's maps; none without torchcam, which is optional."""
    try:
        return [
            grad_cam(model, image, layer, int(label)) for image, label in zip(pixels, labels, strict=True)
        ]
    except InputError as error:
        print(f"no column for Grad-CAM: {error}", flush=True)
        return []


def _as_seen(images: Tensor) -> np.ndarray:
    """Return images as pixels of 0..1, [image, height, width, 3]."""
    mean, std = (torch.tensor(one).view(1, 3, 1, 1) for one in (MEAN, STD))
    return (images * std + mean).clamp(0, 1).permute(0, 2, 3, 1).numpy()


def _panel(axes: Axes, pixels: np.ndarray, mask: np.ndarray | None, below: str, title: str) -> None:
    """Draw one image with the object's outline."""
    axes.imshow(np.clip(pixels, 0, 1), interpolation="nearest")
    if mask is not None and mask.any() and not mask.all():
        height, width = mask.shape
        # A margin closes the outline of an object at the edge.
        axes.contour(
            np.arange(-1, width + 1), np.arange(-1, height + 1), np.pad(mask, 1).astype(float),
            levels=[0.5], colors="white", linewidths=0.9,
        )  # fmt: skip
        axes.set(xlim=(-0.7, width - 0.3), ylim=(height - 0.3, -0.7))
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel(below, fontsize=7.5, color=INK, labelpad=2, loc="left")
    axes.set_title(title, fontsize=9, loc="left")
