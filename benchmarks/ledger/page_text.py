"""Write numbers and tables as Markdown."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

from benchmarks.ledger.gains import Gain

NONE = "–"
NUMBER = re.compile(r"(?:[-–−+*\d.,()/% ]|to|of|one only|open[: a-z]*)*")  # what is aligned right


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table, nothing without rows; columns of numbers are aligned right."""
    found = [list(row) for row in rows]
    if not found:
        return []
    columns = zip(*found, strict=True)
    marks = ["---:" if all(map(NUMBER.fullmatch, column)) else "---" for column in columns]
    return ["", *(f"| {' | '.join(row)} |" for row in [list(heads), marks, *found]), ""]


def points(value: float | None, digits: int = 2) -> str:
    """Return a difference with its sign, a true minus for negative ones."""
    if value is None or not math.isfinite(value):
        return NONE
    return f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", "−")


def percent(value: float | None) -> str:
    """Return an accuracy."""
    return NONE if value is None else f"{value:.2f}"


def with_interval(gain: Gain | None) -> str:
    """Return a gain with its interval; of one seed there is none, and the page says so."""
    if gain is None:
        return NONE
    if not math.isfinite(gain.low):
        return f"{points(gain.mean)} (one only)"
    strong = "**" if gain.sign else ""
    return f"{strong}{points(gain.mean)}{strong} ({points(gain.low)} to {points(gain.high)})"


def least(value: float | None) -> str:
    """Return a gain that could have been seen."""
    return NONE if value is None or not math.isfinite(value) else f"{value:.2f}"


def command(program: str, protocol: str, words: str = "") -> str:
    """Return the command that measures what is open."""
    text = f"python benchmarks/paper/{program}.py --data ROOT --protocol {protocol}"
    return f"`{text}{' ' + words if words else ''}`"
