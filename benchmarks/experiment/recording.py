"""Add lines that are no treatment's, and keep pictures beside the lines."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from benchmarks.experiment.cells import Bench, Cell
from benchmarks.experiment.running import run_cells
from benchmarks.ledger.lines import Line, device_words, revision_here
from torchdoctor.report.pictures import figure_files

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#1f6fb2", "#d97a1d", "#009e73", "#b65d9b", "#56b4e9", "#8c6d1f")  # by place, colour-blind safe
ARM_COLOURS = {"control": "#8a949e", "channel": "#1f6fb2", "space": "#d97a1d", "all": "#009e73"}


def is_missing(cell: Cell, program: str, arm: str, variant: str) -> bool:
    """Whether a result has still to be measured."""
    done = cell.bench.ledger.keys()
    return cell.key(program, arm, variant) not in done


def record(
    cell: Cell,
    program: str,
    values: Mapping[str, Any],
    *,
    arm: str = "base",
    variant: str = "",
    settings: Mapping[str, Any] | None = None,
    seconds: float = 0.0,
) -> None:
    """Add one result, unless it is there."""
    if not is_missing(cell, program, arm, variant):
        return
    words: dict[str, Any] = {
        "settings": dict(settings or {}),
        "threads": torch.get_num_threads(),
        "seconds": round(seconds, 1),
    }
    if cell.bench.holds_images:
        words["resident"] = True
    cell.bench.ledger.append(
        cell.key(program, arm, variant),
        {**values, **words},
        revision=cell.bench.revision or revision_here(),
        device=device_words(cell.bench.device),
    )


def number(value: float, digits: int = 4) -> float | None:
    """Return a number as a line holds it; None for what is not one."""
    return round(float(value), digits) if math.isfinite(value) else None


def lines_of(given: argparse.Namespace, bench: Bench, dataset: str) -> list[Line]:
    """Return the lines that a data set's pictures are drawn from: of the networks and protocol asked for."""
    return [
        line
        for line in bench.ledger.lines()
        if line["dataset"] == dataset
        and line["protocol"] == given.protocol
        and line["architecture"] in given.architectures
    ]


def run_and_draw(
    given: argparse.Namespace,
    bench: Bench,
    run: Callable[[Cell], bool],
    draw: Callable[[argparse.Namespace, Bench], None],
) -> None:
    """Measure what is missing, then draw what there is, also where a cell failed."""
    try:
        run_cells(given, bench, run)
    finally:
        draw(given, bench)


def picture_name(protocol: str, *words: str) -> str:
    """Return what a picture is called; those of other protocols than `short` say so."""
    return "-".join([*words, *([protocol] if protocol != "short" else [])]) + ".png"


def keep_picture(figure: Figure, bench: Bench, name: str) -> None:
    """Write a picture beside the ledger, as a whole."""
    file = bench.ledger.file.parent / "figures" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{name}.{os.getpid()}")
    partial.write_bytes(figure_files(figure)["png"])
    partial.replace(file)
    print(f"drawn: {file}", flush=True)


def has_picture(bench: Bench, name: str) -> bool:
    """Whether a picture is there."""
    return (bench.ledger.file.parent / "figures" / name).is_file()


def mean_of(values: Sequence[float | None]) -> float:
    """Return the mean of the numbers that are known; NaN if there is none."""
    known = [one for one in values if one is not None and math.isfinite(one)]
    return float(np.mean(known)) if known else math.nan
