"""Images that lie in blocks on disk, of which a whole one must be read for any of its images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

Rows = Int[np.ndarray, " image"]


@runtime_checkable
class BlockReader(Protocol):
    """Reads the encoded images of blocks, such as the row groups of Parquet files."""

    @property
    def blocks(self) -> Rows:
        """The number of the block that each image lies in."""

    @property
    def window(self) -> int:
        """How many blocks it keeps in memory."""

    def content(self, position: int, apart: bool = False) -> Any:
        """Return an encoded image, and what belongs to it.

        Args:
            position: The position of the image.
            apart: Whether the image is needed out of turn: its block then takes no place in memory.

        Returns:
            What a process that decodes is handed.
        """

    def hand_over(self, contents: Mapping[int, Any]) -> None:
        """Keep contents that were read elsewhere, for the images that are decoded next.

        Args:
            contents: What `content` returned, by the position of the image; earlier ones are dropped.
        """


@dataclass(frozen=True)
class OnDisk:
    """The images of a table that lie in blocks.

    Attributes:
        reader: The reader of the blocks.
        rows: The position in the reader of each image of the table.
    """

    reader: BlockReader
    rows: Rows

    @property
    def blocks(self) -> Rows:
        """The block of each image of the table."""
        return self.reader.blocks[self.rows]

    @property
    def shuffled_within(self) -> int:
        """Among how many images, on average, an epoch is shuffled."""
        blocks = len(np.unique(self.blocks))
        return min(len(self.rows), round(self.reader.window * len(self.rows) / max(1, blocks)))

    def select(self, rows: Rows) -> OnDisk:
        """Return some of the images.

        Args:
            rows: Their positions in the table.

        Returns:
            The same reader with these images.
        """
        return OnDisk(self.reader, self.rows[rows])


def on_disk(read: object) -> OnDisk | None:
    """Return where the images of a reader lie, if they lie in blocks.

    Args:
        read: The reader; one that knows of blocks has an attribute `on_disk`.

    Returns:
        The images in their blocks; None where any image can be read by itself.
    """
    return getattr(read, "on_disk", None)
