"""Decode and encode the brush strokes of Label Studio: run lengths of four channels, bit by bit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from torchdoctor.data.annotations import MaskError
from torchdoctor.data.decoding import LARGEST_PIXELS
from torchdoctor.data.mask_formats.annotation import Area

CHANNELS = 4  # red, green, blue, opacity; the opacity holds the strokes
LENGTH_BITS, WORD_BITS, SIZE_BITS = 32, 5, 4  # of the number of values, of a value's size, of a run's size
SIZES = (3, 4, 8, 16)  # bits of the four kinds of run lengths that are written
OPAQUE = 255


class _Bits:
    """A position in a sequence of bits."""

    def __init__(self, content: bytes) -> None:
        """Start at the first bit.

        Args:
            content: The bytes.
        """
        self.bits = np.unpackbits(np.frombuffer(content, dtype=np.uint8))
        self.place = 0

    def words(self, number: int, size: int) -> np.ndarray:
        """Read numbers of the same size.

        Args:
            number: How many.
            size: How many bits each has.

        Returns:
            The numbers.
        """
        end = self.place + number * size
        if end > len(self.bits):
            raise MaskError("brush strokes that end too early", "shape")
        rows = self.bits[self.place : end].reshape(number, size)
        self.place = end
        return rows @ (1 << np.arange(size - 1, -1, -1, dtype=np.int64))

    def word(self, size: int) -> int:
        """Read a number.

        Args:
            size: How many bits it has.

        Returns:
            The number.
        """
        return int(self.words(1, size)[0])


def decode_brush(numbers: object, width: int, height: int) -> Area:
    """Decode brush strokes.

    The bits are: how many values there are (32), the size of a value less one (5), the sizes of four kinds of
    run lengths less one (4 each); then runs: whether all values are equal (1), the kind of length (2), the
    length less one, and the value or the values. Values are those of red, green, blue and opacity in turn.

    Args:
        numbers: The bytes as a list of numbers from 0 to 255.
        width: The width of the image in pixels.
        height: The height of the image in pixels.

    Returns:
        The pixels that are not wholly transparent.

    Raises:
        MaskError: They are no bytes, end too early, or belong to an image of another size.
    """
    if not isinstance(numbers, list) or not all(type(one) is int and 0 <= one < 256 for one in numbers):
        raise MaskError("rle; expected a list of numbers from 0 to 255", "shape")
    if width * height > LARGEST_PIXELS:
        raise MaskError(f"brush strokes on {width} x {height} pixels", "shape")
    bits = _Bits(bytes(numbers))
    total = bits.word(LENGTH_BITS)
    if total != CHANNELS * width * height:
        raise MaskError(
            f"brush strokes of {total} values; expected {CHANNELS} x {width} x {height}", "wrong size"
        )
    size = bits.word(WORD_BITS) + 1
    kinds = [bits.word(SIZE_BITS) + 1 for _ in range(4)]
    values = np.zeros(total, dtype=bool)
    place = 0
    while place < total:
        equal = bits.word(1)
        end = place + 1 + bits.word(kinds[bits.word(2)])
        if end > total:
            raise MaskError("brush strokes with a run beyond the image", "shape")
        values[place:end] = bits.word(size) if equal else bits.words(end - place, size)
        place = end
    return values.reshape(height, width, CHANNELS)[:, :, CHANNELS - 1]


def encode_brush(area: Area) -> list[int]:
    """Encode pixels as brush strokes.

    Args:
        area: The pixels; they become opaque, the others transparent.

    Returns:
        The bytes as numbers, which `decode_brush` reads.
    """
    values = np.repeat(np.where(area, OPAQUE, 0).astype(np.uint8).ravel(), CHANNELS)
    text = [f"{len(values):0{LENGTH_BITS}b}", f"{7:0{WORD_BITS}b}"]
    text += [f"{size - 1:0{SIZE_BITS}b}" for size in SIZES]
    for value, length in _runs(values):
        kind = next(place for place, size in enumerate(SIZES) if length <= 1 << size)
        text.append(f"1{kind:02b}{length - 1:0{SIZES[kind]}b}{value:08b}")
    bits = "".join(text)
    bits += "0" * (-len(bits) % 8)
    return [int(bits[place : place + 8], 2) for place in range(0, len(bits), 8)]


def _runs(values: UInt8[np.ndarray, " value"]) -> Sequence[tuple[int, int]]:
    """Return equal values in a row as (value, length), none longer than a length can say."""
    starts = np.concatenate([[0], np.flatnonzero(np.diff(values)) + 1])
    lengths = np.diff(np.concatenate([starts, [len(values)]]))
    longest = 1 << SIZES[-1]
    return [
        (int(values[start]), min(longest, int(length) - done))
        for start, length in zip(starts, lengths, strict=True)
        for done in range(0, int(length), longest)
    ]
