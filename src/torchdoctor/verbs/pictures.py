"""Show what a network sees: images as they were, masks, and figures as files."""

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
    """Return the mask of one image of a batch, None where it has none."""
    known = batch.masks is not None and (batch.annotated is None or bool(batch.annotated[row]))
    return batch.masks[row] if known and batch.masks is not None else None


def shown_pixels(image: Tensor, preprocessing: Preprocessing) -> np.ndarray:
    """Undo the normalisation of one image: [height, width, 3] in 0..1."""
    mean = torch.tensor(preprocessing.mean).view(-1, 1, 1)
    std = torch.tensor(preprocessing.std).view(-1, 1, 1)
    shown = (image.cpu() * std + mean).clamp(0, 1).expand(3, -1, -1)
    found: np.ndarray = shown.permute(1, 2, 0).numpy()
    return found


def write_figure(folder: Path, name: str, figure: Any) -> list[str]:
    """Write a figure as NAME.png and NAME.svg; return the files' names."""
    files = {f"{name}.{kind}": content for kind, content in figure_files(figure).items()}
    for file, content in files.items():
        write_bytes(folder / file, content)
    return list(files)
