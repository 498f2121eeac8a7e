"""Arrow files of the library datasets that are larger than memory: blocks of rows that lie side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from torchdoctor.data.readers import parquet_blocks
from torchdoctor.types import first_line

ROWS = 100  # images of a block: as many as the library writes at once


@dataclass(frozen=True)
class ArrowBlocks:
    """The rows of a data set whose Arrow files are mapped into memory, in blocks of `ROWS` rows.

    The system reads what is looked at and forgets it again, so nothing is kept here, and every process that
    decodes reads for itself. An epoch goes through the blocks as through the row groups of Parquet files, so
    that files are read in large pieces.

    Attributes:
        images: The number of images.
        size: The size of the encoded images, in bytes.
    """

    images: int
    size: int

    @property
    def blocks(self) -> Int[np.ndarray, " image"]:
        """The number of the block that each image lies in."""
        return np.arange(self.images) // ROWS

    @property
    def window(self) -> int:
        """How many blocks are shuffled among themselves: those of `WINDOW_BYTES`, at least 1."""
        return max(1, int(parquet_blocks.WINDOW_BYTES * self.images / max(1, self.size * ROWS)))

    def content(self, position: int, apart: bool = False) -> None:
        """Hand nothing to the process that decodes.

        Args:
            position: The position of the image; not used.
            apart: Not used.
        """

    def hand_over(self, contents: Mapping[int, Any]) -> None:
        """Keep nothing.

        Args:
            contents: Not used.
        """


def arrow_blocks(rows: Any) -> ArrowBlocks | None:
    """Return the blocks of a data set, where its images are too large to be read in any order.

    Args:
        rows: The data set of the library, with the column of images alone.

    Returns:
        The blocks; None where the encoded images take at most `ENCODED_BYTES`, or where rows that follow each
        other do not lie side by side.
    """
    if rows._indices is not None or rows.data.nbytes <= parquet_blocks.ENCODED_BYTES:
        return None
    return ArrowBlocks(len(rows), int(rows.data.nbytes))


def damaged_file(folder: Path) -> str | None:
    """Find the first Arrow file in a folder that cannot be read to its end.

    Args:
        folder: What `save_to_disk` wrote.

    Returns:
        The file and what is wrong with it; None where all can be read.
    """
    for file in sorted(folder.rglob("*.arrow")):
        try:
            with pa.memory_map(str(file)) as source:
                for _ in pa.ipc.open_stream(source):
                    pass
        except (pa.ArrowException, OSError) as error:
            return f"{file} is damaged or cut off ({first_line(error)})"
    return None
