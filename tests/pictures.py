"""Small drawn images that the tests share: a pure red rectangle is the object."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from torchdoctor.data.pixels import Preprocessing
from torchdoctor.data.table import ImageTable

RAW = Preprocessing(32, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def scene(number: int, size: int = 32) -> tuple[Image.Image, Image.Image]:
    """Draw a pure red rectangle on grey-blue noise, and its mask."""
    generator = np.random.default_rng(number)
    image = np.repeat(generator.integers(0, 200, (size, size, 1)), 3, axis=2).astype(np.uint8)
    mask = np.zeros((size, size), dtype=np.uint8)
    top, left = generator.integers(0, size - 12, 2)
    mask[top : top + 12, left : left + 9] = 255
    image[mask == 255] = (255, 0, 0)
    return Image.fromarray(image), Image.fromarray(mask)


def png(image: Image.Image) -> bytes:
    """Return a picture as the content of a PNG file."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def table_of(count: int, categories: int = 3, masked: bool = True) -> ImageTable:
    drawn = [scene(number) for number in range(count)]
    return ImageTable(
        tuple(f"c{n}" for n in range(categories)),
        np.arange(count) % categories,
        tuple(f"image {n}" for n in range(count)),
        np.arange(count),
        lambda position: (drawn[position][0], drawn[position][1] if masked else None),
        np.full(count, masked),
    )


def is_red(images: torch.Tensor) -> torch.Tensor:
    return ((images[:, :1] == 1) & (images[:, 1:2] == 0)).float()


def same(one, other) -> bool:
    parts = ("images", "labels", "ids", "masks", "annotated")
    return all(torch.equal(getattr(one, part), getattr(other, part)) for part in parts)


def write_split(folder: Path, counts: dict[str, int], masked: bool = False, exist_ok: bool = False) -> None:
    for category, count in counts.items():
        (folder / category).mkdir(parents=True, exist_ok=exist_ok)
        for number in range(count):
            image, mask = scene(number)
            image.save(folder / category / f"{number}.png")
            if masked:
                ending = ".mask.png" if number % 2 else "_mask.png"
                mask.save(folder / category / f"{number}{ending}")
