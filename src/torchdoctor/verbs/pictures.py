"""Turn images and masks back into what people look at, and write figures as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchdoctor.data.pixels import Preprocessing
from torchdoctor.files.writing import write_bytes
from torchdoctor.images.batches import Batch
from torchdoctor.report.pictures import figure_files


def mask_of(batch: Batch, row: int) -> Tensor | None:
    """Return the mask of an image of a batch.

    Args:
        batch: The batch.
        row: The image's position in it.

    Returns:
        The mask, [1, height, width], 1 on the object; None where the image has no mask.
    """
    known = batch.masks is not None and (batch.annotated is None or bool(batch.annotated[row]))
    return batch.masks[row].cpu() if known and batch.masks is not None else None


def displayed_pixels(image: Tensor, preprocessing: Preprocessing) -> np.ndarray:
    """Undo the normalisation of an image.

    Args:
        image: The image as the network takes it, [channel, height, width].
        preprocessing: How it was prepared.

    Returns:
        Colours in 0 to 1, [height, width, 3]; a grey image has three equal channels.
    """
    mean = torch.tensor(preprocessing.mean).view(-1, 1, 1)
    std = torch.tensor(preprocessing.std).view(-1, 1, 1)
    colours = (image.cpu() * std + mean).clamp(0, 1).expand(3, -1, -1)
    pixels: np.ndarray = colours.permute(1, 2, 0).numpy()
    return pixels


def write_figure(folder: Path, name: str, figure: Any) -> list[str]:
    """Write a figure as PNG and as SVG.

    Args:
        folder: Where the files go.
        name: Their name without its ending.
        figure: A matplotlib figure.

    Returns:
        The files' names.
    """
    files = {f"{name}.{kind}": content for kind, content in figure_files(figure).items()}
    for file, content in files.items():
        write_bytes(folder / file, content)
    return list(files)
