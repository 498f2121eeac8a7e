"""Kill a treatment at random moments and compare what it ends with, bit for bit.

    python benchmarks/study/kills.py [--kills 30] [--out results/kills.json]

A small network is trained on `scenes` and treated once without interruption. Then the same treatment is
run in a process of its own that is killed (SIGKILL) after a random time, gone on with by `--resume`, killed
again, and so on, until it ends; this is repeated until so many kills have happened. Every weight file and
history must be equal to the uninterrupted run's.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LIMIT = ["--limit", "40", "--epochs", "2", "--seeds", "2", "--batch-size", "32", "--layers", "layer2.conv2"]


def results(folder: Path) -> dict[str, str]:
    """Return the sha256 of every weight file and history (without its seconds) of a run."""
    found = {}
    for file in sorted((folder / "treatment").rglob("*")):
        if file.name in ("model.safetensors", "history.json", "prescription.json"):
            lines = [line for line in file.read_bytes().split(b"\n") if b'"seconds"' not in line]
            found[file.relative_to(folder).as_posix()] = hashlib.sha256(b"\n".join(lines)).hexdigest()
    return found


def start(folder: Path, weights: Path, *more: str) -> subprocess.Popen[bytes]:
    """Start the treatment in a process of its own."""
    command = [sys.executable, "-m", "torchdoctor", "treat", "--weights", str(weights), "--data", "scenes",
               "--out", str(folder), "--arms", "control,treated,swap", *LIMIT, *more]  # fmt: skip
    environment = {**os.environ, "TORCHDOCTOR_CHECKPOINT_STEPS": "3"}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)


def finished(process: subprocess.Popen[bytes]) -> int:
    """Wait for a process; its exit code, or an error with what it said."""
    _, said = process.communicate()
    if process.returncode not in (0, 4, -signal.SIGKILL):
        raise SystemExit(f"exit {process.returncode}: {said.decode()}")
    return process.returncode


def main() -> None:
    """Kill as often as asked, and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    chance = random.Random(given.seed)
    place = Path(tempfile.mkdtemp())
    base = place / "base"
    subprocess.run(
        [sys.executable, "-m", "torchdoctor", "train", "--model", "small_resnet", "--data", "scenes",
         "--limit", "40", "--epochs", "3", "--out", str(base)],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    weights = base / "model.safetensors"
    began = time.perf_counter()
    finished(start(place / "whole", weights))
    seconds = time.perf_counter() - began
    wanted = results(place / "whole")
    kills, runs, equal, moments = 0, 0, 0, []
    while kills < given.kills:
        folder = place / f"run{runs}"
        while True:
            process = start(folder, weights, "--resume")
            wait = chance.uniform(0, seconds) if kills < given.kills else seconds * 100
            try:
                process.wait(wait)
            except subprocess.TimeoutExpired:
                process.kill()
            if finished(process) != -signal.SIGKILL:
                break
            kills += 1
            moments.append(round(wait, 2))
        runs += 1
        found = results(folder)
        same = found == wanted
        equal += same
        odd = [name for name in wanted if found.get(name) != wanted[name]]
        print(f"run {runs}: {kills} kills so far, {'equal' if same else f'DIFFERENT: {odd}'}", flush=True)
        shutil.rmtree(folder)
    record = {
        "kills": kills, "runs": runs, "bit_identical": equal, "files_compared": len(wanted),
        "seconds_uninterrupted": round(seconds, 1), "seconds_before_each_kill": moments,
    }  # fmt: skip
    print(json.dumps(record))
    if given.out:
        given.out.write_text(json.dumps(record, indent=1) + "\n")
    shutil.rmtree(place)
    raise SystemExit(0 if equal == runs else 1)


if __name__ == "__main__":
    main()
