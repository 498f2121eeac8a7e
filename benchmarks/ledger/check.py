"""Measure one number of the ledger again and compare it with what was recorded.

    python benchmarks/ledger/check.py CELL --data ROOT [--cache FOLDER] [--threads N] [--device cuda]

CELL is table1/shufflenet_v2/fashion_mnist/0/28/channel/ours/1/short: program, architecture, data set, draw of
categories, image size, arm, variant (may be empty), seed, protocol. `make ledger-check CELL=...` does this.
The base network is trained anew, into a temporary cache unless --cache names one, and with it the control and
the one arm; the recorded number of threads is used. On a CPU with the same versions and threads every
accuracy has to be the same to the last image. Elsewhere it may differ: what differs is named, and up to
--tolerance points pass with a warning. Exit code 1: the number was not confirmed; 2: it cannot be checked.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.experiment.cells import Bench, Cell
from benchmarks.ledger.gains import Arms, by_place, control_of
from benchmarks.ledger.lines import KEY, RESULTS, Key, Ledger, Line, key_from, key_of
from benchmarks.ledger.protocols import PROTOCOLS

# The module and its function that measures a cell.
PROGRAMS = {
    "table1": ("table1", "table_1"),
    "table2": ("table2", "table_2"),
    "table3": ("table3", "table_3"),
    "figure1": ("figure1", "figure_1"),
    "figure2": ("figure2", "figure_2"),
    "figure3": ("figure3", "figure_3"),
    "figure4": ("figure4", "figure_4"),
    "figure5": ("figure5", "figure_5"),
    "figure6": ("figure6", "figure_6"),
}
NOT_COMPARED = {*KEY, "seconds", "threads"}
CONFIRMED, NOT_CONFIRMED, NOT_CHECKED = 0, 1, 2


class CannotCheck(Exception):
    """Why a cell cannot be measured again."""


def program_of(name: str) -> Callable[[Cell], bool]:
    """Return the function that measures a program's cells; CannotCheck where there is none."""
    if name not in PROGRAMS:
        raise CannotCheck(f"program {name!r} is unknown; there are {', '.join(PROGRAMS)}")
    module, function = PROGRAMS[name]
    try:
        return getattr(importlib.import_module(f"benchmarks.paper.{module}"), function)
    except ModuleNotFoundError as error:
        if error.name != f"benchmarks.paper.{module}":
            raise
        raise CannotCheck(f"program {name!r} is not there yet: no benchmarks/paper/{module}.py") from None


def recorded(results: Path, key: Key) -> tuple[Line, list[Line]]:
    """Return a recorded line and all lines of its cell; CannotCheck where it is not there."""
    same = [name for name in KEY if name not in ("arm", "variant")]
    lines = [
        line
        for line in Ledger(results / f"{key.program}.jsonl").lines()
        if all(line[name] == getattr(key, name) for name in same)
    ]
    for line in lines:
        if key_of(line) == key:
            return line, lines
    there = ", ".join(sorted(f"{one['arm']}/{one['variant']}" for one in lines)) or "nothing"
    raise CannotCheck(f"{key.text} is not in {results / f'{key.program}.jsonl'}; of this cell: {there}")


def kept(key: Key, lines: Sequence[Line]) -> list[Line]:
    """Return the lines that need not be measured again for this one to be.

    The base is always measured again. A control is measured beside one of its arms: without any, it would
    not see the annotated images that the arms saw.
    """
    arms: Arms = next(iter(by_place(lines).values()))
    again = {(key.arm, key.variant)}
    if key.arm == "control":
        beside = [
            (arm, variant)
            for arm, variant in arms
            if arm not in ("base", "control") and control_of(arms, variant) == key.variant
        ]
        again |= set(sorted(beside, key=lambda one: not one[1].endswith("ours"))[:1])  # `ours` is quicker
    return [line for line in lines if line["arm"] != "base" and (line["arm"], line["variant"]) not in again]


def measure_again(
    key: Key, lines: Sequence[Line], given: argparse.Namespace, folder: Path
) -> dict[Key, Line]:
    """Measure a cell in a folder of its own, and return its lines."""
    ledger = Ledger(folder / f"{key.program}.jsonl")
    ledger.file.write_text("".join(json.dumps(line) + "\n" for line in kept(key, lines)))
    resident = any(line.get("resident", False) for line in lines)
    bench = Bench(
        given.data, given.cache or folder / "cache", ledger, torch.device(given.device), resident=resident
    )
    protocol = PROTOCOLS[key.protocol]
    cell = Cell(bench, key.architecture, key.dataset, key.seed, protocol, key.classes_seed, key.image_size)
    program_of(key.program)(cell)
    return {key_of(line): line for line in ledger.lines()}


