"""Draw noise and choices from integer keys: the same bits on every device, in any order or chunk."""

from __future__ import annotations

import hashlib

import torch
from jaxtyping import Float, Int
from torch import Tensor

_MIX_FIRST, _MIX_SECOND, _GOLDEN = 0x7FEB352D, 0x846CA68B - (1 << 32), 0x9E3779B9 - (1 << 32)


def key(*parts: int | str) -> int:
    """Return a number that depends on every part and on their order, to seed a generator with.

    Args:
        parts: Numbers and words that name what is drawn, such as `"shuffle", seed, epoch`.

    Returns:
        A number from 0 to 2^63 - 1: the same in every process and on every system.

    Example:
        >>> from torchdoctor.randomness import key
        >>> key("shuffle", 0, 3) == key("shuffle", 0, 3), key(1, 2) == key(2, 1)
        (True, False)
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def _mix(state: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """Scramble 32-bit integers: two multiply-and-shift rounds with logical shifts, wrapping on overflow.

    Written into what each shift made: large tensors cost more to allocate than to compute.
    """
    state = (state >> 16).bitwise_and_(0xFFFF).bitwise_xor_(state).mul_(_MIX_FIRST)
    state = (state >> 15).bitwise_and_(0x1FFFF).bitwise_xor_(state).mul_(_MIX_SECOND)
    return (state >> 16).bitwise_and_(0xFFFF).bitwise_xor_(state)


def _signed(value: int) -> int:
    """Read the low 32 bits of `value` as a signed integer."""
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value >= 1 << 31 else value


def uniform_noise(
    ids: Int[Tensor, " image"],
    draws: range,
    shape: tuple[int, int, int],
    *,
    seed: int,
    layer: str,
    stream: str = "diagnosis",
    step: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "draw image channel height width"]:
    """Draw sigma of Eq. 4, uniform in (-1, 1), keyed by (seed, stream, step, layer, image, draw, position).

    The values are multiples of 2^-24, so that float32 and float64 hold the same numbers.

    Args:
        ids: The images' ids; the noise is drawn on their device.
        draws: The numbers of the draws.
        shape: [channel, height, width] of the layer's map.
        seed: What everything random in a run is keyed by.
        layer: The name of the layer.
        stream: What the noise is for, so that two uses do not share their noise.
        step: The step of a training.
        dtype: The floating type of the noise.

    Returns:
        The noise, to be multiplied by the range delta.

    Example:
        >>> import torch
        >>> from torchdoctor.randomness import uniform_noise
        >>> both = uniform_noise(torch.tensor([7, 8]), range(3), (4, 2, 2), seed=0, layer="conv1")
        >>> second = uniform_noise(torch.tensor([8]), range(1, 2), (4, 2, 2), seed=0, layer="conv1")
        >>> both.shape, torch.equal(both[1, 1], second[0, 0])
        (torch.Size([3, 2, 4, 2, 2]), True)
    """
    device = ids.device
    start = key("noise", seed, stream, step, layer)
    base = torch.tensor(_signed(start), dtype=torch.int32, device=device)
    second = torch.tensor(_signed(start >> 31), dtype=torch.int32, device=device)
    image_keys = _mix(_mix(ids.to(torch.int32) + base) ^ second)
    draw_keys = torch.arange(draws.start, draws.stop, dtype=torch.int32, device=device) * _GOLDEN
    keys = _mix(image_keys[None, :] ^ _mix(draw_keys + second)[:, None])
    positions = torch.arange(shape[0] * shape[1] * shape[2], dtype=torch.int32, device=device)
    bits = _mix(_mix(positions * _GOLDEN + base) ^ keys[:, :, None])
    units = bits.bitwise_right_shift_(8).bitwise_and_(0xFFFFFF).to(dtype)
    return units.add_(0.5).mul_(2.0**-23).sub_(1.0).view(len(draws), len(ids), *shape)
