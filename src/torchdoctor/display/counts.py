"""Write a number with its noun: one image, two images."""

from __future__ import annotations


def count_of(number: int, one: str, many: str | None = None) -> str:
    """Return a number with the words that follow it, in the singular for 1.

    Args:
        number: How many there are.
        one: What follows the number 1, such as `image` or `image has`.
        many: What follows every other number; None: `one` with an s, where it is a noun with such a plural.

    Returns:
        A text such as `1 image` or `1,080 images`.

    Example:
        >>> count_of(1, "image"), count_of(0, "image has", "images have")
        ('1 image', '0 images have')
    """
    if number == 1:
        return f"1 {one}"
    return f"{number:,} {f'{one}s' if many is None else many}"
