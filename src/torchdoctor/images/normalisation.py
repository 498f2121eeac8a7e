"""The usual ways to normalise pixels, and how numbers for colours are meant for grey images."""

from __future__ import annotations

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Ways to normalise pixels in 0..1 that training scripts use: (pixels - mean) / std, by their name.
NORMALISATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "ImageNet's mean and standard deviation": (IMAGENET_MEAN, IMAGENET_STD),
    "pixels in 0..1 (--mean 0 --std 1)": ((0.0,), (1.0,)),
    "pixels in -1..1 (--mean 0.5 --std 0.5)": ((0.5,), (0.5,)),
    "pixels in 0..255 (--mean 0 --std 0.00392157)": ((0.0,), (1 / 255,)),
}


def per_channel(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Give each channel a number.

    Args:
        values: The numbers: one for all channels, or one for each channel of colour images.
        channels: The number of channels.

    Returns:
        As many numbers as there are channels; where that is another number than that of `values`, each is
        their mean.
    """
    return values if len(values) == channels else (sum(values) / len(values),) * channels
