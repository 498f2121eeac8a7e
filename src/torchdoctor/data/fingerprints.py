"""Tell whether a data set is still the same, without decoding it: fingerprints of what each split holds.

A reader of images that has a method `stamp(position)` returns bytes that change with the image and bytes that
change with its mask; `fingerprint` hashes them. Of a file they are its length and its first and last 4 KiB,
which sees any file that was replaced or encoded anew, and every change of a small one, but not a change
amid a long file that keeps its length. Times do not count: a copy of a data set is the same data set.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from torchdoctor.data.table import ImageTable

ENDS = 4096  # bytes of either end of a file that are looked at
DIGITS = 16


def stamp_of_file(path: Path) -> bytes:
    """Return the length and both ends of a file; nothing for one that cannot be read: decoding names it."""
    try:
        with path.open("rb", buffering=0) as file:
            length = os.fstat(file.fileno()).st_size
            head = file.read(2 * ENDS if length <= 2 * ENDS else ENDS)
            if length <= 2 * ENDS:
                return length.to_bytes(8, "little") + head
            file.seek(-ENDS, os.SEEK_END)
            return length.to_bytes(8, "little") + head + file.read(ENDS)
    except OSError:
        return b""


def stamp_of_bytes(content: Any) -> bytes:
    """Return the length and both ends of what is in memory already, as of a file."""
    view = memoryview(content)
    ends = view if len(view) <= 2 * ENDS else bytes(view[:ENDS]) + bytes(view[-ENDS:])
    return len(view).to_bytes(8, "little") + bytes(ends)


def fingerprint(table: ImageTable) -> dict[str, object]:
    """Return counts, and hashes of the labels (with ids and categories), the images and the masks.

    Where a reader has no `stamp`, images count by their names alone, and masks by their being there.
    """
    labels = hashlib.sha256(repr(table.classes).encode())
    labels.update(np.ascontiguousarray(table.ids, dtype="<i8").tobytes())
    labels.update(np.ascontiguousarray(table.labels, dtype="<i8").tobytes())
    images = hashlib.sha256("\0".join(table.names).encode("utf-8", "surrogatepass"))
    masks = hashlib.sha256(np.packbits(table.has_mask).tobytes())
    stamp = getattr(table.read, "stamp", None)
    for position in range(len(table)) if stamp is not None else ():
        image, mask = stamp(position)
        images.update(image)
        masks.update(mask)
    return {
        "images": len(table),
        "masks": int(table.has_mask.sum()),
        "labels_sha256": labels.hexdigest()[:DIGITS],
        "images_sha256": images.hexdigest()[:DIGITS],
        "masks_sha256": masks.hexdigest()[:DIGITS],
    }