def differences(before: Line, now: Line) -> dict[str, float]:
    """Return how far every number of two lines is apart, in points; what only one has is infinitely far."""
    found = {}
    for name in before.keys() | now.keys():
        one, other = before.get(name), now.get(name)
        if name in NOT_COMPARED or not (_is_number(one) or _is_number(other)):
            continue
        found[name] = abs(now[name] - before[name]) if _is_number(one) and _is_number(other) else float("inf")
    return dict(sorted(found.items()))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def surroundings(before: Line, now: Line) -> list[str]:
    """Return what else is not the same: versions, device, threads, the code's revision."""
    found = []
    for name in ("device", "threads", "revision", "settings"):
        if before.get(name) != now.get(name):
            found.append(f"{name}: {before.get(name)} then, {now.get(name)} now")
    was, there = before.get("versions", {}), now.get("versions", {})
    for name in sorted(was.keys() | there.keys()):
        if was.get(name) != there.get(name):
            found.append(f"{name}: {was.get(name)} then, {there.get(name)} now")
    return found


def exact(before: Line, now: Line) -> bool:
    """Whether the numbers have to be the same: on a CPU, with the same versions and threads."""
    return all(before.get(name) == now.get(name) for name in ("device", "threads", "versions")) and str(
        now.get("device", "")
    ).startswith("cpu")


def judge(before: Line, now: Line, tolerance: float) -> tuple[int, list[str]]:
    """Return the exit code and what to say about one line measured twice."""
    apart = {name: value for name, value in differences(before, now).items() if value > 0}
    words = [f"{key_of(before).text}: {before['accuracy']:g} % then, {now['accuracy']:g} % now"]
    if not apart:
        return CONFIRMED, [*words, "confirmed: the same to the last image"]
    words.append("apart by: " + ", ".join(f"{name} {value:g}" for name, value in apart.items()))
    other = surroundings(before, now)
    words += [f"not the same: {one}" for one in other]
    if exact(before, now):
        return NOT_CONFIRMED, [*words, "NOT confirmed: with these versions and threads it has to be the same"]
    if apart.get("accuracy", 0.0) > tolerance:
        return NOT_CONFIRMED, [*words, f"NOT confirmed: the accuracy is more than {tolerance:g} points away"]
    return CONFIRMED, [*words, f"warning: not the same, but within {tolerance:g} points"]


def check(given: argparse.Namespace) -> int:
    """Check one cell, say what was found, and return the exit code."""
    try:
        key = key_from(given.cell)
        line, lines = recorded(given.results, key)
        program_of(key.program)
    except (CannotCheck, ValueError) as error:
        print(f"cannot check: {error}")
        return NOT_CHECKED
    threads = given.threads or line.get("threads")
    if threads:
        torch.set_num_threads(int(threads))
    with tempfile.TemporaryDirectory() as folder:
        found = measure_again(key, lines, given, Path(folder))
    if key not in found:
        print(f"cannot check: {key.program} did not measure {key.text} again")
        return NOT_CHECKED
    code = CONFIRMED
    measured: Mapping[Key, Line] = {key_of(one): one for one in lines if one["arm"] in ("base", key.arm)}
    for one, before in measured.items():  # the base first: where it differs, the arm has to
        if one == key or (one.arm == "base" and one in found and key.arm != "base"):
            own, words = judge(before, found[one], given.tolerance)
            print("\n".join(words))
            code = own if one == key else code
    return code


def main() -> None:
    """Check the cell of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("cell")
    parser.add_argument("--data", type=Path, default=os.environ.get("TORCHDOCTOR_DATA"), required=False)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--cache", type=Path, help="of trained networks; by default the base is trained anew")
    parser.add_argument("--threads", type=int, default=0, help="of the CPU; 0: as recorded")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--tolerance", type=float, default=1.0, help="points that other surroundings may cost"
    )
    given = parser.parse_args()
    if given.data is None:
        raise SystemExit("--data is missing: the folder of data sets (or set TORCHDOCTOR_DATA)")
    sys.exit(check(given))


if __name__ == "__main__":
    main()
