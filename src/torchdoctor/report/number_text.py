"""Write numbers and settings as short text for a page."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float


def number(value: float | None, digits: int = 1) -> str:
    """Write a number with a fixed number of decimals.

    Args:
        value: The number.
        digits: How many decimals.

    Returns:
        The text, with commas between thousands and the typographic minus sign; "-" for None and NaN.
    """
    if value is None or math.isnan(value):
        return "-"
    return ("∞" if math.isinf(value) else f"{abs(value):,.{digits}f}").join(["−" if value < 0 else "", ""])


def signed(value: float | None, digits: int = 1) -> str:
    """Write a number with its sign, also where it is positive.

    Args:
        value: The number.
        digits: How many decimals.

    Returns:
        The text; "-" for None and NaN.
    """
    text = number(value, digits)
    return text if text[0] in "-−" else f"+{text}"


def share(value: float | None) -> str:
    """Write a share in percent.

    Args:
        value: The share, in 0..1.

    Returns:
        The text, without decimals; "-" for None and NaN.
    """
    return "-" if value is None or math.isnan(value) else f"{100 * value:.0f} %"


def plain_value(value: object) -> str:
    """Write a setting as short text.

    Args:
        value: The value of the setting.

    Returns:
        The text: floats with 4 digits, lists separated by commas; "-" for None, NaN and empty lists.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(plain_value(entry) for entry in value) or "-"
    return str(value)


def mean_of_known(values: Float[np.ndarray, " *any"]) -> float:
    """Return the mean of the values that are not NaN.

    Args:
        values: The values.

    Returns:
        The mean; NaN if there are no such values.
    """
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan
