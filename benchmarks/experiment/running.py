"""The command line that all programs of this folder share."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.experiment.cells import Bench, Cell
from benchmarks.ledger.lines import RESULTS, Ledger
from benchmarks.ledger.protocols import PROTOCOLS, SEEDS, Protocol
from torchdoctor.runs.interruption import interruptible
from torchdoctor.types import Interrupted

NOT_OVER = "budget used up: call again, what is finished is skipped"


def arguments(text: str, *, architectures: Sequence[str], datasets: Sequence[str]) -> argparse.ArgumentParser:
    """Return the parser with the options of every program."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("TORCHDOCTOR_DATA"), help="folder of data sets"
    )
    parser.add_argument("--protocol", choices=list(PROTOCOLS), default="short")
    parser.add_argument("--architectures", nargs="*", default=list(architectures))
    parser.add_argument("--datasets", nargs="*", default=list(datasets))
    parser.add_argument(
        "--image-sizes", type=int, nargs="*", default=[], help="pixels; else the protocol's own"
    )
    parser.add_argument("--seeds", type=int, nargs="*", default=list(range(SEEDS)))
    parser.add_argument("--budget", type=float, help="minutes after which no further cell is begun")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=0, help="of the CPU; 0: all")
    parser.add_argument("--shard", default="0/1", help="i/n: every n-th cell, from the i-th on")
    parser.add_argument("--parallel", type=int, default=1, help="cells at once, each in a process of its own")
    parser.add_argument(
        "--cache", type=Path, default=Path("runs/paper"), help="where trained networks are kept"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the .jsonl files")
    parser.add_argument("--revision", default="", help="git revision, where the code lies outside git")
    parser.add_argument(
        "--resident", action="store_true", help="hold the images on the device, as a GPU always does"
    )
    parser.add_argument(
        "--checkpoints",
        action="store_true",
        help="keep unfinished trainings in the cache and go on with them",
    )
    return parser


def bench_of(given: argparse.Namespace, program: str) -> Bench:
    """Return what the cells of a run share."""
    if given.data is None:
        raise SystemExit("--data is missing: the folder of data sets (or set TORCHDOCTOR_DATA)")
    if given.threads:
        torch.set_num_threads(given.threads)
    deadline = time.monotonic() + 60 * given.budget if given.budget is not None else float("inf")
    return Bench(
        given.data,
        given.cache,
        Ledger(given.results / f"{program}.jsonl"),
        torch.device(given.device),
        deadline,
        given.revision,
        given.resident,
    )


def seeds_of(given: argparse.Namespace, protocol: Protocol, dataset: str) -> Iterator[tuple[int, int]]:
    """Yield (seed, draw of categories): where categories are drawn, every seed has a draw of its own.

    The paper's protocol has more draws than seeds: draw n goes with seed n there.
    """
    draws = protocol.sizes[dataset].draws
    if draws == 1:
        yield from ((seed, 0) for seed in given.seeds)
        return
    yield from ((seed, seed) for seed in (range(draws) if protocol.name == "paper" else given.seeds))


def cells_of(given: argparse.Namespace, bench: Bench) -> list[Cell]:
    """Return the cells of this shard: seed by seed, so that every cell has a first number soon."""
    protocol = PROTOCOLS[given.protocol]
    wanted = [
        (position, Cell(bench, architecture, dataset, seed, protocol, draw, image_size))
        for dataset in given.datasets
        if dataset in protocol.sizes
        for image_size in given.image_sizes or [None]
        for architecture in given.architectures
        for position, (seed, draw) in enumerate(seeds_of(given, protocol, dataset))
    ]
    ordered = [cell for _, cell in sorted(wanted, key=lambda pair: pair[0])]
    first, step = map(int, given.shard.split("/"))
    return ordered[first::step]


def run_in_processes(given: argparse.Namespace) -> None:
    """Run this program again in several processes, each with a share of the cells and of the threads."""
    first, step = map(int, given.shard.split("/"))
    number = given.parallel
    threads = given.threads or max(1, (os.cpu_count() or 1) // number)
    started = [
        subprocess.Popen(
            [sys.executable, *sys.argv, "--parallel", "1", "--threads", str(threads),
             "--shard", f"{first + step * place}/{step * number}"]
        )
        for place in range(number)
    ]  # fmt: skip

    def end(_number: int, _frame: object) -> None:
        for one in started:
            one.terminate()

    signal.signal(signal.SIGTERM, end)  # Ctrl-C reaches them all by itself
    failed = sum(one.wait() != 0 for one in started)
    if failed:
        raise SystemExit(f"{failed} of {number} processes failed; what they finished is kept")


def run_cells(given: argparse.Namespace, bench: Bench, run: Callable[[Cell], bool]) -> None:
    """Run every cell until the time is used up; a cell that fails is named and the others go on.

    With --checkpoints the end of the time, or a signal, ends a training too: its state is kept.
    """
    if given.parallel > 1:
        run_in_processes(given)
        return
    failed = []
    with interruptible() if given.checkpoints else nullcontext() as asked:
        if asked is not None:
            bench = replace(bench, stop=lambda: asked() or bench.over)
        left = cells_of(given, bench)[::-1]
        while left:
            cell = left.pop()  # its images and networks go with it
            name = f"{cell.architecture} {cell.dataset} draw {cell.classes_seed} seed {cell.seed}"
            started = time.monotonic()
            try:
                if (asked is not None and asked()) or not run(cell):
                    print(NOT_OVER, flush=True)
                    return
            except Interrupted as stopped:
                print(f"{name}: {stopped}\n{NOT_OVER}", flush=True)
                return
            except Exception as error:
                failed.append(f"{name}: {type(error).__name__}: {error}")
                print(f"failed: {failed[-1]}", flush=True)
                continue
            print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)
    if failed:
        raise SystemExit(f"{len(failed)} cell(s) failed; the others are finished")
