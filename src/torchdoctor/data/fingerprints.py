"""Recognise whether a data set has changed, without decoding it, by hashes of what each split holds.

A reader of images can have a method `stamp(position)`. It returns two byte strings: the first changes when
the image changes, the second when its mask changes. `fingerprint` hashes these. The stamp of a file is its
length and its first and last 4 KiB. It notices files that were replaced or encoded again, and every change of
a small file, but not a change in the middle of a long file that keeps its length. The times of files do not
count, so that a copy of a data set has the same fingerprint.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt64

from torchdoctor.data.table import ImageTable

ENDS = 4096  # how many bytes of each end of a file belong to its stamp
DIGITS = 16  # how many hexadecimal digits of a hash are stored


def stamp_of_file(path: Path) -> bytes:
    """Return the length, the first and the last 4 KiB of a file.

    Args:
        path: The file.

    Returns:
        The stamp; empty for a file that cannot be read, which decoding reports later.
    """
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
    """Return the length, the first and the last 4 KiB of the content of a file in memory.

    Args:
        content: Any object with the buffer protocol, such as bytes.

    Returns:
        The same stamp as `stamp_of_file` for a file with this content.
    """
    view = memoryview(content)
    ends = view if len(view) <= 2 * ENDS else bytes(view[:ENDS]) + bytes(view[-ENDS:])
    return len(view).to_bytes(8, "little") + bytes(ends)


def image_hashes(table: ImageTable) -> UInt64[np.ndarray, " image"] | None:
    """Return a hash for each image, equal where the stamps of two images are equal.

    A reader whose images come from a formula can have a method `identity(position)`, which returns bytes that
    no other image has; then no image is drawn for its stamp.

    Args:
        table: The images.

    Returns:
        Hashes of 8 bytes in the order of the table; None where its reader has neither method, or has an empty
        stamp of an image.
    """
    stamp, identity = getattr(table.read, "stamp", None), getattr(table.read, "identity", None)
    if stamp is None and identity is None:
        return None
    content: list[bytes] = [
        identity(place) if identity is not None else stamp(place)[0] for place in range(len(table))
    ]
    if not all(content):  # an empty stamp is of an image that is known only when it is decoded
        return None
    hashes = [hashlib.blake2b(each, digest_size=8).digest() for each in content]
    return np.frombuffer(b"".join(hashes), dtype="<u8").astype(np.uint64)


def fingerprint(table: ImageTable) -> dict[str, object]:
    """Return counts and hashes that change when the images of a split change.

    Args:
        table: The split. If its reader has no method `stamp`, only the names of the images count, and for
            masks only which images have a mask.

    Returns:
        `images` and `masks` (counts), and `labels_sha256` (labels, ids and category names),
        `images_sha256` and `masks_sha256`, each the first 16 digits of a hash.
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
