"""Measure how a diagnosis scales over processes: twice the images by two processes, each with one thread.

    python benchmarks/speed/processes.py [--processes 2] [--images 400] [--image-size 64] [--repeats 3]
        [--out FILE.json]

First the diagnosis of all processes is compared with that of one: it must be equal bit for bit. Then one
process diagnoses N images and P processes diagnose P x N, alternately; a process has one thread. The ratio is
that of images per second, medians of the repeats. It needs P free cores: on a busy machine it says nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from torchdoctor import Batch, diagnose, load_model
from torchdoctor.diagnosis.result import Diagnosis
from torchdoctor.processes import launched

LAYERS = ("layer4.1.conv2",)
BATCH = 20


def work(images: int, size: int) -> None:
    """Diagnose made-up images together with the other processes; print the seconds and a digest."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    names = tuple(map(str, range(10)))
    model = load_model("torchvision:resnet18", names).eval()
    ids = torch.arange(images)
    pixels = torch.randn(images, 3, size, size, generator=torch.Generator().manual_seed(1))
    batches = [Batch(pixels[part], part % len(names), part) for part in ids.split(BATCH)]
    processes = launched()
    diagnose(model, batches[: 2 * processes.count], layers=LAYERS, confidence=0.0, processes=processes)
    processes.wait()
    started = time.perf_counter()
    found = diagnose(model, batches, layers=LAYERS, confidence=0.0, processes=processes)
    processes.wait()
    seconds = time.perf_counter() - started
    if processes.main:
        print(json.dumps({"seconds": seconds, "numbers": digest_of(found)}))
    processes.leave()


def digest_of(diagnosis: Diagnosis) -> str:
    """Return the sha256 of the correlations of all layers."""
    digest = hashlib.sha256()
    for layer in diagnosis.layers:
        digest.update(layer.correlation.tobytes())
    return digest.hexdigest()


def run(processes: int, images: int, size: int) -> dict[str, object]:
    """Start processes that diagnose together; return what the main one prints."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, __file__, "--work", "--images", str(images), "--image-size", str(size)]
    started = []
    for rank in range(processes):
        ranked = {
            "WORLD_SIZE": str(processes), "RANK": str(rank), "LOCAL_RANK": str(rank),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            "LOCAL_WORLD_SIZE": str(processes), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
        }  # fmt: skip
        started.append(
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **ranked})
        )
    printed = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise SystemExit(f"a process failed: {[process.returncode for process in started]}")
    return json.loads(next(line for line in printed[0].splitlines() if line.startswith("{")))


def measure(processes: int, images: int, size: int, repeats: int) -> dict[str, object]:
    """Check that the results are equal, then measure the ratio of images per second."""
    one, all_of_them = run(1, images, size), run(processes, images, size)
    if one["numbers"] != all_of_them["numbers"]:
        raise SystemExit("several processes give other numbers than one")
    rates: dict[int, list[float]] = {1: [], processes: []}
    for _ in range(repeats):
        for count, of_count in rates.items():
            of_count.append(count * images / float(str(run(count, count * images, size)["seconds"])))
    medians = {count: statistics.median(of_count) for count, of_count in rates.items()}
    return {
        "processes": processes, "images_of_each": images, "image_size": size, "equal": True,
        "images_per_second": {str(count): round(rate, 2) for count, rate in medians.items()},
        "ratio": round(medians[processes] / medians[1], 3),
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, or be one of the processes that are measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--images", type=int, default=400, help="by each process")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.work:
        work(asked.images, asked.image_size)
        return
    record = measure(asked.processes, asked.images, asked.image_size, asked.repeats)
    text = json.dumps(record, indent=1)
    print(text)
    if asked.out is not None:
        asked.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
